"""The compose file: the files that it mounts and the services that it waits for exist."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from rendered import ROOT, TOOLS

FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SPEC = TOOLS / "compose-spec.json"


@pytest.mark.tools
@pytest.mark.skipif(
    not SPEC.exists(), reason="no schema of compose files: make test-tools fetches it with Go"
)
def test_the_compose_file_matches_its_schema() -> None:
    faults = Draft7Validator(json.loads(SPEC.read_text())).iter_errors(COMPOSE)
    assert [fault.message for fault in faults] == []


def test_every_mounted_file_exists_and_every_volume_is_declared() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FILE.parent / source).is_file(), (name, source)
            else:
                assert source in COMPOSE["volumes"], (name, source)


def test_each_service_waits_for_those_that_it_needs() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= SERVICES.keys()
    assert SERVICES["api"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert SERVICES["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_all_ports_are_published_on_the_loopback_address_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_and_grafana_find_the_service_the_alerts_and_the_dashboard() -> None:
    def mounts(name: str) -> dict[str, Path]:
        pairs = (volume.split(":")[:2] for volume in SERVICES[name]["volumes"])
        return {inside: FILE.parent / outside for outside, inside in pairs}

    files = mounts("prometheus")
    config = yaml.safe_load(files["/etc/prometheus/prometheus.yml"].read_text())
    assert set(config["rule_files"]) <= files.keys()
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in SERVICES
    files = mounts("grafana")
    sources = yaml.safe_load(files["/etc/grafana/provisioning/datasources/hyperfleet.yaml"].read_text())
    assert sources["datasources"][0]["url"].split("/")[2].split(":")[0] in SERVICES
    providers = yaml.safe_load(files["/etc/grafana/provisioning/dashboards/hyperfleet.yaml"].read_text())
    folder = providers["providers"][0]["options"]["path"]
    (dashboard,) = (path for inside, path in files.items() if inside.startswith(folder))
    assert json.loads(dashboard.read_text())["uid"] == "hyperfleet-api"
