"""A primary with a hot standby, and the service on both: writes go on with whoever takes them."""

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from conftest import Api
from own_server import kill, own_server, standby
from process import Serving
from psycopg.conninfo import conninfo_to_dict
from writers import WRITERS, assert_nothing_is_lost, writers

pytestmark = pytest.mark.slow


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
                kill(primary.files)
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
