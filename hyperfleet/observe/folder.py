"""The folder in which the processes of a service count, so that each can show the metrics of all.

It goes with the service. One whose service was killed is removed by the next that starts: mostly it lies
in memory.
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
# A file that is locked as long as one of the processes lives: the kernel unlocks it however they end.
HELD = "held"


@contextmanager
def shared() -> Iterator[str]:
    """A folder for files that live as long as this process and those that it forks; in memory where that
    can be had, as in a container whose files are read-only. Raises StartError.
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
    # Unlocked once the folder is gone.
    with held, made as folder:
        # Under its name it has always been locked.
        Path(held.name).rename(Path(folder, HELD))
        yield folder


def _remove_dead(place: Path) -> None:
    """Removes this user's folders of which no process is left."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.lstat().st_uid != os.geteuid():
                continue
            with (folder / HELD).open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
