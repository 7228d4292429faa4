"""The setting of required adapters: how it is given, and when it takes effect."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from conftest import Api
from process import CLEAN, HYPERFLEET, Serving, run

pytestmark = pytest.mark.slow


def conditions(api: Api, resource: dict[str, Any]) -> dict[str, Any]:
    return {c["type"]: c for c in api.read(resource)["status"]["conditions"]}


@pytest.mark.parametrize("how", ["flag", "environment", "yaml"])
def test_required_adapters_may_be_set_by_flag_environment_or_yaml(
    database: str, tmp_path: Path, how: str
) -> None:
    arguments: list[str] = []
    environment: dict[str, str] = {}
    if how == "flag":
        arguments = ["--required-adapters-cluster=dns, validation", "--required-adapters-nodepool=np"]
    elif how == "environment":
        environment = {
            "HYPERFLEET_REQUIRED_ADAPTERS_CLUSTER": "dns,validation",
            "HYPERFLEET_REQUIRED_ADAPTERS_NODEPOOL": "np",
        }
    else:
        (tmp_path / "c.yaml").write_text(
            "required_adapters:\n  cluster: [dns, validation]\n  nodepool: [np]\n"
        )
        arguments = ["--config", str(tmp_path / "c.yaml")]
    with Serving("--no-auth", "--database-url", database, *arguments, env=environment) as server:
        api = Api(server.url)
        cluster = api.cluster()
        pool = api.node_pool(cluster)
        for adapter in ("dns", "other"):
            api.report(cluster, adapter)
            api.report(pool, adapter)
        ready = conditions(api, cluster)["Ready"]
        assert ready["status"] == "False"
        assert "validation (no report)" in ready["message"]
        assert "np (no report)" in conditions(api, pool)["Ready"]["message"]
        api.report(cluster, "validation")
        api.report(pool, "np")
        assert conditions(api, cluster)["Ready"]["status"] == "True"
        assert conditions(api, pool)["Ready"]["status"] == "True"


def test_a_change_takes_effect_on_the_next_report_and_for_all_after_refolding(
    service: Callable[..., Api], database: str
) -> None:
    before = service()
    clusters = [before.cluster(f"c{number}") for number in range(250)]
    pool = before.node_pool(clusters[0])
    for cluster in clusters:
        assert before.report(cluster, "dns").status_code == 201
    before.report(pool, "np")

    after = service(required_adapters_cluster=("dns", "validation"))
    assert conditions(after, clusters[0])["Ready"]["status"] == "True"
    after.report(clusters[0], "dns")
    assert conditions(after, clusters[0])["Ready"]["status"] == "False"
    assert conditions(after, clusters[1])["Ready"]["status"] == "True"

    command = (
        "migrate",
        "--refold",
        "--database-url",
        database,
        "--required-adapters-cluster=dns,validation",
    )
    done = run(*command)
    assert done.returncode == 0, done.stdout
    assert "Folding" in done.stdout
    assert done.stdout.splitlines()[-1] == "249 statuses changed."
    for cluster in clusters[1:3]:
        now = conditions(after, cluster)
        assert now["Ready"]["status"] == now["Reconciled"]["status"] == "False"
        assert now["Available"]["status"] == "True", "a running cluster stays available"
        assert "validation (no report)" in now["Ready"]["message"]
    assert run(*command).stdout.splitlines()[-1] == "0 statuses changed."


def test_refolding_can_be_stopped_and_run_again(service: Callable[..., Api], database: str) -> None:
    api = service()
    clusters = [api.cluster(f"c{number:03}") for number in range(150)]
    for cluster in clusters:
        api.report(cluster, "dns")
    command = ["migrate", "--refold", "--database-url", database, "--required-adapters-cluster=late"]
    # A lock on the last cluster keeps the second batch from finishing.
    with psycopg.connect(database) as holder:
        holder.execute("SELECT 1 FROM clusters WHERE id = %s FOR UPDATE", [clusters[-1]["id"]])
        process = subprocess.Popen([HYPERFLEET, *command], env=CLEAN, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while conditions(api, clusters[99])["Ready"]["status"] == "True":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
    assert conditions(api, clusters[100])["Ready"]["status"] == "True", (
        "an interrupted batch changes nothing"
    )
    assert run(*command).stdout.splitlines()[-1] == "50 statuses changed."
    assert conditions(api, clusters[149])["Ready"]["status"] == "False"
    assert requests.get(f"{api.base}/clusters", timeout=10).json()["total"] == 150
