"""The service uses a primary and a hot standby, and writes to whichever accepts writes."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import requests
from conftest import Api
from own_server import frozen, kill, of, own_server, standby
from process import Serving
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from writers import WRITERS, assert_nothing_is_lost, writers

from hyperfleet.database import connection
from hyperfleet.database.standby import standbys
from hyperfleet.settings.catalogue import Settings

pytestmark = pytest.mark.slow


def test_acknowledged_writes_survive_the_primary_and_writes_continue_on_its_standby() -> None:
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


def test_a_standby_ahead_of_the_promoted_one_serves_no_more_reads() -> None:
    with (
        own_server() as primary,
        standby(primary, "second", synchronous=False) as second,
        standby(primary, "third", synchronous=False) as third,
    ):
        first = conninfo_to_dict(primary.conninfo)["host"]
        both = f"host={first},{second} port=5432,5432 user=postgres dbname=postgres"
        both += " target_session_attrs=read-write"
        with (
            Serving(
                *("--no-auth", "--database-url", both, "--request-timeout=2"),
                *("--read-database-url", of(primary, [third])),
            ) as serving,
            ThreadPoolExecutor(4) as threads,
        ):
            api = Api(serving.url)
            api.cluster("old")
            primary.ask("ALTER SYSTEM SET synchronous_standby_names = 'second'")
            primary.ask("SELECT pg_reload_conf()")
            # More than what the new primary writes before it is compared, which may be a checkpoint.
            much = {"much": os.urandom(480_000).hex()}
            with frozen(Path(second) / "postgresql"):
                bodies = [{"name": f"lost-{number}", "spec": much} for number in range(4)]
                lost = [threads.submit(Api(serving.url).post, "/clusters", json=one) for one in bodies]
                deadline = time.monotonic() + 10
                while api.get("/clusters?size=0").json()["total"] != 5:
                    assert time.monotonic() < deadline
                kill(primary.files)
            assert [one.result().status_code for one in lost] == [503] * 4
            with psycopg.connect(host=second, port=5432, user="postgres", autocommit=True) as conn:
                assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
            deadline = time.monotonic() + 10
            while (
                created := api.post("/clusters", json={"name": "new", "spec": {}})
            ).status_code != 201:
                assert time.monotonic() < deadline
            after = {"Hyperfleet-Position": created.headers["Hyperfleet-Position"]}
            path = f"/clusters/{created.json()['id']}"

            def names() -> list[str]:
                items = api.get("/clusters?order=name&fields=name", headers=after).json()["items"]
                return [item["name"] for item in items]

            def state() -> str:
                checks = requests.get(f"{serving.health}/readyz?verbose", timeout=5).json()["checks"]
                return str(checks[f"standby {third}:5432"]["state"])

            # Noticed when both servers are next asked.
            deadline = time.monotonic() + 10
            while state() != "it has changes that the primary does not have":
                assert time.monotonic() < deadline
            assert api.get(path, headers=after).status_code == 200
            assert names() == ["new", "old"]
            # The standby stays excluded when the new primary has written as much.
            for _ in range(4):
                much = {"much": os.urandom(480_000).hex()}
                api.patch(path, json={"spec": much}).raise_for_status()
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert names() == ["new", "old"]


def test_a_silent_first_server_delays_requests_briefly_and_fails_none(
    database: str, service: Callable[..., Api]
) -> None:
    parts = conninfo_to_dict(database)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        both = make_conninfo(
            database,
            host=f"127.0.0.1,{parts['host']}",
            port=f"{silent.getsockname()[1]},{parts['port']}",
            target_session_attrs="read-write",
        )
        api = service(connection.conninfo(Settings(database_url=both)))
        began = time.monotonic()
        api.cluster()
        assert time.monotonic() - began < 3


def test_a_silent_server_named_by_hostaddr_alone_delays_as_little() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        both = f"hostaddr=127.0.0.1,127.0.0.1 port={silent.getsockname()[1]},1 dbname=fleet"
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            connection.connect(connection.conninfo(Settings(database_url=both)))
        assert 1 < time.monotonic() - began < 4


def test_a_standby_named_by_hostaddr_alone_is_called_by_its_address() -> None:
    [one] = standbys("hostaddr=127.0.0.1 port=1", 1, 1, 1, shared=False)
    assert one.name == "127.0.0.1:1"
