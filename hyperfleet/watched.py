"""A file that is reloaded when it changes."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from hyperfleet.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Seconds between checks of a file: a check takes a thirtieth of a small request, and Kubernetes takes a
# minute to update a mounted file.
LOOK_EVERY = 0.1

T = TypeVar("T")


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Returns a value that differs once a file has changed; None if there is no file."""
    try:
        # Follows links: Kubernetes updates a mounted file by changing the target of one.
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Watched(Generic[T]):
    """The value of a file, updated within a tenth of a second after a change.

    :param path: the path of the file
    :param parse: makes the value from the text; raises ValueError if the text is invalid
    :param encoding: the encoding of the text

    ``broken`` says whether the value is older than the file because the file cannot be used.

    Raises ConfigurationError with the reason if the file cannot be read or parsed at first.
    """

    broken = False

    def __init__(self, path: Path, parse: Callable[[str], T], encoding: str = "utf-8") -> None:
        self.path = path
        self.parse = parse
        self.encoding = encoding
        self.looked = time.monotonic()
        try:
            self.stamp = stamp(path)
            self.value = parse(path.read_text(encoding=self.encoding))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: {_reason(error)}") from None

    def get(self) -> T:
        """Returns the value of the file, or its last good one while the file is missing or broken."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY:
            return self.value
        self.looked = now
        latest = stamp(self.path)
        if latest != self.stamp:
            # Set even if this fails: a failure is logged once, and retried at the next change.
            self.stamp = latest
            self.broken = True
            try:
                self.value = self.parse(self.path.read_text(encoding=self.encoding))
                self.broken = False
                logger.info("%s was read again", self.path)
            except (OSError, ValueError) as error:
                logger.error(
                    "%s cannot be used, so its last good content stays in force: %s",
                    self.path,
                    _reason(error),
                )
        return self.value


def _reason(error: OSError | ValueError) -> str:
    """Returns the reason without the error's number and the path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
