"""The files in which a service's processes count, safe against a lack of space.

prometheus_client extends a file without allocating it; the first write to each page does. If there is no
space, as in a ``/dev/shm`` filled by others, that write raises SIGBUS, which kills the process.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger(__name__)

# Bytes of a new file, and the most bytes that an entry takes besides its key.
SIZE = 1 << 16
ENTRY = 40


class Counts(MmapedDict):
    """A file whose space is allocated before anything is written to it.

    A value that finds none is written with a later change that does, since each write has the whole sum.
    """

    # Whether the lack of space has been logged.
    logged = False

    def __init__(self, filename: str) -> None:
        # Opened with its first entry.
        self.path = Path(filename)
        self._f = None  # type: ignore[assignment]
        self._positions: dict[str, int] = {}

    def _init_value(self, key: str) -> None:
        if self._f is None:
            self._open()
            if key in self._positions:
                return
        if self._used + len(key.encode()) + ENTRY > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]
        Counts.logged = False

    def _open(self) -> None:
        # The file exists if this process has taken over from another.
        if not self.path.exists():
            self._make()
        super().__init__(str(self.path))  # type: ignore[no-untyped-call]

    def _make(self) -> None:
        new = self.path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, SIZE)
            new.rename(self.path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise

    def read_value(self, key: str) -> tuple[float, float]:
        """Returns the value of a key, and when it was set; both are 0 if there is no space for it."""
        try:
            return super().read_value(key)  # type: ignore[no-any-return, no-untyped-call]
        except OSError as error:
            self._tell(error)
            return 0.0, 0.0

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Sets the value of a key, if there is space for it."""
        try:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not Counts.logged:
            Counts.logged = True
            logger.warning("metrics are incomplete: %s: %s", self.path.parent, error.strerror)


def install() -> None:
    """Makes prometheus_client count in such files, if in any; call it before anything is counted."""
    values.MmapedDict = Counts  # type: ignore[attr-defined, assignment]
