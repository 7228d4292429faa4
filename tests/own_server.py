"""A PostgreSQL of a test's own, which it may stop and start."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from conftest import Api
from process import MEMORY

from hyperfleet.database import embedded, migration

POOL = 6
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'hyperfleet'"


class Server:
    """The server, with a migrated database."""

    def __init__(self, folder: Path, conninfo: str) -> None:
        self.files = folder / "postgresql"
        self.conninfo = conninfo
        migration.apply(conninfo)

    def restart(self, mode: str) -> None:
        log = str(self.files / "log")
        embedded._pg_ctl(embedded._server(self.files), self.files, "restart", "-m", mode, "-l", log)

    def stop(self) -> None:
        embedded._pg_ctl(embedded._server(self.files), self.files, "stop", "-m", "fast")

    def start(self) -> None:
        embedded._start(embedded._server(self.files), self.files)

    def ask(self, statement: str) -> list[Any]:
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            return conn.execute(statement).fetchall()


@contextmanager
def own_server(disk: Path | None = None) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(prefix="hyperfleet-", dir=disk or MEMORY) as folder,
        embedded.running(Path(folder)) as conninfo,
    ):
        yield Server(Path(folder), conninfo)


def fill(server: Server, api: Api) -> None:
    """Leaves the service, of one process, with as many idle connections as it may have."""
    # Creations would share a connection; changes of different clusters do not.
    clusters = [api.cluster(f"fill-{time.monotonic_ns()}-{number}") for number in range(POOL)]
    with psycopg.connect(server.conninfo) as holder, ThreadPoolExecutor(POOL) as threads:
        holder.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
        waiting = [
            threads.submit(Api(api.url).patch, f"/clusters/{one['id']}", json={"spec": {"a": 1}})
            for one in clusters
        ]
        end = time.monotonic() + 4
        while len(server.ask(BACKENDS)) < POOL:
            assert time.monotonic() < end
            time.sleep(0.02)
        holder.rollback()
        assert [one.result().status_code for one in waiting] == [200] * POOL
    assert len(server.ask(BACKENDS)) == POOL
