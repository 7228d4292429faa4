"""Metrics of resources, statements, connections and queues."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path

import psycopg
import pytest
import requests
import uvloop
from conftest import Api
from own_server import own_server
from process import Serving
from prometheus_client import CollectorRegistry

from hyperfleet import __version__
from hyperfleet.database.pool import new_pool
from hyperfleet.observe.gauges import Fleet
from hyperfleet.observe.metrics import OWN as LABELS
from hyperfleet.observe.metrics import Statements

pytestmark = pytest.mark.slow

VERSION = f'version="{__version__}"'
OWN = f'component="api",{VERSION}'


@pytest.fixture
def serving(database: str) -> Iterator[Serving]:
    arguments = ["--required-adapters-cluster=dns", "--required-adapters-nodepool=dns"]
    with Serving("--no-auth", "--stuck-after=1", "--database-url", database, *arguments) as server:
        yield server


def scraped(server: Serving) -> dict[str, float]:
    """Returns each sample by its name and sorted labels."""
    found = {}
    for line in requests.get(server.metrics, timeout=5).text.splitlines():
        if line[0] == "#":
            continue
        name, _, value = line.rpartition(" ")
        name, brace, labels = name.partition("{")
        pairs = sorted(re.findall(r'\w+="[^"]*"', labels))
        found[name + (brace and "{" + ",".join(pairs) + "}")] = float(value)
    return found


def test_reconciliations_reports_and_pending_resources_are_counted(serving: Serving) -> None:
    api = Api(serving.url)
    cluster, other = api.cluster("one"), api.cluster("two")
    api.node_pool(cluster, "np")
    assert api.report(cluster).status_code == 201
    assert api.report(cluster, observed_generation=5).status_code == 204
    # It was reconciled until then.
    api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}}).raise_for_status()
    api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 2}}).raise_for_status()
    for _ in range(3):
        # Only the first one reconciles it, and none makes it need that again.
        api.report(cluster, observed_generation=3)
    down = [{"type": "Available", "status": "False"}]
    api.report(cluster, observed_generation=3, conditions=down)
    api.delete(f"/clusters/{cluster['id']}").raise_for_status()
    key = {"Idempotency-Key": "again"}
    for _ in range(3):
        api.post("/clusters", json={"name": "three", "spec": {}}, headers=key).raise_for_status()

    found = scraped(serving)
    started = "hyperfleet_api_reconciliation_started_total"
    assert {name: value for name, value in found.items() if name.startswith(started)} == {
        sample(started, "cluster", "false"): 5,
        sample(started, "nodepool", "false"): 1,
        sample(started, "cluster", "true"): 1,
        sample(started, "nodepool", "true"): 1,
    }
    reports = {name: value for name, value in found.items() if "_reports_total" in name}
    assert sorted(reports.values()) == [1, 5]
    assert any('outcome="generation-ahead-of-resource"' in name for name in reports)

    pending = "hyperfleet_api_resource_pending_reconciliation"
    time.sleep(1.2)
    # The gauges of the fleet are read once every 15 s.
    assert scraped(serving)[sample(pending, "cluster", "true")] == 1
    assert found[sample(pending, "cluster", "true")] == 1
    assert found[sample(pending, "cluster", "false")] == 2
    assert found[sample(pending, "nodepool", "true")] == 1
    assert sample(f"{pending}_stuck", "cluster", "true") not in found
    phases = {
        name: value for name, value in found.items() if name.startswith("hyperfleet_api_resources{")
    }
    assert sum(phases.values()) == 4
    assert other["status"]["phase"] == "NotReady"
    assert any('phase="NotReady"' in name and 'resource_type="cluster"' in name for name in phases)


def sample(name: str, kind: str, deleting: str) -> str:
    return f'{name}{{component="api",is_delete="{deleting}",resource_type="{kind}",{VERSION}}}'


def test_a_resource_pending_for_long_counts_as_stuck(serving: Serving) -> None:
    api = Api(serving.url)
    for name in ("one", "two", "new"):
        api.cluster(name)
        time.sleep(1.5 if name != "new" else 0)
    found = scraped(serving)
    stuck = "hyperfleet_api_resource_pending_reconciliation_stuck"
    assert found[sample(stuck, "cluster", "false")] == 2
    # That of the oldest one.
    assert 3 < found[sample(f"{stuck}_duration_seconds", "cluster", "false")] < 60
    assert not any(name.startswith(stuck) and "nodepool" in name for name in found)


def test_every_statement_has_a_name_and_every_metric_is_documented(serving: Serving, root: Path) -> None:
    api = Api(serving.url)
    cluster = api.cluster("one", labels={"a": "b"})
    pool = api.node_pool(cluster)
    api.post("/clusters", json={"name": "one", "spec": {}})
    api.post("/clusters", json={"name": "two", "spec": {}}, headers={"Idempotency-Key": "k"})
    for path in ("/clusters", "/nodepools", f"/clusters/{cluster['id']}/statuses", "/clusters?page=2"):
        tag = api.get(path).headers["ETag"]
        api.get(path, headers={"If-None-Match": tag})
    api.report(pool)
    api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}})
    api.delete(f"/clusters/{cluster['id']}")
    for one in (pool, cluster):
        finalized = [{"type": "Finalized", "status": "True"}]
        api.report(one, observed_generation=api.read(one)["generation"], conditions=finalized)
    requests.get(serving.health + "/readyz", timeout=5)
    found = scraped(serving)
    page = (root / "docs" / "metrics.md").read_text()
    own = {re.split(r"{|_bucket|_count|_sum|_created", name)[0] for name in found}
    for name in own:
        assert not name.startswith("hyperfleet_") or f"`{name}`" in page, name
    names = {
        match[1]
        for name in found
        if (match := re.search(r'db_query_duration_seconds_count{.*operation="(\w+)"', name))
    }
    assert "other" not in names
    assert names >= {
        *("clusters_create", "node_pools_create", "clusters_read", "clusters_list", "node_pools_list"),
        *("adapter_statuses_list", "node_pools_state", "node_pools_report", "clusters_lock", "commit"),
        *("node_pools_report_locked", "idempotency_keys_claim", "moment", "readiness", "fleet"),
    }
    assert found[f"hyperfleet_db_connections_open{{{OWN}}}"] >= 1
    assert found[f"hyperfleet_db_connections_in_use{{{OWN}}}"] >= 0
    (info,) = [name for name in found if name.startswith("hyperfleet_api_build_info{")]
    assert 'commit="' in info
    assert 'python_version="3.' in info
    assert f'version="{__version__}"' in info


def test_queues_and_errors_are_shown_and_a_locked_table_does_not_block_scrapes(
    serving: Serving, sql: psycopg.Connection
) -> None:
    api = Api(serving.url)
    cluster = api.cluster("one")
    slowest = [0.0]
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            began = time.monotonic()
            scraped(serving)
            slowest[0] = max(slowest[0], time.monotonic() - began)
            time.sleep(0.05)

    with ThreadPoolExecutor(9) as threads, sql.transaction():
        sql.execute("LOCK TABLE clusters")
        scraping = threads.submit(scrape)
        reports = [threads.submit(Api(api.url).report, cluster) for _ in range(4)]
        deadline = time.monotonic() + 4
        waiting: dict[str, float] = {}
        while waiting.get(f"hyperfleet_api_requests_in_flight{{{OWN}}}") != 4:
            assert time.monotonic() < deadline, waiting
            waiting = scraped(serving)
        assert waiting[f"hyperfleet_api_resource_queue_longest{{{OWN}}}"] == 3
        assert {one.result().status_code for one in reports} == {503}
        done.set()
        scraping.result()
    assert slowest[0] < 3
    errors = {name: value for name, value in scraped(serving).items() if "db_errors_total" in name}
    assert any('error_type="LockNotAvailable"' in name and value for name, value in errors.items())


def test_a_statement_that_failed_is_counted_and_not_timed() -> None:
    registry = CollectorRegistry()
    statements = Statements(registry)
    for error in (None, psycopg.OperationalError()):
        statements.count("read", 0.25, error)
    labels = {"operation": "read", **LABELS}
    assert registry.get_sample_value("hyperfleet_db_query_duration_seconds_sum", labels) == 0.25
    labels["error_type"] = "OperationalError"
    assert registry.get_sample_value("hyperfleet_db_errors_total", labels) == 1


def test_the_fleet_has_no_figures_while_they_cannot_be_read(
    database: str, sql: psycopg.Connection
) -> None:
    async def main() -> list[int]:
        found = []
        async with new_pool(database, 1) as pool:
            fleet = Fleet(pool, 600)
            for lock in ("SELECT 1", "LOCK TABLE clusters", "SELECT 1"):
                with sql.transaction():
                    sql.execute(lock)
                    fleet.looked = float("-inf")
                    await fleet.look()
                found.append(sum(len(metric.samples) for metric in fleet.collect()))
        return found

    with Serving("--no-auth", "--database-url", database) as server:
        Api(server.url).cluster("one")
        # An idle service uses none of its connections.
        assert scraped(server)[f"hyperfleet_db_connections_in_use{{{OWN}}}"] == 0
    assert uvloop.run(main()) == [2, 0, 2]


def test_changes_count_as_held_back_only_while_a_client_waits(serving: Serving, database: str) -> None:
    api, name = Api(serving.url), f"hyperfleet_api_changes_delay_seconds{{{OWN}}}"

    def until(held: bool) -> None:
        deadline = time.monotonic() + 10
        while (scraped(serving)[name] > 0) != held:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with psycopg.connect(database) as older:
        older.execute("SELECT pg_current_xact_id()")
        api.cluster("one")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(api.get, "/changes?wait=3")
            until(True)
            assert waiting.result().json()["items"] == []
        # Nobody looks any more, so nobody would notice the end of the transaction.
        until(False)


def test_garbage_instead_of_a_request_is_counted_and_logged(serving: Serving) -> None:
    host, _, port = serving.url.removeprefix("http://").partition(":")
    for _ in range(3):
        with socket.create_connection((host, int(port)), 5) as line:
            line.sendall(b"FOO BAR\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 400")
    labels = f'code="400",component="api",method="other",path="unknown",{VERSION}'
    assert scraped(serving)[f"hyperfleet_api_requests_total{{{labels}}}"] == 3
    assert "input that was not a valid request" in serving.output


def test_a_request_with_a_broken_body_is_counted_and_logged_once_under_the_id_in_its_response(
    serving: Serving,
) -> None:
    host, _, port = serving.url.removeprefix("http://").partition(":")
    for number, sent in enumerate(("", "X-Request-ID: mine\r\n"), 1):
        head = f"POST /api/hyperfleet/v1/clusters HTTP/1.1\r\nHost: x\r\n{sent}"
        with socket.create_connection((host, int(port)), 5) as line:
            line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\nZZ\r\n".encode())
            answer = HTTPResponse(line)
            answer.begin()
            id_ = answer.headers["X-Request-ID"]
            assert (answer.status, json.loads(answer.read())["trace_id"]) == (400, id_)
        assert id_ == "mine" or not sent
        assert serving.says(f"[{id_} -] POST /api/hyperfleet/v1/clusters 400")
        found = scraped(serving)
        counts = [found[name] for name in found if name.startswith("hyperfleet_api_requests_total")]
        assert sum(counts) == number


def test_an_outage_is_counted_and_leaves_no_request_waiting() -> None:
    with own_server() as server, Serving("--no-auth", "--database-url", server.conninfo) as serving:
        Api(serving.url).cluster("one")
        server.stop()
        with ThreadPoolExecutor(16) as threads:
            answers = threads.map(lambda _: Api(serving.url).get("/clusters").status_code, range(32))
            assert set(answers) == {503}
        time.sleep(0.5)
        found = scraped(serving)
        assert found[f"hyperfleet_db_connections_waiting{{{OWN}}}"] == 0
        errors = [value for name, value in found.items() if "db_errors_total" in name]
        assert sum(errors) >= 1
        assert serving.output.count("the database cannot be reached") == 1
        server.start()
        deadline = time.monotonic() + 5
        while Api(serving.url).get("/clusters").status_code != 200:
            assert time.monotonic() < deadline
        assert serving.output.count("the database is reached again") == 1


def test_the_gauges_of_the_fleet_are_read_once_for_all_workers(database: str) -> None:
    with Serving("--no-auth", "--workers=2", "--database-url", database) as server:
        Api(server.url).cluster("one")
        with ThreadPoolExecutor(16) as threads:
            # Each on a new connection, so that both workers are asked.
            everything = list(threads.map(lambda _: scraped(server), range(64)))
        asked = (
            f'hyperfleet_db_query_duration_seconds_count{{component="api",operation="fleet",{VERSION}}}'
        )
        assert everything[-1][asked] == scraped(server)[asked] == 1
        pending = sample("hyperfleet_api_resource_pending_reconciliation", "cluster", "false")
        assert [one[pending] for one in everything[32:]] == [1] * 32
        # What is not a sum over the workers.
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        found = re.search(r"Max open files +(\d+)", limits)
        assert found
        assert everything[-1]["process_max_fds"] == int(found[1])
        assert time.time() - 300 < everything[-1]["process_start_time_seconds"] <= time.time()


def test_a_worker_that_dies_is_counted_as_a_restart(database: str) -> None:
    with Serving("--no-auth", "--workers=2", "--database-url", database) as server:
        name = f"hyperfleet_api_worker_restarts_total{{{OWN}}}"
        assert scraped(server)[name] == 0
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        deadline = time.monotonic() + 5
        while scraped(server)[name] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_metrics_of_the_first_generation_are_there_only_if_enabled(database: str) -> None:
    arguments = ["--no-auth", "--database-url", database]
    with Serving(*arguments, "--first-generation-metrics") as server:
        Api(server.url).get("/compatibility")
        found = scraped(server)
        labels = 'code="200",method="GET",path="/api/hyperfleet/v1/compatibility"'
        assert found[f"api_inbound_request_count{{{labels}}}"] == 1
        assert found[f"api_inbound_request_duration_count{{{labels}}}"] == 1
    with Serving(*arguments) as server:
        Api(server.url).get("/compatibility")
        assert not any(name.startswith("api_inbound") for name in scraped(server))
