"""A file of settings that is read again when it changes."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from hyperfleet.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Seconds for which a file is not looked at again: to look at it takes a thirtieth of what a small
# request does, and Kubernetes takes a minute to change a mounted one.
LOOK_EVERY = 0.1

T = TypeVar("T")


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What is another one as soon as a file is; None where there is none."""
    try:
        # Follows links: Kubernetes swaps the target of one to change a mounted file.
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Watched(Generic[T]):
    """What a file holds, a tenth of a second after a change of it at the latest.

    :param path: of the file
    :param parse: makes the value from the text; raises ValueError for a text that is none
    :param encoding: of the text

    ``broken`` says whether what it holds is no longer what the file does.

    Raises ConfigurationError, with the reason, for a file that cannot be read or parsed at first.
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
        """The value of the file; of the last good one while it is missing or broken."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY:
            return self.value
        self.looked = now
        latest = stamp(self.path)
        if latest != self.stamp:
            # Also after a failure: it is reported once, and tried again at the next change.
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
    """Without the number of the error, and the path once more."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
