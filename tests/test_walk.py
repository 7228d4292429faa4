"""The walkthrough that users of the original know works, typed with curl and jq."""

import json
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from laid import lay
from process import Serving

pytestmark = pytest.mark.slow

WALK = r"""
curl http://localhost:8000/api/hyperfleet/v1/compatibility | jq
curl http://localhost:8000/api/hyperfleet/v1/clusters | jq
CLUSTER=$(curl -s -X POST http://localhost:8000/api/hyperfleet/v1/clusters -H "Content-Type: application/json" \
  -d '{"kind":"Cluster","name":"production-cluster","spec":{"region":"us-east-1","version":"4.16","nodes":5},"labels":{"env":"production","team":"platform"}}')
CLUSTER_ID=$(echo $CLUSTER | jq -r '.id')
curl -X POST http://localhost:8000/api/hyperfleet/v1/clusters/$CLUSTER_ID/nodepools -H "Content-Type: application/json" \
  -d '{"kind":"NodePool","name":"worker-pool","spec":{"instance_type":"m5.2xlarge","replicas":10,"disk_size":200},"labels":{"pool_type":"worker"}}' | jq
curl -X POST http://localhost:8000/api/hyperfleet/v1/clusters/$CLUSTER_ID/statuses -H "Content-Type: application/json" \
  -d '{"adapter":"dns-adapter","observed_generation":1,"conditions":[{"adapter":"dns-adapter","type":"Ready","status":"True","observed_generation":1,"reason":"ClusterProvisioned","message":"Cluster successfully provisioned","created_at":"2025-11-17T15:04:05Z","updated_at":"2025-11-17T15:04:05Z"}]}' | jq
curl http://localhost:8000/api/hyperfleet/v1/clusters/$CLUSTER_ID | jq
curl "http://localhost:8000/api/hyperfleet/v1/clusters?search=name='production-cluster'" | jq
"""

needs_curl = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not installed"
)


def type_it(script: str, url: str) -> list[dict]:
    """Runs the commands in a shell; returns the JSON documents that they print, in order."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://localhost:8000", url)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    documents, rest, decoder = [], done.stdout.strip(), json.JSONDecoder()
    while rest:
        document, end = decoder.raw_decode(rest)
        documents.append(document)
        rest = rest[end:].strip()
    return documents


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_curl
def test_the_walkthrough_works_in_a_new_data_folder_and_its_data_survives_a_restart(
    tmp_path: Path,
) -> None:
    arguments = ("--no-auth", "--data-dir", str(tmp_path / "data"))
    with Serving(*arguments) as server:
        compatibility, empty, pool, report, cluster, found = type_it(WALK, server.url)
        assert compatibility["api_version"] == "v1"
        assert compatibility["compatible"] is True
        assert empty.pop("changes").startswith("/api/hyperfleet/v1/changes?kind=Cluster&after=")
        assert empty == {"kind": "ClusterList", "page": 1, "size": 0, "total": 0, "items": []}
        assert pool["owner_references"]["id"] == cluster["id"]
        assert pool["spec"] == {"instance_type": "m5.2xlarge", "replicas": 10, "disk_size": 200}
        assert report["adapter"] == "dns-adapter"
        assert report["conditions"][0]["created_at"] != "2025-11-17T15:04:05Z"
        assert cluster["status"]["phase"] == "Ready"
        assert [entry["adapter"] for entry in cluster["status"]["adapters"]] == ["dns-adapter"]
        assert found["total"] == 1
        assert found["items"][0] == cluster
        assert "127.0.0.1" in server.url, (
            "without authentication, the service listens beyond this machine"
        )
        assert server.stop() == 0
    with Serving(*arguments) as server:
        [again] = type_it(f"curl -s http://localhost:8000{cluster['href']} | jq", server.url)
        assert again == cluster


def test_a_killed_service_does_not_keep_the_next_one_from_starting(tmp_path: Path) -> None:
    server = Serving("--no-auth", "--data-dir", str(lay(tmp_path)))
    postmaster = int((tmp_path / "postgresql" / "postmaster.pid").read_text().split()[0])
    server.process.kill()
    server.process.wait()
    with Serving("--no-auth", "--data-dir", str(tmp_path)) as server:
        assert server.stop() == 0
    assert not is_running(postmaster)
