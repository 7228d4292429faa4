"""Clients that write and remember, so that a test can check afterwards what became of it."""

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from conftest import Api
from helpers_contract import BASE

WRITERS = 16
WRITES = 125


@dataclass
class Writer:
    """A client that writes, and remembers what was tried and what was acknowledged.

    It reports and sets a number in its own cluster that grows with each attempt.
    """

    number: int
    url: str
    cluster: dict[str, Any]
    created: dict[str, str] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    reported: tuple[int, int] = (0, 0)
    patched: tuple[int, int] = (0, 0)
    # For each attempt: when it began and ended, and the response's status; 0 means no response.
    tries: list[tuple[float, float, int]] = field(default_factory=list)
    steps: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def write(self, over: threading.Event | None = None) -> None:
        """Writes WRITES times; or until ``over`` is set, with a pause after each write."""
        api, dice = Api(self.url), random.Random(self.number)
        for count in itertools.count():
            if count == WRITES if over is None else over.wait(0.05):
                return
            step, began = next(self.steps), time.monotonic()
            try:
                status = self._one(api, dice.choice(("create", "report", "patch")), step)
            except requests.RequestException:
                status, api = 0, Api(self.url)
            self.tries.append((began, time.monotonic(), status))
            if status in (0, 503):
                time.sleep(0.05)

    def _one(self, api: Api, what: str, step: int) -> int:
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
        return answer.status_code


def writers(api: Api, *urls: str) -> list[Writer]:
    """Returns writers, each with its own cluster; they share the services at these URLs."""
    return [
        Writer(number, urls[number % len(urls)], api.cluster(f"own{number}"))
        for number in range(WRITERS)
    ]


def assert_nothing_is_lost(api: Api, writers: Sequence[Writer]) -> None:
    """Asserts that what was acknowledged is there, once; what was not may be there."""
    stored: dict[str, str] = {}
    path = "/clusters?size=500&fields=id,name"
    while path:
        page = api.get(path).json()
        for one in page["items"]:
            assert one["name"] not in stored
            stored[one["name"]] = one["id"]
        path = page.get("next", "").removeprefix(BASE)
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
