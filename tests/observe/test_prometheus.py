"""A real Prometheus finds what our dashboard and alerts, and those of the original, query."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests
import yaml
from conftest import Api
from process import Serving, free_port

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool on the PATH"),
]

# The queries of the original's dashboard, and its alerts' comparisons with zero.
QUERIES = """
sum by (code) (rate(hyperfleet_api_requests_total[30s]))
hyperfleet_api_build_info
histogram_quantile(0.50, sum by (le) (rate(hyperfleet_api_request_duration_seconds_bucket[30s])))
histogram_quantile(0.95, sum by (le) (rate(hyperfleet_api_request_duration_seconds_bucket[30s])))
histogram_quantile(0.99, sum by (le) (rate(hyperfleet_api_request_duration_seconds_bucket[30s])))
sum by (path) (rate(hyperfleet_api_requests_total{code=~"5.."}[30s]))
sum by (resource_type, is_delete) (rate(hyperfleet_api_reconciliation_started_total[30s]))
max by (resource_type, is_delete) (hyperfleet_api_resource_pending_reconciliation)
max by (resource_type, is_delete) (hyperfleet_api_resource_pending_reconciliation_stuck)
max by (resource_type, is_delete) (hyperfleet_api_resource_pending_reconciliation_stuck_duration_seconds)
histogram_quantile(0.50, sum by (le) (rate(hyperfleet_db_query_duration_seconds_bucket[30s])))
histogram_quantile(0.95, sum by (le) (rate(hyperfleet_db_query_duration_seconds_bucket[30s])))
histogram_quantile(0.99, sum by (le) (rate(hyperfleet_db_query_duration_seconds_bucket[30s])))
sum by (error_type) (rate(hyperfleet_db_errors_total[30s]))
sum(hyperfleet_db_connections_open)
sum(hyperfleet_db_connections_in_use)
topk(10, sum by (path) (rate(hyperfleet_api_requests_total[30s])))
max by (resource_type, is_delete) (hyperfleet_api_resource_pending_reconciliation_stuck) > 0
sum by (resource_type) (hyperfleet_api_resource_pending_reconciliation_stuck) > 0
"""


FILES = Path(__file__).parent.parent.parent / "deploy" / "chart" / "files"
SCHEMA = """
openapi: 3.0.3
info: {title: any, version: "1"}
components: {schemas: {ClusterSpec: {type: object}, NodePoolSpec: {type: object}}}
"""
# Documents are made in SQL, which could produce one that violates the contract like this.
BREAK = "UPDATE clusters SET status = jsonb_set(status, '{phase}', '\"Odd\"') WHERE id = %s"


def dashboard_queries() -> list[str]:
    """Returns the dashboard's queries as Grafana would send them."""
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [query.replace("$namespace", ".*").replace("$__rate_interval", "30s") for query in found]


def alert_queries() -> list[str]:
    """Returns the queries of the alerts."""
    groups = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.fixture
def serving(database: str, tmp_path: Path) -> Iterator[Serving]:
    schema = tmp_path / "schema.yaml"
    schema.write_text(SCHEMA)
    arguments = ["--stuck-after=1", "--statement-timeout=0.5", "--workers=2"]
    arguments += [f"--openapi-schema-path={schema}", "--validate-responses=sample"]
    with Serving("--no-auth", "--database-url", database, *arguments) as server:
        yield server


def use(serving: Serving, sql: psycopg.Connection) -> None:
    """Sends requests that give every metric a value."""
    api = Api(serving.url)
    cluster = api.cluster(f"c{time.monotonic_ns()}")
    api.node_pool(cluster)
    api.report(cluster)
    api.get("/clusters")
    with sql.transaction():
        # Not the whole table, from which the gauges of the fleet are read.
        sql.execute("SELECT FROM clusters WHERE id = %s FOR UPDATE", [cluster["id"]])
        assert api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}}).status_code == 503


def test_promtool_finds_no_fault_with_the_metrics(serving: Serving, sql: psycopg.Connection) -> None:
    use(serving, sql)
    shown = requests.get(serving.metrics, timeout=5).text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=shown, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.fixture
def refusing(database: str) -> Iterator[Serving]:
    """A service that requires tokens."""
    with Serving("--any-caller", "--host=127.0.0.1", "--database-url", database) as server:
        yield server


@pytest.fixture
def prometheus(serving: Serving, refusing: Serving, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    targets = [one.metrics.split("/")[2] for one in (serving, refusing)]
    config = tmp_path / "prometheus.yaml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: api, static_configs: [{{targets: {targets}}}]}}]\n"
    )
    process = subprocess.Popen(
        [
            *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"),
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_every_query_of_the_originals_dashboard_and_alerts_finds_data(
    serving: Serving, prometheus: str, sql: psycopg.Connection
) -> None:
    left = QUERIES.strip().splitlines()
    assert len(left) == 17 + 2
    deadline = time.monotonic() + 60
    while left:
        assert time.monotonic() < deadline, left
        use(serving, sql)
        try:
            left = [query for query in left if not results(prometheus, query)]
        except requests.ConnectionError:
            time.sleep(0.2)


def test_every_query_of_the_dashboard_and_every_metric_of_the_alerts_finds_data(
    serving: Serving, refusing: Serving, prometheus: str, sql: psycopg.Connection
) -> None:
    api, stranger = Api(serving.url), Api(refusing.url)
    odd = api.cluster("broken")
    sql.execute(BREAK, [odd["id"]])
    alerts = alert_queries()
    # With their label selectors; an alert's whole query only finds data when it fires.
    metrics = {one for query in alerts for one in re.findall(r"hyperfleet_\w+(?:\{.*?\})?", query)}
    left = [*dashboard_queries(), *sorted(metrics)]
    assert len(left) > 40
    deadline = time.monotonic() + 60
    while left:
        assert time.monotonic() < deadline, left
        use(serving, sql)
        assert stranger.get("/clusters").status_code == 401
        assert api.get(f"/clusters/{odd['id']}").status_code == 200
        try:
            left = [query for query in left if not results(prometheus, query, nought=True)]
        except requests.ConnectionError:
            time.sleep(0.2)
    for query in alerts:
        results(prometheus, query)


def results(prometheus: str, query: str, *, nought: bool = False) -> list[object]:
    """Returns the results of a query that are numbers, without zeros unless ``nought``."""
    answer = requests.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5).json()
    assert answer["status"] == "success", answer
    found: list[object] = [
        one
        for one in answer["data"]["result"]
        if one["value"][1] != "NaN" and (nought or one["value"][1] != "0")
    ]
    return found
