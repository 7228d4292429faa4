"""Clients that keep a copy of the fleet from the feed alone, for tests that compare it with lists."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
from conftest import Api

Copy = dict[str, dict[str, Any]]


@dataclass
class Watcher:
    """A client that lists once and then follows the feed, as a stream or request by request."""

    url: str
    streams: bool
    limit: int = 100
    copy: Copy = field(default_factory=dict)
    # For each resource, the last version received.
    versions: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    token: str = ""
    listed: int = 0
    told: int = 0

    def list(self, api: Api) -> None:
        """Starts (again) with a list: the feed continues from the link of its first page, the oldest."""
        self.copy, self.versions, path, self.token = {}, {}, "/resources?size=500", ""
        while path:
            page = api.get(path)
            page.raise_for_status()
            self.copy |= {one["id"]: one for one in page.json()["items"]}
            self.token = self.token or page.json()["changes"].rpartition("after=")[2]
            path = page.json().get("next", "").removeprefix("/api/hyperfleet/v1")
        self.listed += 1

    def follow(self, over: threading.Event) -> None:
        """Follows until ``over`` is set, and then to the end of the feed."""
        api = Api(self.url)
        while True:
            last = over.is_set()
            try:
                if not self.token:
                    self.list(api)
                if self.streams and not last:
                    self._stream(api, over)
                elif not self._page(api, 0 if last else 2) and last:
                    return
            except requests.RequestException:
                api = Api(self.url)
                time.sleep(0.1)

    def _page(self, api: Api, wait: int) -> int:
        answer = api.get(f"/changes?after={self.token}&wait={wait}&limit={self.limit}")
        if answer.status_code == 410:
            self.token = ""
            return 1
        answer.raise_for_status()
        for item in answer.json()["items"]:
            self._apply(item)
        self.token = answer.json()["next"]
        return len(answer.json()["items"])

    def _stream(self, api: Api, over: threading.Event) -> None:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": self.token}
        with api.get(f"/changes?limit={self.limit}", headers=headers, stream=True, timeout=3) as stream:
            if stream.status_code == 410:
                self.token = ""
                return
            stream.raise_for_status()
            event: dict[str, str] = {}
            for raw in stream.iter_lines(chunk_size=None):
                name, _, value = raw.decode().partition(": ")
                if name:
                    event[name] = value
                    continue
                if event.get("event") == "gone":
                    self.token = ""
                    return
                if "data" in event:
                    self._apply(json.loads(event["data"]))
                self.token = event.get("id", self.token)
                event = {}
                if over.is_set():
                    return

    def _apply(self, item: dict[str, Any]) -> None:
        self.told += 1
        if item["version"] < self.versions.get(item["id"], 0):
            self.wrong.append(f"{item} after version {self.versions[item['id']]}")
        self.versions[item["id"]] = item["version"]
        if item["change"] == "removed":
            self.copy.pop(item["id"], None)
        elif "resource" in item:
            self.copy[item["id"]] = item["resource"]


def fleet(api: Api) -> Copy:
    """Returns what the lists contain."""
    watcher = Watcher(api.url, streams=False)
    watcher.list(api)
    return watcher.copy


def news(copy: Copy) -> Copy:
    """Returns a copy without what a repeated report changes, since that is not a change in the feed."""
    return {id_: {**one, "status": _lasting(one["status"])} for id_, one in copy.items()}


def _lasting(part: Any) -> Any:
    if isinstance(part, list):
        return [_lasting(one) for one in part]
    if isinstance(part, dict):
        return {
            name: _lasting(value)
            for name, value in part.items()
            if not name.endswith(("_time", "_at", "message"))
        }
    return part


def follow(api: Api, link: str) -> tuple[list[dict[str, Any]], str]:
    """Returns all changes after a link or a token, and the token of the end."""
    items: list[dict[str, Any]] = []
    token = link.rpartition("after=")[2] or link
    path = link if "?" in link else f"/changes?after={token}"
    while True:
        answer = api.get(
            f"{path.rpartition('after=')[0]}after={token}".removeprefix("/api/hyperfleet/v1")
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items, token = items + page["items"], page["next"]
        if not page["items"]:
            return items, token


def now(api: Api, query: str = "") -> str:
    """Returns the token of the feed's end."""
    answer = api.get(f"/changes?{query}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["items"] == []
    return answer.json()["next"]


def told(items: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Returns the change, kind and name of each item."""
    return [(one["change"], one["kind"], one["name"]) for one in items]


@contextmanager
def later(do: Callable[[], object], seconds: float = 0.3) -> Iterator[None]:
    timer = threading.Timer(seconds, do)
    timer.start()
    yield
    timer.join()


def events(response: requests.Response, *, places: bool = False) -> Iterator[dict[str, str]]:
    """Yields server-sent events, as a browser understands them."""
    event: dict[str, str] = {}
    for raw in response.iter_lines(chunk_size=None):
        line = raw.decode()
        if not line:
            # An event without data only gives a place in the feed.
            if event and ("data" in event or places):
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value
