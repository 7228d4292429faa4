"""The files of a server with a migrated database, at rest: copied far sooner than made.

They are made once for all processes of a run, by the first that asks.
"""

import fcntl
import functools
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from process import server_folder

from hyperfleet.database import embedded, migration

# Where they are, for processes that this one starts, too.
PLACE = "TEST_SERVER"
kept = ExitStack()


def begin() -> None:
    """Makes the folder for them, which goes with this process, unless the one that started it has."""
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
    """Leaves such files in a folder, which is the one of an embedded PostgreSQL then."""
    # With their owner, who is another one when the tests run as root.
    subprocess.run(["cp", "-a", prepared(), folder], check=True)
    return folder
