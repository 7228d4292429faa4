"""What operators see: metrics, logs, and a service that recovers with its database."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import requests
from conftest import Api
from laid import lay
from own_server import frozen
from process import Serving, run
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hyperfleet import __version__
from hyperfleet.database.pool import new_pool

pytestmark = pytest.mark.slow


def samples(server: Serving) -> dict[str, float]:
    lines = requests.get(server.metrics, timeout=5).text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def test_metrics_count_every_response_by_status_method_and_path(database: str) -> None:
    with Serving("--no-auth", "--database-url", database) as server:
        api = Api(server.url)
        api.cluster("taken")
        expected = [
            ("POST", "/clusters", {"name": "taken", "spec": {}}, 409),
            ("POST", "/clusters", {"name": "Not a name"}, 400),
            ("GET", "/clusters/nothing", None, 404),
            ("GET", "/clusters?search=nonsense", None, 400),
            ("GET", "/no/such/path", None, 404),
            ("DELETE", "/clusters", None, 405),
        ]
        for method, path, body, status in expected:
            assert api.request(method, path, json=body).status_code == status
        found = samples(server)
        total = re.compile(r'hyperfleet_api_requests_total{code="(\d+)",.*method="(\w+)",path="(.*?)"')
        counted = {match.groups(): found[name] for name in found if (match := total.match(name))}
        version = "/api/hyperfleet/v1"
        assert counted == {
            ("201", "POST", f"{version}/clusters"): 1,
            ("409", "POST", f"{version}/clusters"): 1,
            ("400", "POST", f"{version}/clusters"): 1,
            ("404", "GET", f"{version}/clusters/-"): 1,
            ("400", "GET", f"{version}/clusters"): 1,
            ("404", "GET", "unknown"): 1,
            ("405", "DELETE", "unknown"): 1,
        }
        (seconds,) = [one for one in found if "duration_seconds_count" in one and 'code="409"' in one]
        assert found[seconds] == 1
        assert 'component="api"' in seconds
        assert f'version="{__version__}"' in seconds


def test_a_discarded_report_is_logged_and_a_path_cannot_forge_a_log_line(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = api.cluster()
    with caplog.at_level(logging.INFO, logger="hyperfleet"):
        assert api.report(cluster, "dns", observed_generation=7).status_code == 204
        assert api.get("/clusters/%0aFORGED").status_code == 404
    lines = [record.getMessage() for record in caplog.records]
    assert f"report of dns on Cluster {cluster['id']} discarded: generation-ahead-of-resource" in lines
    assert not [line for line in lines if "\n" in line]


def test_the_service_recovers_within_seconds_of_its_database(api: Api, database: str) -> None:
    parts = conninfo_to_dict(database)
    outside = make_conninfo(database, dbname="postgres")
    assert api.get("/clusters").status_code == 200
    with psycopg.connect(outside, autocommit=True) as admin:
        name = psycopg.sql.Identifier(str(parts["dbname"]))
        admin.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [parts["dbname"]],
        )
        end = time.monotonic() + 12
        while time.monotonic() < end:
            answer = api.get("/clusters")
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "5"
        admin.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    back = time.monotonic()
    while api.get("/clusters").status_code != 200:
        assert time.monotonic() - back < 8


def test_the_service_adds_its_options_to_those_of_the_connection_string(database: str) -> None:
    given = make_conninfo(database, options="-c work_mem=5MB -c jit=on")

    async def main() -> None:
        async with new_pool(given, 1, 1.5) as pool, pool.connection() as conn:

            async def shown(name: str) -> Any:
                return await (await conn.execute(f"SHOW {name}")).fetchone()

            names = ("work_mem", "jit", "statement_timeout", "max_parallel_workers_per_gather")
            found = [await shown(name) for name in names]
            assert found == [("5MB",), ("off",), ("1500ms",), ("0",)]
            # Values from the connection's options survive a reset, unlike those that SET sets.
            await conn.execute("RESET ALL")
            assert await shown("statement_timeout") == ("1500ms",)

    asyncio.run(main())


def test_readyz_reports_a_frozen_database_in_time(tmp_path: Any) -> None:
    with Serving("--no-auth", "--data-dir", str(lay(tmp_path))) as server:
        assert requests.get(server.health + "/readyz", timeout=5).status_code == 200
        with frozen(tmp_path / "postgresql"):
            answer = requests.get(server.health + "/readyz", timeout=5)
            assert answer.status_code == 503
            assert requests.get(server.health + "/healthz", timeout=5).status_code == 200


@pytest.fixture
def stuck(service: Callable[..., Api]) -> Iterator[tuple[Api, dict[str, Any], dict[str, Any]]]:
    """A marked cluster with a marked node pool, each waiting for an adapter that never reports."""
    api = service(required_adapters_cluster=("dns", "gone"), required_adapters_nodepool=("np", "gone"))
    cluster = api.cluster()
    pool = api.node_pool(cluster)
    assert api.delete(f"/clusters/{cluster['id']}").status_code == 202
    done = [{"type": "Finalized", "status": "True"}]
    assert api.report(cluster, "dns", observed_generation=2, conditions=done).status_code == 201
    assert api.report(pool, "np", observed_generation=2, conditions=done).status_code == 201
    yield api, cluster, pool


def test_refolding_completes_deletions_that_waited_only_for_adapters_no_longer_required(
    stuck: tuple[Api, dict[str, Any], dict[str, Any]], database: str, sql: psycopg.Connection
) -> None:
    api, cluster, pool = stuck
    command = ("migrate", "--refold", "--database-url", database, "--required-adapters-cluster=dns")
    assert run(*command, "--required-adapters-nodepool=np,gone").returncode == 0
    assert api.read(pool)["deleted_time"]
    assert api.read(cluster)["deleted_time"], "the cluster is gone before its node pool"
    assert run(*command, "--required-adapters-nodepool=np").returncode == 0
    for table in ("clusters", "node_pools", "adapter_statuses", "labels"):
        assert sql.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_equal_numbers_written_differently_are_no_change(api: Api) -> None:
    cluster = api.cluster(spec={"x": 1e16, "y": -0.0, "z": 1})
    path = f"/clusters/{cluster['id']}"
    for body in ('{"x":1e16,"y":-0.0,"z":1}', '{"x":10000000000000000,"y":0,"z":1.0}'):
        answer = api.patch(path, data=f'{{"spec":{body}}}', headers={"Content-Type": "application/json"})
        assert answer.json()["generation"] == 1
    assert api.patch(path, json={"spec": {"x": 1e16, "y": 0, "z": True}}).json()["generation"] == 2


def test_a_body_that_would_grow_when_stored_is_refused(api: Api) -> None:
    body = '{"name":"huge","spec":{"a":[' + ",".join(["1e308"] * 150_000) + "]}}"
    answer = api.post("/clusters", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "exponents" in answer.json()["detail"]
    assert float(api.cluster("modest", spec={"a": [1e308] * 100})["spec"]["a"][0]) == 1e308


def test_a_cluster_with_a_large_spec_can_be_patched(api: Api) -> None:
    body = '{"name":"large","spec":{"a":[' + ",".join(["1"] * 500_000) + "]}}"
    answer = api.post("/clusters", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201
    path = f"/clusters/{answer.json()['id']}"
    assert api.patch(path, json={"labels": {"a": "b"}}).status_code == 200


def test_an_id_in_upper_case_names_the_same_resource(api: Api) -> None:
    cluster = api.cluster()
    path = f"/clusters/{cluster['id'].upper()}"
    assert api.get(path).json() == cluster
    created = api.post(f"{path}/nodepools", json={"name": "np", "spec": {}})
    assert created.headers["Location"] == created.json()["href"]
    assert re.fullmatch(r"[/0-9a-z-]+", created.headers["Location"])


def test_reads_do_not_wait_for_a_locked_cluster(api: Api, database: str) -> None:
    cluster = api.cluster()
    with psycopg.connect(database) as holder:
        holder.execute("SELECT 1 FROM clusters WHERE id = %s FOR UPDATE", [cluster["id"]])
        waiting = threading.Thread(target=Api(api.url).report, args=(cluster,))
        waiting.start()
        assert api.read(cluster)["id"] == cluster["id"]
        assert api.get("/clusters").json()["total"] == 1
        holder.rollback()
        waiting.join(30)
