"""PostgreSQL is killed in the middle of writes: what was acknowledged is there, once."""

import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Api
from own_server import Server, own_server
from process import Serving

pytestmark = pytest.mark.slow

WRITERS = 16
WRITES = 125


@dataclass
class Writer:
    """One who writes, and remembers what was acknowledged and what was tried.

    What it reports and sets in its own cluster is a number that grows with each try.
    """

    number: int
    url: str
    cluster: dict[str, Any]
    created: dict[str, str] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    reported: tuple[int, int] = (0, 0)
    patched: tuple[int, int] = (0, 0)
    failed: int = 0

    def write(self) -> None:
        api, dice = Api(self.url), random.Random(self.number)
        for step in range(1, WRITES + 1):
            try:
                done = self._one(api, dice.choice(("create", "report", "patch")), step)
            except requests.RequestException:
                done, api = False, Api(self.url)
            if not done:
                self.failed += 1
                time.sleep(0.05)

    def _one(self, api: Api, what: str, step: int) -> bool:
        path = f"/clusters/{self.cluster['id']}"
        if what == "create":
            name = f"w{self.number}-{step}"
            self.tried.add(name)
            answer = api.post("/clusters", json={"name": name, "spec": {"step": step}})
            if answer.status_code == 201:
                self.created[name] = answer.json()["id"]
        elif what == "report":
            self.reported = (self.reported[0], step)
            answer = api.report(self.cluster, f"a{self.number}", data={"step": step})
            if answer.status_code == 201:
                self.reported = (step, step)
        else:
            self.patched = (self.patched[0], step)
            answer = api.patch(path, json={"labels": {"step": str(step)}})
            if answer.status_code == 200:
                self.patched = (step, step)
        assert answer.status_code in (200, 201, 503), answer.text
        return answer.status_code != 503


def kill(server: Server) -> None:
    """As the kernel does when memory runs out: all processes at once, and nobody says goodbye."""
    first = int((server.files / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text()
    for pid in [first, *map(int, children.split())]:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{first}").exists() and "Z" not in Path(f"/proc/{first}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(server: Server) -> None:
    """Starts it, as soon as a process that was missed has seen that it is alone."""
    deadline = time.monotonic() + 20
    while True:
        try:
            server.start()
            return
        except subprocess.SubprocessError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_every_acknowledged_write_is_there_once_after_kills_in_the_middle_of_two_thousand() -> None:
    with (
        own_server() as server,
        Serving("--no-auth", "--workers=2", "--database-url", server.conninfo) as serving,
    ):
        api = Api(serving.url)
        clusters = [api.cluster(f"own{number}") for number in range(WRITERS)]
        writers = [Writer(number, serving.url, one) for number, one in enumerate(clusters)]
        over = threading.Event()

        def killing() -> int:
            kills = 0
            while not over.wait(1.0):
                kill(server)
                kills += 1
                start(server)
            return kills

        with ThreadPoolExecutor(WRITERS + 1) as threads:
            killer = threads.submit(killing)
            writing = [threads.submit(writer.write) for writer in writers]
            try:
                for one in writing:
                    one.result()
            finally:
                over.set()
            assert killer.result() >= 2
        deadline = time.monotonic() + 10
        while api.get("/clusters?size=0").status_code != 200:
            assert time.monotonic() < deadline

        stored: dict[str, str] = {}
        path = "/clusters?size=500&fields=id,name"
        while path:
            page = api.get(path).json()
            for one in page["items"]:
                assert one["name"] not in stored
                stored[one["name"]] = one["id"]
            path = page.get("next", "").removeprefix("/api/hyperfleet/v1")
        assert sum(writer.failed for writer in writers) > 0
        for writer in writers:
            assert writer.created.items() <= stored.items()
            own = {name for name in stored if name.startswith(f"w{writer.number}-")}
            assert own <= writer.tried
            for (least, most), found in (
                (writer.reported, _reported(api, writer.cluster)),
                (writer.patched, int(api.read(writer.cluster)["labels"].get("step", 0))),
            ):
                assert least <= found <= most
        assert api.get("/clusters?size=0").json()["total"] == len(stored)


def _reported(api: Api, cluster: dict[str, Any]) -> int:
    reports = api.get(f"/clusters/{cluster['id']}/statuses").json()["items"]
    assert len(reports) <= 1
    return int(reports[0]["data"]["step"]) if reports else 0
