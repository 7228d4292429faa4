"""The folder in which a service's processes count, so that each can show the metrics of all.

It is removed with its service, or if that was killed, by the next to start; it mostly lies in memory.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hyperfleet.errors import StartError

PREFIX = "hyperfleet-metrics-"
MEMORY = Path("/dev/shm")  # noqa: S108 (the folder in it is this process's own)
# A file locked while any of the processes is alive; the kernel unlocks it however they end.
HELD = "held"


@contextmanager
def shared() -> Iterator[str]:
    """Yields a folder for files that live as long as this process and those that it forks.

    It lies in memory if possible, as in a container with a read-only file system. Raises StartError.
    """
    try:
        place = MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        _remove_dead(place)
        made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=place)
        held = Path(made.name, "new").open("wb")  # noqa: SIM115 (closed below)
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise StartError(
            f"Several processes need a folder for temporary files: {error.strerror}. Mount one at /tmp, "
            "or start with --workers=1."
        ) from None
    # Unlocks the file once the folder is gone.
    with held, made as folder:
        # Renamed only now, so that the file is never seen unlocked under this name.
        Path(held.name).rename(Path(folder, HELD))
        yield folder


def _remove_dead(place: Path) -> None:
    """Removes this user's folders whose processes have all ended."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.lstat().st_uid != os.geteuid():
                continue
            with (folder / HELD).open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
