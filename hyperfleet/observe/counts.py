"""The files in which the processes of a service count, and which may find no room.

prometheus_client makes a file longer, and lets the room be taken by the first write to each page. Where
there is none, as in a ``/dev/shm`` that others have filled, that write is a SIGBUS: the process ends.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger(__name__)

# Bytes of a new file; and the most that an entry takes besides its key.
SIZE = 1 << 16
ENTRY = 40


class Counts(MmapedDict):
    """A file whose room is taken before anything is written to it. What finds none is not written, and
    is so with the next change that does: who counts knows the sum, and writes it whole.
    """

    # Whether it has been told that there is no room.
    told = False

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
        Counts.told = False

    def _open(self) -> None:
        # There is one where the process goes on from another.
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
        """The value of a key, and when it was set; 0 where there is no room for it."""
        try:
            return super().read_value(key)  # type: ignore[no-any-return, no-untyped-call]
        except OSError as error:
            self._tell(error)
            return 0.0, 0.0

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Sets the value of a key, where there is room for it."""
        try:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not Counts.told:
            Counts.told = True
            logger.warning("metrics are incomplete: %s: %s", self.path.parent, error.strerror)


def install() -> None:
    """Lets prometheus_client count in such files, where it counts in files; to be called before anything
    is counted.
    """
    values.MmapedDict = Counts  # type: ignore[attr-defined, assignment]
