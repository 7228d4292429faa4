"""A primary acknowledges nothing without its synchronous standby, which is away."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Api
from own_server import BACKENDS, POOL, Server, frozen, own_server, standby
from pooler import PROGRAM, pgbouncer
from process import Serving
from psycopg.conninfo import conninfo_to_dict

pytestmark = pytest.mark.slow

WAITING = f"{BACKENDS} AND wait_event = 'SyncRep'"
END = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Path]]:
    """The primary, and the folder of its standby."""
    with own_server() as primary, standby(primary) as second:
        yield primary, Path(second) / "postgresql"


def writes(api: Api, name: str) -> list[Callable[[Api], requests.Response]]:
    """Returns a creation, one with a key, a report, a patch and a deletion, all independent."""
    reported, changed, deleted = (api.cluster(f"{name}-{number}") for number in range(3))
    body = {"spec": {"a": name}}
    return [
        lambda api: api.post("/clusters", json={"name": f"{name}-a", **body}),
        lambda api: api.post(
            "/clusters", json={"name": f"{name}-b", **body}, headers={"Idempotency-Key": f"{name}-b"}
        ),
        lambda api: api.report(reported),
        lambda api: api.patch(f"/clusters/{changed['id']}", json=body),
        lambda api: api.delete(f"/clusters/{deleted['id']}"),
    ]


def until(server: Server, statement: str, count: int) -> list[Any]:
    deadline = time.monotonic() + 10
    while len(found := server.ask(statement)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_cancelling_the_wait_for_a_standby_acknowledges_no_write(pair: tuple[Server, Path]) -> None:
    primary, files = pair
    # The service must not depend on this setting.
    primary.ask("ALTER ROLE postgres SET client_min_messages = error")
    with Serving("--no-auth", "--workers=1", "--database-url", primary.conninfo) as serving:
        api = Api(serving.url)
        asked = writes(api, "ended")
        with ThreadPoolExecutor(len(asked)) as threads:
            with frozen(files):
                answers = [threads.submit(one, Api(serving.url)) for one in asked]
                until(primary, WAITING, len(asked))
                primary.ask(END)
                told = [one.result() for one in answers]
            assert [(one.status_code, one.json()["code"]) for one in told] == [
                (503, "HYPERFLEET-SVC-001")
            ] * len(asked)
        assert serving.says("the wait for a standby was cut short")
        # The connections still work.
        again = [one(api).status_code for one in writes(api, "again")]
        assert again == [201, 201, 201, 200, 202]


@pytest.mark.parametrize(
    "settings",
    [
        # Either the request times out, or the statement does.
        ("--request-timeout=1", "--statement-timeout=0.1"),
        ("--request-timeout=60", "--statement-timeout=0.1"),
    ],
)
def test_sessions_that_wait_for_a_standby_do_not_accumulate(
    pair: tuple[Server, Path], settings: tuple[str, ...]
) -> None:
    primary, files = pair
    arguments = "--no-auth", "--workers=1", "--database-url", primary.conninfo
    with Serving(*arguments, *settings) as serving:
        api = Api(serving.url)
        over, seen = threading.Event(), [0]
        # Without the deletion, which cannot be repeated.
        asked = [one for _ in range(2) for one in writes(api, f"l{time.monotonic_ns()}")[:-1]]

        def go_on(one: Callable[[Api], requests.Response]) -> None:
            own = Api(serving.url)
            while not over.is_set():
                # A taken name is seen as soon as no session waits for the standby any more.
                assert one(own).status_code in (503, 409)

        with ThreadPoolExecutor(len(asked)) as threads, frozen(files):
            going = [threads.submit(go_on, one) for one in asked]
            until(primary, WAITING, POOL)
            end = time.monotonic() + 9
            while time.monotonic() < end:
                seen.append(len(primary.ask(BACKENDS)))
                time.sleep(0.1)
            over.set()
            for one in going:
                one.result()
        # One more may be about to end.
        assert max(seen) <= POOL + 1
        assert api.get("/clusters?size=0").status_code == 200


@pytest.mark.skipif(not PROGRAM, reason="pgbouncer is not installed")
def test_sessions_that_wait_for_a_standby_do_not_accumulate_behind_a_pooler(
    pair: tuple[Server, Path],
) -> None:
    primary, files = pair
    host = str(conninfo_to_dict(primary.conninfo)["host"])
    behind = "host=127.0.0.1 port={port} dbname=postgres user=postgres sslmode=disable"
    with (
        pgbouncer(f"* = host={host} user=postgres", "", behind, host) as (port, _),
        Serving(
            *("--no-auth", "--workers=1", "--database-url", behind.format(port=port)),
            "--statement-timeout=0.5",
        ) as serving,
    ):
        api = Api(serving.url)
        # Deletions go on until their connection is given up, after six seconds.
        paths = [f"/clusters/{api.cluster(f'p{number}')['id']}" for number in range(3 * POOL)]

        def delete(number: int) -> set[int]:
            own = Api(serving.url)
            return {own.delete(path).status_code for path in paths[number::POOL]}

        with ThreadPoolExecutor(POOL) as threads, frozen(files):
            asked = [threads.submit(delete, number) for number in range(POOL)]
            most = 0
            while not all(one.done() for one in asked):
                most = max(most, len(primary.ask(WAITING)))
                time.sleep(0.1)
            assert {status for one in asked for status in one.result()} == {503}
        # Those that are asked to end may still be on their way out.
        assert POOL <= most <= 2 * POOL
        assert api.get("/clusters?size=0").status_code == 200
