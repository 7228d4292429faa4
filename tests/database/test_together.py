"""Statements shared by concurrent requests: no request gets a result older than itself."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import Api
from psycopg.types.json import Jsonb

from hyperfleet.changes.audit import Origin
from hyperfleet.database import together
from hyperfleet.database.together import Rounds, SharedReads
from hyperfleet.handlers import creation
from hyperfleet.resources import resource
from hyperfleet.status.conditions import Folding


class Source:
    """A value that changes while it is being read, and the number of reads."""

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
def test_sixteen_callers_share_reads_and_none_gets_a_read_from_before_its_call(
    kind: str,
) -> None:
    async def main() -> None:
        source = Source()
        rounds, once = Rounds(source.many), SharedReads(8)

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


def test_a_hanging_read_does_not_delay_the_next_one() -> None:
    async def main() -> None:
        source = Source(10)
        rounds, once = Rounds(source.many), SharedReads(8)
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
        assert time.monotonic() - start < 10 * together.OVERDUE
        for one in hung:
            one.cancel()

    asyncio.run(main())


def test_an_error_reaches_all_callers_and_a_cancelled_caller_affects_no_other() -> None:
    async def main() -> None:
        async def fail(*_: Any) -> Any:
            await asyncio.sleep(0.01)
            raise LookupError("gone")

        rounds, once = Rounds(fail), SharedReads(8)
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


def test_a_round_without_waiting_callers_is_cancelled_and_no_other() -> None:
    async def main() -> None:
        source = Source(0.3)
        rounds = Rounds(source.many)
        first, second, third = (asyncio.create_task(rounds.get(key)) for key in "aab")
        await asyncio.sleep(0.01)
        other = asyncio.create_task(rounds.get("c"))
        await asyncio.sleep(2 * together.OVERDUE)
        assert len(rounds.tasks) == 2
        first.cancel()
        third.cancel()
        await asyncio.sleep(0.01)
        assert len(rounds.tasks) == 2
        second.cancel()
        await asyncio.sleep(0.01)
        assert len(rounds.tasks) == 1
        assert await other == 0

    asyncio.run(main())


def test_an_error_that_nobody_waits_for_any_more_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def fail(*_: Any) -> Any:
            await asyncio.sleep(0.05)
            raise LookupError("gone")

        rounds, once = Rounds(fail), SharedReads(8)
        asked = [
            asyncio.create_task(rounds.get("a")),
            asyncio.create_task(once.get("a", fail)),
        ]
        await asyncio.sleep(0.01)
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.NumericValueOutOfRange,
        psycopg.errors.UniqueViolation,
        psycopg.errors.DeadlockDetected,
        psycopg.errors.SerializationFailure,
        psycopg.errors.QueryCanceled,
        psycopg.errors.LockNotAvailable,
        psycopg.errors.ProgramLimitExceeded,
        psycopg.errors.StatementTooComplex,
    ],
)
def test_a_statement_that_fails_because_of_one_row_is_repeated_for_each_row(
    error: type[psycopg.Error],
) -> None:
    async def main() -> None:
        runs: list[list[str]] = []

        async def write(asked: dict[str, int]) -> dict[str, int]:
            runs.append(list(asked))
            await asyncio.sleep(0.005)
            if "bad" in asked:
                raise error("this row")
            if "lost" in asked:
                raise psycopg.OperationalError("the connection is lost")
            return {key: value for key, value in asked.items() if key != "skipped"}

        rounds = Rounds(write)
        keys = ["a", "bad", "b", "skipped"]
        ends = await asyncio.gather(*(rounds.get(key, 1) for key in keys), return_exceptions=True)
        assert ends[::2] == [1, 1]
        assert isinstance(ends[1], error)
        assert ends[3] is None
        assert runs == [keys, *([key] for key in keys)]
        # A statement that may have been executed is not repeated.
        runs.clear()
        ends = await asyncio.gather(
            *(rounds.get(key, 1) for key in ("c", "lost")), return_exceptions=True
        )
        assert all(isinstance(end, psycopg.OperationalError) for end in ends)
        assert runs == [["c", "lost"]]

    asyncio.run(main())


def test_a_write_never_gets_the_result_of_another_value() -> None:
    async def main() -> None:
        async def write(asked: dict[str, int]) -> dict[str, int]:
            await asyncio.sleep(0.005)
            return dict(asked)

        rounds = Rounds(write)
        running = asyncio.create_task(rounds.get("other", 0))
        await asyncio.sleep(0.001)
        gone = asyncio.create_task(rounds.get("a", 1))
        await asyncio.sleep(0.001)
        gone.cancel()
        assert await rounds.get("a", 2) == 2
        await running

    asyncio.run(main())


def test_rows_that_exceed_one_statement_are_written_by_the_next() -> None:
    async def main() -> None:
        sizes: list[int] = []

        async def write(asked: dict[int, int]) -> dict[int, int]:
            sizes.append(len(asked))
            await asyncio.sleep(0)
            return dict(asked)

        rounds = Rounds(write)
        count = 3 * together.LARGEST + 1
        assert await asyncio.gather(*(rounds.get(n, n) for n in range(count))) == list(range(count))
        assert max(sizes) == together.LARGEST
        assert len(sizes) == 4

    asyncio.run(main())


def test_no_statement_is_run_for_nothing_on_a_busy_machine() -> None:
    async def main() -> None:
        sizes: list[int] = []

        async def write(asked: dict[int, int]) -> dict[int, int]:
            sizes.append(len(asked))
            # The loop is held up for so long that the round is overdue once it ends.
            time.sleep(2 * together.OVERDUE)
            await asyncio.sleep(0)
            return dict(asked)

        rounds = Rounds(write)
        count = 3 * together.LARGEST + 1
        assert await asyncio.gather(*(rounds.get(n, n) for n in range(count))) == list(range(count))
        while rounds.tasks:
            await asyncio.sleep(0)
        assert sizes == [together.LARGEST] * 3 + [1]

    asyncio.run(main())


def test_concurrent_creations_each_get_their_own_result(service: Callable[..., Api]) -> None:
    api, start = service(), threading.Barrier(32)

    def create(number: int) -> tuple[int, dict[str, Any]]:
        own = Api(api.url)
        start.wait()
        # Four requests want each name.
        body = {"name": f"c{number // 4}", "labels": {"n": str(number)}, "spec": {"n": number}}
        answer = own.post("/clusters", json=body)
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(32) as threads:
        ends = list(threads.map(create, range(32)))
    created = {number: body for number, (status, body) in enumerate(ends) if status == 201}
    assert sorted(number // 4 for number in created) == list(range(8))
    for number, body in created.items():
        assert body["spec"] == {"n": number}
        assert body["labels"] == {"n": str(number)}
        assert api.read(body) == body
    holders = {body["name"]: body["id"] for body in created.values()}
    for number, (status, body) in enumerate(ends):
        if status != 201:
            assert (status, body["code"]) == (409, "HYPERFLEET-CNF-001")
            assert holders[f"c{number // 4}"] in body["errors"][0]["message"]
    assert api.get("/clusters").json()["total"] == 8


def test_statements_that_create_the_same_clusters_in_different_orders_do_not_deadlock(
    database: str,
) -> None:
    start, count = threading.Barrier(2), 300

    def create(turn: int, *, backwards: bool) -> int:
        rows = []
        for number in range(count):
            body = {"name": f"c{turn}-{number}", "spec": {}}
            row = resource.first_row(body, Folding(), Origin("me"), {})
            rows.append({**row, "owner_id": None, "href": ""})
        ordered = rows[::-1] if backwards else rows
        with psycopg.connect(database) as conn:
            start.wait()
            values = {"rows": Jsonb(ordered), "lock_timeout": None}
            return len(conn.execute(creation._statement("Cluster"), values).fetchall())

    with ThreadPoolExecutor(2) as threads:
        for turn in range(3):
            both = [threads.submit(create, turn, backwards=way) for way in (False, True)]
            assert sum(one.result() for one in both) == count


def test_concurrent_creations_do_not_wait_for_one_whose_name_is_locked(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api, start = service(), threading.Barrier(32)
    api.cluster("first")

    def create(number: int) -> tuple[int, float]:
        own = Api(api.url)
        start.wait()
        began = time.monotonic()
        # Half of them want the held name.
        name = f"c{number}" if number % 2 else "held"
        status = own.post("/clusters", json={"name": name, "spec": {}}).status_code
        return status, time.monotonic() - began

    with ThreadPoolExecutor(32) as threads:
        with sql.transaction():
            sql.execute("UPDATE clusters SET name = 'held' WHERE name = 'first'")
            asked = [threads.submit(create, number) for number in range(32)]
            others = [one.result() for one in asked[1::2]]
            assert api.get("/clusters").status_code == 200
            assert not any(one.done() for one in asked[::2])
        assert {one.result()[0] for one in asked[::2]} == {409}
    assert {status for status, _ in others} == {201}
    assert max(seconds for _, seconds in others) < 3


@pytest.mark.parametrize("state", ["deadlock_detected", "serialization_failure"])
def test_a_deadlock_of_one_creation_does_not_fail_concurrent_ones(
    service: Callable[..., Api], sql: psycopg.Connection, state: str
) -> None:
    api, start = service(), threading.Barrier(16)
    sql.execute(
        f"""
        CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE {state}; END $$;
        CREATE TRIGGER ends BEFORE INSERT ON clusters
        FOR EACH ROW WHEN (NEW.name = 'c7') EXECUTE FUNCTION ends();
        """
    )

    def create(number: int) -> int:
        own = Api(api.url)
        start.wait()
        return own.post("/clusters", json={"name": f"c{number}", "spec": {}}).status_code

    with ThreadPoolExecutor(16) as threads:
        ends = list(threads.map(create, range(16)))
    assert ends == [201] * 7 + [503] + [201] * 8


def test_concurrent_reports_do_not_wait_for_one_on_a_locked_cluster(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api, start = service(), threading.Barrier(16)
    clusters = [api.cluster(f"c{number}") for number in range(16)]

    def report(cluster: dict[str, Any]) -> tuple[int, float]:
        own = Api(api.url)
        start.wait()
        began = time.monotonic()
        ends = {own.report(cluster, data={"of": cluster["id"]}).status_code for _ in range(5)}
        assert len(ends) == 1
        return ends.pop(), time.monotonic() - began

    with ThreadPoolExecutor(16) as threads:
        with sql.transaction():
            sql.execute("SELECT FROM clusters WHERE id = %s FOR UPDATE", [clusters[7]["id"]])
            asked = [threads.submit(report, cluster) for cluster in clusters]
            others = [one.result() for one in asked if one is not asked[7]]
            assert not asked[7].done()
        assert asked[7].result()[0] == 201
    assert {status for status, _ in others} == {201}
    assert max(seconds for _, seconds in others) < 3
    for cluster in clusters:
        [stored] = api.get(f"/clusters/{cluster['id']}/statuses").json()["items"]
        assert stored["data"] == {"of": cluster["id"]}


def test_concurrent_patches_get_their_own_results_and_do_not_wait_for_a_locked_cluster(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    # The locked one may wait for as long as the others need.
    api, start = service(statement_timeout=20), threading.Barrier(16)
    clusters = [api.cluster(f"c{number}", labels={"old": "x"}) for number in range(16)]

    def change(number: int) -> None:
        own, path = Api(api.url), f"/clusters/{clusters[number]['id']}"
        start.wait()
        for step in range(5):
            wanted = {"labels": {"of": f"c{number}", f"step{step}": "x"}, "spec": {"n": [number, step]}}
            changed = own.patch(path, json=wanted)
            assert (changed.status_code, changed.headers["ETag"]) == (200, f'"{step + 2}"')
            assert {name: changed.json()[name] for name in wanted} == wanted
            # A refusal does not affect the others.
            assert own.patch(path, json={"labels": {"of": "not!"}}).status_code == 400
            stale = own.patch(path, json={"spec": {"lost": True}}, headers={"If-Match": '"1"'})
            assert stale.status_code == 412

    with ThreadPoolExecutor(16) as threads:
        with sql.transaction():
            sql.execute("SELECT FROM clusters WHERE id = %s FOR UPDATE", [clusters[7]["id"]])
            asked = [threads.submit(change, number) for number in range(16)]
            for one in asked:
                if one is not asked[7]:
                    one.result()
            assert not asked[7].done()
        asked[7].result()
    assert (
        api.get("/clusters", params={"search": "labels.old = 'x' or labels.step0 = 'x'"}).json()["items"]
        == []
    )
    for number, cluster in enumerate(clusters):
        found = api.get("/clusters", params={"search": f"labels.of = 'c{number}'"}).json()["items"]
        assert found == [api.read(cluster)]
        past = api.get(f"/clusters/{cluster['id']}/history").json()["items"]
        specs = {one["generation"]: one["spec"] for one in past}
        assert specs == {1: {}, **{step + 2: {"n": [number, step]} for step in range(5)}}
        search = f"id = '{cluster['id']}' and action = 'patch' and generation > 0"
        records = api.get("/audit", params={"search": search, "size": 100}).json()["items"]
        assert sorted(one["generation"] for one in records) == [2, 3, 4, 5, 6]


def test_a_writer_reads_its_writes_at_once_next_to_fifteen_constant_readers(
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
