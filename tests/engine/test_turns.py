"""A busy resource does not hold up requests on others."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from conftest import Api

from hyperfleet.engine import greenlets, turns

WAITERS = 130
LONGEST = 100
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@contextmanager
def locked(database: str, table: str, resource: dict[str, Any]) -> Iterator[None]:
    with psycopg.connect(database) as conn:
        conn.execute(f"SELECT 1 FROM {table} WHERE id = %s FOR UPDATE", [resource["id"]])
        yield


def test_reports_on_a_locked_cluster_use_one_connection_and_get_503_beyond_a_hundred(
    service: Callable[..., Api], database: str, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No request may time out while the lock is held, however slow the machine is.
    monkeypatch.setattr(turns, "PATIENCE", 30)
    api = service(statement_timeout=30, request_timeout=60)
    busy, other = api.cluster("busy"), api.cluster("other")
    answers: Counter[int] = Counter()

    def report(number: int) -> None:
        answer = Api(api.url).report(busy, f"adapter-{number}")
        assert answer.status_code == 201 or answer.headers["Retry-After"]
        answers[answer.status_code] += 1

    with ThreadPoolExecutor(WAITERS) as threads:
        with locked(database, "clusters", busy):
            sent = [threads.submit(report, number) for number in range(WAITERS)]
            deadline = time.monotonic() + 20
            while answers[503] < WAITERS - LONGEST - 1:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert sql.execute(WAITING).fetchone() == (1,)
            # Requests on other resources, and reads, are not affected.
            for number in range(20):
                start = time.monotonic()
                assert api.read(other)["id"] == other["id"]
                assert api.report(other, f"adapter-{number}").status_code == 201
                assert api.get("/clusters").json()["total"] == 2 + number
                api.cluster(f"new-{number}")
                assert api.read(busy)["id"] == busy["id"]
                assert time.monotonic() - start < 1
        for one in sent:
            one.result()
    assert answers == {201: LONGEST + 1, 503: WAITERS - LONGEST - 1}
    assert api.get(f"/clusters/{busy['id']}/statuses?size=0").json()["total"] == LONGEST + 1


@pytest.mark.slow
def test_a_request_whose_turn_does_not_come_gets_503_and_later_ones_still_succeed(
    service: Callable[..., Api], database: str, sql: psycopg.Connection
) -> None:
    api = service(statement_timeout=20)
    busy = api.cluster("busy")
    answers: list[tuple[int, float]] = []
    begun = time.monotonic()

    def change(number: int) -> None:
        own = Api(api.url)
        path = f"/clusters/{busy['id']}"
        send: list[Callable[[], Any]] = [
            lambda: own.report(busy, "dns"),
            lambda: own.patch(path, json={"labels": {"n": str(number)}}),
            lambda: own.delete(path),
            lambda: own.post(f"{path}/nodepools", json={"name": f"np-{number}", "spec": {}}),
        ]
        answers.append((send[number % 4]().status_code, time.monotonic() - begun))

    with locked(database, "clusters", busy):
        threads = [threading.Thread(target=change, args=(number,)) for number in range(16)]
        # The report goes first, so that the requests after it find the cluster.
        threads[0].start()
        while sql.execute(WAITING).fetchone() != (1,):
            assert time.monotonic() - begun < 12
            time.sleep(0.02)
        for thread in threads[1:]:
            thread.start()
        while len(answers) < 15:
            assert time.monotonic() - begun < 12
            time.sleep(0.05)
        # All but the one whose turn it is, which waits in the database.
        assert [status for status, _ in answers] == [503] * 15
        assert all(taken > 4.5 for _, taken in answers)
    for thread in threads:
        thread.join(10)
    assert answers[-1][0] == 201
    assert api.report(busy, "late").status_code == 201
    assert api.read(busy)["id"] == busy["id"]


def test_requests_that_have_given_up_no_longer_count_as_waiting(
    service: Callable[..., Api], database: str, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LONGEST", 2)
    monkeypatch.setattr(turns, "PATIENCE", 0.5)
    api = service(statement_timeout=20)
    busy = api.cluster("busy")
    with ThreadPoolExecutor(4) as threads:
        with locked(database, "clusters", busy):
            first = threads.submit(Api(api.url).report, busy, "first")
            while sql.execute(WAITING).fetchone() != (1,):
                time.sleep(0.02)
            given_up = [threads.submit(Api(api.url).report, busy, f"a{number}") for number in range(2)]
            assert [one.result().status_code for one in given_up] == [503, 503]
            monkeypatch.setattr(turns, "PATIENCE", 20)
            late = [threads.submit(Api(api.url).report, busy, f"late{number}") for number in range(2)]
            time.sleep(0.5)
        assert [one.result().status_code for one in (first, *late)] == [201, 201, 201]


def test_a_turn_that_comes_as_its_request_is_cancelled_is_passed_on() -> None:
    async def main() -> list[str]:
        queues, done, order = turns.Turns(), asyncio.Event(), []
        tasks: dict[str, asyncio.Task[None]] = {}

        def use(name: str) -> None:
            with queues.of("resource"):
                order.append(name)
                if name == "first":
                    greenlets.wait_for(done.wait())
            if name == "first":
                # In the same iteration of the loop as the turn of the second one.
                tasks["second"].cancel()

        for name in ("first", "second", "third"):
            tasks[name] = asyncio.create_task(greenlets.run(use, name))
            await asyncio.sleep(0)
        done.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            # A resource that nobody waits for is free.
            await greenlets.run(use, "fourth")
        return order

    assert asyncio.run(main()) == ["first", "third", "fourth"]
