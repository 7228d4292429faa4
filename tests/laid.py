"""The files of a stopped server with a migrated database: copying them is much faster than making them.

They are made once for all processes of a test run, by the first that needs them.
"""

import fcntl
import functools
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from process import server_folder

from hyperfleet.database import embedded, migration

# The variable with their folder, also for processes that this one starts.
PLACE = "TEST_SERVER"
kept = ExitStack()


def begin() -> None:
    """Makes their folder, removed with this process, unless the one that started it has made it."""
    if PLACE not in os.environ:
        os.environ[PLACE] = str(kept.enter_context(server_folder()))
        kept.callback(os.environ.pop, PLACE)


@functools.cache
def prepared() -> Path:
    folder = Path(os.environ[PLACE])
    made = folder / "made"
    with (folder / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not made.exists():
            with embedded.running(folder) as conninfo:
                migration.apply(conninfo)
            made.touch()
    return folder / "postgresql"


def lay(folder: Path) -> Path:
    """Copies such files into a folder, which becomes that of an embedded PostgreSQL."""
    # With their owner, who is a different one if the tests run as root.
    subprocess.run(["cp", "-a", prepared(), folder], check=True)
    return folder
