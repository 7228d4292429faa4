"""Alerts fire when they should and link to their section of the runbook; the dashboard is readable."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import CHART, ROOT, needs_helm, one, template

FILE = CHART / "files" / "alerts.yaml"
RULES: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["groups"][0]["rules"]
NAMES = [rule["alert"] for rule in RULES]
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool on the PATH")


def sections() -> dict[str, str]:
    """The sections of the runbook, by the anchors of their headings."""
    text = (ROOT / "docs" / "runbook.md").read_text()
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        found[re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")] = body
    return found


def test_every_alert_has_a_section_in_the_runbook_and_every_section_an_alert() -> None:
    found = sections()
    links = {rule["annotations"]["runbook_url"].partition("#")[2]: rule for rule in RULES}
    assert links.keys() == found.keys()
    for anchor, rule in links.items():
        named = re.search(r"Alert `(\w+)`:\n\n```promql\n(.*?)```", found[anchor], re.DOTALL)
        assert named, anchor
        assert (named[1], " ".join(named[2].split())) == (rule["alert"], rule["expr"])


@pytest.mark.tools
@needs_helm
def test_enabled_alerts_link_to_the_runbook_that_the_values_name() -> None:
    manifests = template(
        *("--set", "monitoring.prometheusRule.enabled=true"),
        *("--set", "monitoring.prometheusRule.runbook=https://docs.example/runbook"),
        *("--set", "monitoring.prometheusRule.disabled={HyperFleetWorkersDie}"),
    )
    rules = one(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
    # Without a schema, it is intended that specs are not validated.
    assert [rule["alert"] for rule in rules] == [
        name for name in NAMES if name not in ("HyperFleetWorkersDie", "HyperFleetSpecsNotValidated")
    ]
    for rule in rules:
        assert rule["annotations"]["runbook_url"].startswith("https://docs.example/runbook#")
    given = template("--values", "deploy/chart/ci/everything-values.yaml")
    names = [rule["alert"] for rule in one(given, "PrometheusRule")["spec"]["groups"][0]["rules"]]
    assert "HyperFleetSpecsNotValidated" in names
    variable = "monitoring.prometheusRule.enabled=true,extraEnv[0].name=OPENAPI_SCHEMA_PATH"
    given = template("--set", f"{variable},extraEnv[0].value=/etc/schemas/openapi.yaml")
    names = [rule["alert"] for rule in one(given, "PrometheusRule")["spec"]["groups"][0]["rules"]]
    assert "HyperFleetSpecsNotValidated" in names


# How many queries about the fleet the database has answered.
FLEET_QUERIES = 'hyperfleet_db_query_duration_seconds_count{operation="fleet"}'
# For each alert: series with a value per minute, a minute when it fires, and one when it does not.
PROBLEMS: dict[str, tuple[dict[str, str], int, int]] = {
    "HyperFleetResourcesStuck": (
        {'hyperfleet_api_resource_pending_reconciliation_stuck{resource_type="cluster"}': "0x20 3x40"},
        30,
        18,
    ),
    "HyperFleetRequestsFail": (
        {
            'hyperfleet_api_requests_total{code="200"}': "0+60x60",
            'hyperfleet_api_requests_total{code="503"}': "0x20 0+6x40",
        },
        35,
        18,
    ),
    "HyperFleetRequestsSlow": (
        {
            'hyperfleet_api_request_duration_seconds_bucket{le="0.1"}': "0+60x20 1200x40",
            'hyperfleet_api_request_duration_seconds_bucket{le="5"}': "0+60x60",
            'hyperfleet_api_request_duration_seconds_bucket{le="+Inf"}': "0+60x60",
        },
        45,
        18,
    ),
    "HyperFleetNotReady": (
        {
            "hyperfleet_api_build_info": "1x60",
            'hyperfleet_api_resources{resource_type="cluster"}': "5x20 stale",
            FLEET_QUERIES: "0+2x20 40x40",
            "hyperfleet_db_connections_waiting": "0x20 2x40",
        },
        30,
        18,
    ),
    "HyperFleetWorkersDie": ({"hyperfleet_api_worker_restarts_total": "0x20 1x40"}, 25, 18),
    "HyperFleetContractBroken": (
        {'hyperfleet_contract_breaches_total{operation="getClusters"}': "_x20 1x140"},
        30,
        100,
    ),
    "HyperFleetSpecsNotValidated": (
        {
            'hyperfleet_spec_validation{kind="Cluster"}': "1x20 0x40",
            "hyperfleet_provider_schema_ok": "1x60",
        },
        30,
        18,
    ),
    "HyperFleetNobodyGetsIn": (
        {
            'hyperfleet_api_requests_total{code="200"}': "0+60x20 1200x40",
            'hyperfleet_api_requests_total{code="401"}': "0x20 0+60x40",
        },
        45,
        18,
    ),
}


def expected(name: str, minute: int, *, fires: bool) -> dict[str, Any]:
    """Expects an alert to fire or not, by its count: promtool would require each label of an alert."""
    query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if fires else []
    return {"expr": query, "eval_time": f"{minute}m", "exp_samples": samples}


@pytest.mark.tools
@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_each_alert_fires_during_its_problem_and_not_otherwise(name: str, tmp_path: Path) -> None:
    series, fires, silent = PROBLEMS[name]
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in series.items()],
        "promql_expr_test": [
            expected(name, fires, fires=True),
            expected(name, silent, fires=False),
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FILE)], "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.tools
@needs_promtool
def test_not_ready_fires_if_nothing_serves_and_not_because_the_last_cluster_is_gone(
    tmp_path: Path,
) -> None:
    gone = {"series": 'hyperfleet_api_resources{resource_type="cluster"}', "values": "1x20 stale"}
    calm = [
        {"series": "hyperfleet_api_build_info", "values": "1x60"},
        {"series": FLEET_QUERIES, "values": "0+2x60"},
        {"series": "hyperfleet_db_connections_waiting", "values": "0x60"},
    ]
    name = "HyperFleetNotReady"
    tests = [
        {
            "interval": "1m",
            "input_series": [gone, *calm],
            "promql_expr_test": [expected(name, 40, fires=False)],
        },
        {"interval": "1m", "input_series": [], "promql_expr_test": [expected(name, 40, fires=True)]},
    ]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FILE)], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.tools
@needs_promtool
def test_not_ready_fires_for_as_long_as_the_database_is_unreachable(tmp_path: Path) -> None:
    # Two replicas; at only some of the scrapes, requests are waiting.
    series = [
        {"series": f'{name}pod="{pod}"}}', "values": values}
        for pod in "ab"
        for name, values in (
            ("hyperfleet_api_build_info{", "1x400"),
            ('hyperfleet_api_resources{resource_type="cluster",', "5x20 stale"),
            (FLEET_QUERIES.replace("}", ","), "0+2x20 40x200 40+2x99"),
            ("hyperfleet_db_connections_waiting{", "0x20" + " 2 0 1" * 66 + " 0x100"),
        )
    ]
    moments = [(18, False), *((minute, True) for minute in range(35, 215, 10)), (240, False)]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            expected("HyperFleetNotReady", minute, fires=fires) for minute, fires in moments
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FILE)], "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_titles_and_legends() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"] and place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["legendFormat"], panel["title"]
            assert target["datasource"]["uid"] == "${datasource}"
