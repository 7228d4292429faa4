"""What those who follow the feed of changes cost, and how long a change takes to reach each of them."""

import asyncio
import json
import resource
import statistics
import time
from collections import defaultdict
from typing import Any
from urllib.parse import urlsplit

import click
import requests

from benchmarks.growth import descriptors_of
from benchmarks.load import BASE, SPEC, Target, memory_of, seconds_of, served

# Seconds between two changes; and in which each must have reached everybody.
PAUSE, LONGEST = 5.0, 10.0


class Followers:
    """Clients who follow the feed, each on a connection of its own.

    :param wait: seconds that each asks to wait; 0: each follows a stream
    """

    def __init__(self, url: str, count: int, wait: int) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.url = parts.hostname, parts.port, url
        self.count, self.wait = count, wait
        self.ready = 0
        # When each heard of a change, by the name of what changed.
        self.heard: dict[str, list[float]] = defaultdict(list)

    async def run(self, place: str) -> None:
        """Follows from a place on, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.count):
                group.create_task(self._stream(place) if not self.wait else self._poll(place))
                if number % 20 == 0:
                    await asyncio.sleep(0.02)

    async def _asked(self, path: str, accept: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self._ask(writer, path, accept)
        self.ready += 1
        return reader, writer

    def _ask(self, writer: asyncio.StreamWriter, path: str, accept: str) -> None:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: followed\r\nAccept: {accept}\r\n\r\n".encode())

    async def _stream(self, place: str) -> None:
        while True:
            reader, _ = await self._asked(f"{BASE}/changes?after={place}", "text/event-stream")
            while line := await reader.readline():
                if line.startswith(b"id:"):
                    place = line[3:].strip().decode()
                if line.startswith(b"data:"):
                    self._hears(json.loads(line[5:]))

    async def _poll(self, place: str) -> None:
        path = f"{BASE}/changes?wait={self.wait}&after="
        reader, writer = await self._asked(path + place, "application/json")
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            page = json.loads(await reader.readexactly(size))
            place = page["next"]
            for item in page["items"]:
                self._hears(item)
            self._ask(writer, path + place, "application/json")

    def _hears(self, item: dict[str, Any]) -> None:
        self.heard[item["name"]].append(time.monotonic())


def follow(conninfo: str, count: int, wait: int, minutes: float) -> None:
    """Lets clients follow the feed for minutes in which little happens, and prints what it costs."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with served(conninfo, 2, more=["--access-log=0"]) as target:
        asyncio.run(_followed(target, Followers(target.url, count, wait), minutes))


async def _followed(target: Target, followers: Followers, minutes: float) -> None:
    start = requests.get(f"{target.url}{BASE}/changes", timeout=30).json()["next"]
    following = asyncio.create_task(followers.run(start))
    while followers.ready < followers.count:
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    end, number = time.monotonic() + minutes * 60, 0
    while time.monotonic() < end or not number:
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
            f"{followers.count} wait: service {idle[0]:.1f}% of a processor, database {idle[1]:.1f}%, "
            f"{memory_of(target.process):.0f} MB a process, {descriptors_of(target)} descriptors; "
            f"a change reached half in {statistics.median(delays):.2f} s, the last in {last} s"
        )
    following.cancel()


async def _told(url: str, followers: Followers, name: str) -> list[float]:
    """Seconds in which a new cluster became known to each."""
    body = {"name": name[:63], "kind": "Cluster", "spec": SPEC}
    made = await asyncio.to_thread(requests.post, f"{url}{BASE}/clusters", json=body, timeout=30)
    made.raise_for_status()
    began = time.monotonic()
    heard = followers.heard[body["name"]]
    while len(heard) < followers.count and time.monotonic() < began + LONGEST:
        await asyncio.sleep(0.02)
    return [at - began for at in heard] or [LONGEST]
