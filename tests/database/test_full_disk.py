"""A full disk loses no acknowledged write; reads continue, and so do writes once there is space."""

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from conftest import Api
from own_server import own_server
from process import Serving
from small_disk import fill_up, small_disk

pytestmark = pytest.mark.slow

# About 60 MB are used from the start.
SIZE = "200m"


@pytest.fixture
def disk() -> Iterator[Path]:
    """A separate disk, small enough to be full soon."""
    with tempfile.TemporaryDirectory(prefix="hyperfleet-disk-") as folder, small_disk(folder, SIZE):
        yield Path(folder)


def writes(api: Api, number: int, over: threading.Event) -> tuple[dict[str, str], int]:
    """Creates clusters until told to stop; returns those acknowledged and the number of refusals."""
    done: dict[str, str] = {}
    refused = step = 0
    while not over.is_set():
        step += 1
        name = f"w{number}-{step}"
        answer = api.post("/clusters", json={"name": name, "spec": {"much": str(random.random()) * 500}})
        assert answer.status_code in (201, 503), answer.text
        if answer.status_code == 201:
            done[name] = answer.json()["id"]
        else:
            refused += 1
            assert answer.headers["Retry-After"]
            time.sleep(0.05)
    return done, refused


def test_a_full_disk_loses_no_acknowledged_write_and_reads_continue(disk: Path) -> None:
    with (
        own_server(disk) as server,
        Serving("--no-auth", "--workers=2", "--database-url", server.conninfo) as serving,
    ):
        api, over = Api(serving.url), threading.Event()
        with ThreadPoolExecutor(8) as threads:
            writing = [threads.submit(writes, Api(serving.url), number, over) for number in range(8)]
            time.sleep(1)
            # The WAL gets space for what follows, or PostgreSQL would shut itself down.
            server.ask("SELECT pg_switch_wal()")
            ballast = fill_up(disk)
            full = time.monotonic()
            while time.monotonic() - full < 3:
                assert api.get("/clusters?size=1").status_code == 200
                asked = time.monotonic()
                assert requests.get(serving.metrics, timeout=5).status_code == 200
                # Less than a second on an idle machine.
                assert time.monotonic() - asked < 3
            refused = api.post("/clusters", json={"name": "no-room", "spec": {"much": "x" * 50_000}})
            ballast.unlink()
            time.sleep(1)
            over.set()
            found = [one.result() for one in writing]
        # The client is told to retry, and the operator what is wrong.
        assert (refused.status_code, refused.json()["code"]) == (503, "HYPERFLEET-SVC-001")
        assert "No space left on device" in serving.output
        assert all(times for _, times in found)
        after = api.post("/clusters", json={"name": "room", "spec": {"much": "x" * 50_000}})
        assert after.status_code == 201
        done = {name: id_ for names, _ in found for name, id_ in names.items()} | {
            "room": after.json()["id"]
        }
        stored = server.ask("SELECT name, id::text FROM clusters")
        assert dict(stored) == done
        assert len(stored) == len(done)
