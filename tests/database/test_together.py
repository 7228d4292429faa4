"""Reads that are done once for several who ask: nobody gets what is older than the question."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import Api

from hyperfleet.database import together
from hyperfleet.database.together import Once, Rounds


class Source:
    """What is read, and how often: a value that changes while reads are under way."""

    def __init__(self, seconds: float = 0.005) -> None:
        self.value = 0
        self.reads = 0
        self.seconds = seconds

    async def one(self) -> int:
        self.reads += 1
        seen = self.value
        await asyncio.sleep(self.seconds)
        return seen

    async def many(self, keys: list[str]) -> dict[str, int]:
        seen = await self.one()
        return {key: seen for key in keys if key != "missing"}


@pytest.mark.parametrize("kind", ["rounds", "once"])
def test_sixteen_who_ask_share_reads_and_none_is_answered_with_what_was_read_before_it_asked(
    kind: str,
) -> None:
    async def main() -> None:
        source = Source()
        rounds, once = Rounds(source.many), Once(8)

        async def ask(number: int) -> None:
            for turn in range(30):
                await asyncio.sleep((number * 7 + turn * 3) % 11 / 2000)
                if number == 0:
                    source.value += 1
                known = source.value
                if kind == "rounds":
                    seen = await rounds.get(f"id-{number % 3}")
                else:
                    seen = await once.get(f"list-{number % 3}", source.one)
                assert seen is not None
                assert seen >= known

        await asyncio.gather(*(ask(number) for number in range(16)))
        assert source.reads < 16 * 30 / 2
        if kind == "rounds":
            assert await rounds.get("missing") is None
            assert not rounds.asked
        else:
            assert not once.running
            assert not once.next

    asyncio.run(main())


def test_a_read_that_hangs_keeps_nobody_from_the_next_one() -> None:
    async def main() -> None:
        source = Source(10)
        rounds, once = Rounds(source.many), Once(8)
        hung = [
            asyncio.create_task(rounds.get("a")),
            asyncio.create_task(once.get("a", source.one)),
        ]
        await asyncio.sleep(0)
        waiting = asyncio.create_task(rounds.get("b"))
        await asyncio.sleep(0.002)
        source.seconds = 0
        start = time.monotonic()
        async with asyncio.timeout(5):
            assert await waiting == 0
            assert await once.get("a", source.one) == 0
        assert time.monotonic() - start < 10 * together.PATIENCE
        for one in hung:
            one.cancel()

    asyncio.run(main())


def test_an_error_reaches_all_who_asked_and_one_who_leaves_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        async def fail(*_: Any) -> Any:
            await asyncio.sleep(0.01)
            raise LookupError("gone")

        rounds, once = Rounds(fail), Once(8)
        asked = [rounds.get("a") for _ in range(3)] + [once.get("a", fail) for _ in range(3)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(end, LookupError) for end in ends)

        source = Source(0.02)
        rounds = Rounds(source.many)
        first, second = (asyncio.create_task(rounds.get("a")) for _ in range(2))
        await asyncio.sleep(0.001)
        first.cancel()
        assert await second == 0
        lists = [asyncio.create_task(once.get("b", source.one)) for _ in range(4)]
        await asyncio.sleep(0.001)
        lists[0].cancel()
        lists[1].cancel()
        assert await lists[2] == await lists[3] == 0

    asyncio.run(main())


def test_whoever_has_written_reads_it_at_once_beside_fifteen_who_read_all_the_time(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service()
    cluster = api.cluster()
    stop = threading.Event()

    def read(_: int) -> None:
        own = Api(api.url)
        while not stop.is_set():
            assert own.read(cluster)["generation"] >= 1
            assert own.get("/clusters").json()["total"] == 1

    def write() -> None:
        for number in range(60):
            path = f"/clusters/{cluster['id']}"
            written = api.patch(path, json={"labels": {"n": str(number)}}).json()
            assert api.read(cluster) == written
            assert api.get("/clusters").json()["items"] == [written]

    with ThreadPoolExecutor(16) as threads:
        readers = [threads.submit(read, number) for number in range(15)]
        try:
            write()
        finally:
            stop.set()
        for one in readers:
            one.result()
