"""A real Prometheus: what dashboards and alerts of the original ask for is there."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests
from conftest import Api
from process import Serving

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool on the PATH"),
]

# What the original's dashboard shows, and its alerts compare with zero.
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


@pytest.fixture
def serving(database: str) -> Iterator[Serving]:
    arguments = ["--stuck-after=1", "--statement-timeout=0.5", "--workers=2"]
    with Serving("--no-auth", "--database-url", database, *arguments) as server:
        yield server


def use(serving: Serving, sql: psycopg.Connection) -> None:
    """Lets something of everything happen."""
    api = Api(serving.url)
    cluster = api.cluster(f"c{time.monotonic_ns()}")
    api.node_pool(cluster)
    api.report(cluster)
    api.get("/clusters")
    with sql.transaction():
        sql.execute("LOCK TABLE clusters")
        assert api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}}).status_code == 503


def test_promtool_has_nothing_to_say_of_the_metrics(serving: Serving, sql: psycopg.Connection) -> None:
    use(serving, sql)
    shown = requests.get(serving.metrics, timeout=5).text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=shown, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.fixture
def prometheus(serving: Serving, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = serving.metrics.removeprefix("http://").removesuffix("/metrics")
    config = tmp_path / "prometheus.yaml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: api, static_configs: [{{targets: ['{target}']}}]}}]\n"
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
            left = [query for query in left if not asked(prometheus, query)]
        except requests.ConnectionError:
            time.sleep(0.2)


def asked(prometheus: str, query: str) -> list[object]:
    answer = requests.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5).json()
    assert answer["status"] == "success", answer
    found: list[object] = [
        one for one in answer["data"]["result"] if one["value"][1] not in ("NaN", "0")
    ]
    return found
