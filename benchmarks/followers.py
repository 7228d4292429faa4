"""What clients that follow the feed cost, and how long a change takes to reach each of them."""

import asyncio
import functools
import json
import resource
import statistics
import time
from collections import defaultdict
from typing import Any
from urllib.parse import urlsplit

import click
import requests
import uvloop

from benchmarks.growth import descriptors_of
from benchmarks.load import BASE, SPEC, Target, memory_of, seconds_of, served

# Seconds between two changes, and within which each must have reached all followers.
PAUSE, LONGEST = 5.0, 10.0


class Followers:
    """Clients that follow the feed, each on its own connection. They do as little as possible, because
    they share the processors with the service.

    :param wait: the ``wait`` that each sends, in seconds; 0: each follows a stream
    """

    def __init__(self, url: str, count: int, wait: int) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        self.count, self.wait = count, wait
        # The times at which followers heard of a change, by the name of the changed resource.
        self.heard: dict[str, list[float]] = defaultdict(list)
        # Parses each page only once, since all followers receive the same ones.
        self.page = functools.lru_cache(maxsize=100)(json.loads)

    async def begin(self, place: str) -> None:
        """Opens the connections; each follows from this place on."""
        loop = asyncio.get_running_loop()
        kind = Waiter if self.wait else Streamer
        for number in range(self.count):
            await loop.create_connection(functools.partial(kind, self, place), self.host, self.port)
            if number % 20 == 0:
                await asyncio.sleep(0.02)

    def hear(self, items: list[dict[str, Any]]) -> None:
        """Records that a follower has just heard of these changes."""
        for item in items:
            self.heard[item["name"]].append(time.monotonic())


class Follower(asyncio.Protocol):
    """The connection of one follower."""

    accept = "application/json"

    def __init__(self, followers: Followers, place: str) -> None:
        self.all, self.place, self.held = followers, place, b""

    def connection_made(self, transport: Any) -> None:
        """Sends the first request."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Requests what comes after the current place."""
        path = f"{BASE}/changes?after={self.place}"
        path += f"&wait={self.all.wait}" if self.all.wait else ""
        head = f"GET {path} HTTP/1.1\r\nHost: followed\r\nAccept: {self.accept}\r\n\r\n"
        self.transport.write(head.encode())


class Waiter(Follower):
    """Sends the next request once it has the response."""

    def data_received(self, data: bytes) -> None:
        """Collects a response."""
        self.held += data
        head, end, body = self.held.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]):
            return
        self.held = b""
        page = self.all.page(body)
        self.place = page["next"]
        self.ask()
        self.all.hear(page["items"])


class Streamer(Follower):
    """Follows a stream of events."""

    accept = "text/event-stream"

    def data_received(self, data: bytes) -> None:
        """Reads events."""
        *lines, self.held = (self.held + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self.all.hear([self.all.page(line[5:])])


def follow(conninfo: str, count: int, wait: int, minutes: float) -> None:
    """Lets clients follow the feed for some minutes with few changes, and prints the cost."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with served(conninfo, 2, more=["--access-log=0"]) as target:
        uvloop.run(_followed(target, Followers(target.url, count, wait), minutes))


async def _followed(target: Target, followers: Followers, minutes: float) -> None:
    start = requests.get(f"{target.url}{BASE}/changes", timeout=30).json()["next"]
    await followers.begin(start)
    await asyncio.sleep(2)
    end, number = time.monotonic() + minutes * 60, 0
    while time.monotonic() < end or not number:
        # Leaves time for those that were notified to ask again.
        await asyncio.sleep(1)
        roots = (target.process, target.database)
        before, began = [seconds_of(root) for root in roots], time.monotonic()
        await asyncio.sleep(PAUSE)
        passed = time.monotonic() - began
        idle = [
            (seconds_of(root) - spent) / passed * 100 for root, spent in zip(roots, before, strict=True)
        ]
        number += 1
        delays = await _told(target.url, followers, f"followed-{number}-{time.time_ns()}")
        last = f"{max(delays):.2f}" if len(delays) == followers.count else "never"
        click.echo(
            f"{followers.count} clients: service {idle[0]:.1f}% of a core, database {idle[1]:.1f}%, "
            f"{memory_of(target.process):.0f} MB per process, {descriptors_of(target)} descriptors; "
            f"a change reached half in {statistics.median(delays):.2f} s, the last in {last} s"
        )


async def _told(url: str, followers: Followers, name: str) -> list[float]:
    """Creates a cluster; returns how many seconds it took until each follower heard of it."""
    body = {"name": name[:63], "kind": "Cluster", "spec": SPEC}
    made = await asyncio.to_thread(requests.post, f"{url}{BASE}/clusters", json=body, timeout=30)
    made.raise_for_status()
    began = time.monotonic()
    heard = followers.heard[body["name"]]
    while len(heard) < followers.count and time.monotonic() < began + LONGEST:
        await asyncio.sleep(0.02)
    return [at - began for at in heard] or [LONGEST]
