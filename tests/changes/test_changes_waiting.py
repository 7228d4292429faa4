"""Clients that wait for changes: when they are answered, and what they cost."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from conftest import Api, Service
from round_trips import RoundTrips
from watchers import events, later, now, told

from hyperfleet.changes import waiting
from hyperfleet.database import together
from hyperfleet.handlers import feed


def test_a_waiting_client_far_behind_is_answered_when_its_time_is_over(
    api: Api, sql: psycopg.Connection
) -> None:
    token = now(api)
    for number in range(4):
        api.cluster(f"c{number}")
    rows = "SELECT position, time, kind, gen_random_uuid(), 1, 1, name, 'status', tenancy FROM changes"
    sql.execute("ALTER TABLE changes DISABLE TRIGGER changes_restored")
    for _ in range(14):
        sql.execute(
            "INSERT INTO changes (position, time, kind, id, generation, version, name, change, "
            f"tenancy) {rows}"
        )
    # A client that waits at the end makes the process poll.
    with later(lambda: Api(api.url).get("/changes?wait=4"), 0):
        time.sleep(0.5)
        began = time.monotonic()
        page = api.get(f"/changes?after={token}&wait=1&kind=NodePool")
        assert time.monotonic() - began < 2
    assert page.json()["items"] == []
    assert page.json()["next"] != token


@pytest.mark.parametrize("how", ["wait", "Prefer", "Prefer, quoted"])
def test_a_waiting_client_is_answered_as_soon_as_something_changes(api: Api, how: str) -> None:
    token = now(api)
    preference = 'Wait="20"; more, x' if "quoted" in how else "respond-async, wait=20"
    query, headers = ("&wait=20", {}) if how == "wait" else ("", {"Prefer": preference})
    began = time.monotonic()
    with later(lambda: Api(api.url).cluster("late"), 0.5):
        answer = api.get(f"/changes?after={token}{query}", headers=headers)
        taken = time.monotonic() - began
    assert told(answer.json()["items"]) == [("created", "Cluster", "late")]
    assert answer.headers.get("Preference-Applied") == (None if how == "wait" else "wait=20")
    assert 0.5 <= taken < 2


def test_a_client_that_waits_in_vain_gets_an_empty_page_to_continue_from(api: Api) -> None:
    token, began = now(api), time.monotonic()
    answer = api.get(f"/changes?after={token}&wait=1")
    assert 0.9 < time.monotonic() - began < 3
    assert answer.json() == {"kind": "ChangeList", "items": [], "next": token}
    # Without a token, waiting starts now.
    with later(lambda: Api(api.url).cluster("late")):
        assert told(api.get("/changes?wait=20").json()["items"]) == [("created", "Cluster", "late")]
    # An invalid preference is not an error.
    for prefer in ("wait=0", "wait=x", "wait", "wait=-1"):
        assert (
            api.get(f"/changes?after={token}&kind=NodePool", headers={"Prefer": prefer}).status_code
            == 200
        )


@pytest.mark.parametrize("how", ["wait", "Prefer"])
def test_a_waiting_client_is_answered_before_proxies_give_up(
    api: Api, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # nginx gives up after 60 s, which a client may ask for, and HAProxy usually after 50 s.
    assert feed.LONGEST < 50
    monkeypatch.setattr(feed, "LONGEST", 1)
    query, headers = ("&wait=60", {}) if how == "wait" else ("", {"Prefer": "wait=60"})
    token, began = now(api), time.monotonic()
    answer = api.get(f"/changes?after={token}{query}", headers=headers, timeout=20)
    assert time.monotonic() - began < 5
    assert answer.json() == {"kind": "ChangeList", "items": [], "next": token}
    assert answer.headers.get("Preference-Applied") == (None if how == "wait" else "wait=1")


def test_a_waiting_client_is_not_answered_by_changes_that_it_did_not_ask_for(api: Api) -> None:
    cluster = api.cluster()
    token = now(api)

    def write() -> None:
        own = Api(api.url)
        own.cluster("other")
        time.sleep(0.5)
        own.node_pool(cluster)

    with later(write):
        for_pools = f"/changes?after={token}&wait=20&kind=NodePool&owner_id={cluster['id']}"
        assert told(api.get(for_pools).json()["items"]) == [("created", "NodePool", "np1")]
    with later(lambda: Api(api.url).cluster("wanted")):
        search = f"/changes?after={token}&wait=20&kind=Cluster&search=name = 'wanted'"
        assert told(api.get(search).json()["items"]) == [("created", "Cluster", "wanted")]


def test_a_change_answers_all_clients_that_wait_for_it_with_any_filter(api: Api) -> None:
    cluster = api.cluster()
    token, own = now(api), f"owner_id={cluster['id']}"
    asked = [f"/changes?after={token}&wait=20&{said}" for said in ("", "kind=NodePool", own)]
    asked.append(f"{asked[1]}&{own}")
    # What is shown of a resource is each one's own, too.
    asked += [f"{asked[0]}&fields={name}" for name in ("name", "spec")]
    with ThreadPoolExecutor(len(asked)) as threads:
        waiting = [threads.submit(Api(api.url).get, path) for path in asked]
        time.sleep(0.5)
        api.node_pool(cluster)
        for path, one in zip(asked, waiting, strict=True):
            assert told(one.result().json()["items"]) == [("created", "NodePool", "np1")], path
    for name, one in zip(("name", "spec"), waiting[-2:], strict=True):
        assert one.result().json()["items"][0]["resource"].keys() == {"id", name}


def test_clients_that_started_at_different_places_share_the_query_for_a_change(
    service: Callable[..., Api], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "POLL", 1.0)
    wire = RoundTrips(database)
    api, writer, waiters = service(wire.conninfo), service(database), []
    cluster = api.cluster()
    with ThreadPoolExecutor(30) as threads:
        for number in range(30):
            api.cluster(f"other-{number}")
            path = f"/changes?after={now(api)}&kind=NodePool&wait=30"
            waiters.append(threads.submit(lambda path=path: Api(api.url).get(path)))
        # Until all the changes to other resources have been looked at.
        time.sleep(3)
        wire.reset()
        writer.node_pool(cluster)
        answers = [one.result() for one in waiters]
        assert wire.count < 10
    assert all(told(one.json()["items"]) == [("created", "NodePool", "np1")] for one in answers)
    wire.close()


@pytest.mark.slow
def test_a_client_that_waits_at_a_newer_place_than_others_gets_nothing_twice(
    service: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "POLL", 1.0)
    api = service()
    token = now(api)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(lambda: Api(api.url).get(f"/changes?after={token}&wait=20"))
        time.sleep(0.3)
        # Read by one client before it is seen for all that wait.
        api.cluster("c1")
        token = api.get(f"/changes?after={token}").json()["next"]
        assert api.get(f"/changes?after={token}&wait=2").json()["items"] == []
        assert told(first.result().json()["items"]) == [("created", "Cluster", "c1")]


def test_clients_beyond_the_limit_for_waiting_get_503_with_retry_after(
    service: Callable[..., Api],
) -> None:
    api = service(max_waiting=1)
    token = now(api)
    stream = api.get("/changes", headers={"Accept": "text/event-stream"}, stream=True)
    coming = events(stream, places=True)
    assert next(coming)
    time.sleep(0.2)
    for accept, wait in (("application/json", "&wait=5"), ("text/event-stream", "")):
        refused = api.get(f"/changes?after={token}{wait}", headers={"Accept": accept})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
    assert api.get(f"/changes?after={token}").status_code == 200
    stream.close()
    deadline = time.monotonic() + 5
    while api.get(f"/changes?after={token}&wait=1").status_code != 200:
        assert time.monotonic() < deadline


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 503])
def test_clients_that_go_while_their_page_is_read_do_not_affect_those_that_stay(
    service: Callable[..., Api], database: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    # Leaves time to lock a table before the change is seen.
    monkeypatch.setattr(waiting, "POLL", 1.0)
    api = service(statement_timeout=2 if status == 503 else 20)
    path, address = f"/changes?after={now(api)}&wait=40", urlsplit(api.url)
    clients = [socket.create_connection((address.hostname, address.port)) for _ in range(10)]
    for client in clients:
        client.sendall(f"GET /api/hyperfleet/v1{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    blocked = "SELECT count(*) FROM pg_locks WHERE relation = 'node_pools'::regclass AND NOT granted"
    with ThreadPoolExecutor(2) as threads:
        waiters = [threads.submit(lambda: Api(api.url).get(path, timeout=10)) for _ in range(2)]
        time.sleep(0.5)
        api.cluster("c1")
        with psycopg.connect(database) as conn:
            conn.execute("LOCK TABLE node_pools IN ACCESS EXCLUSIVE MODE")
            while conn.execute(blocked).fetchone() == (0,):
                time.sleep(0.01)
            for client in clients:
                client.close()
            time.sleep(0.3)
            if status == 503:
                assert [one.result().status_code for one in waiters] == [503, 503]
        answers = [one.result() for one in waiters]
    assert [one.status_code for one in answers] == [status, status]
    # Nor is there anything left of them.
    page = api.get(path).json() if status == 503 else answers[1].json()
    assert told(page["items"]) == [("created", "Cluster", "c1")]


def test_a_page_that_could_not_be_read_in_time_is_read_on_the_next_request(
    service: Callable[..., Api], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "POOL_TIMEOUT", 0.1)
    api = service(db_pool_size=2, statement_timeout=20, request_timeout=2)
    token = now(api)
    cluster = api.cluster()
    waits = "SELECT count(*) FROM pg_locks WHERE relation = 'adapter_statuses'::regclass AND NOT granted"
    with ThreadPoolExecutor(1) as threads, psycopg.connect(database) as conn:
        conn.execute("LOCK TABLE adapter_statuses IN ACCESS EXCLUSIVE MODE")
        first = threads.submit(Api(api.url).get, f"/clusters/{cluster['id']}/statuses")
        while conn.execute(waits).fetchone() == (0,):
            time.sleep(0.01)
        refused = api.get(f"/changes?after={token}")
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        conn.rollback()
        assert first.result().status_code == 200
    assert told(api.get(f"/changes?after={token}").json()["items"]) == [("created", "Cluster", "c1")]


def test_waiting_clients_do_not_count_towards_the_limit_of_requests(service: Callable[..., Api]) -> None:
    api = service(max_requests=4, request_timeout=1)
    token = now(api)

    def wait(_: int) -> requests.Response:
        return Api(api.url).get(f"/changes?after={token}&wait=20")

    with ThreadPoolExecutor(12) as threads:
        # All at the same time, like clients that were answered at the same time.
        waiters = [threads.submit(wait, number) for number in range(12)]
        # Longer than the request timeout.
        time.sleep(1.5)
        assert not any(one.done() for one in waiters)
        for number in range(8):
            assert api.get(f"/clusters?size={number}").status_code == 200
        api.cluster("c1")
        answers = [one.result() for one in waiters]
    assert [one.status_code for one in answers] == [200] * 12
    assert all(told(one.json()["items"]) == [("created", "Cluster", "c1")] for one in answers)


def test_waiting_clients_are_answered_when_the_service_stops(
    service: Callable[..., Api], database: str
) -> None:
    running = Service(database)
    api = Api(running.url)
    token = now(api)
    stream = api.get("/changes", headers={"Accept": "text/event-stream"}, stream=True)
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(lambda: Api(running.url).get(f"/changes?after={token}&wait=30"))
        time.sleep(0.5)
        began = time.monotonic()
        running.stop()
        assert waiter.result().json() == {"kind": "ChangeList", "items": [], "next": token}
    list(events(stream))
    assert time.monotonic() - began < 3


def test_a_waiting_client_sees_a_change_within_two_seconds(api: Api) -> None:
    assert waiting.POLL <= 0.2
    token = now(api)
    worst = 0.0
    for number in range(5):
        done: list[float] = []

        def write(number: int = number, done: list[float] = done) -> None:
            Api(api.url).cluster(f"c{number}")
            done.append(time.monotonic())

        with later(write):
            page = api.get(f"/changes?after={token}&wait=20").json()
            seen = time.monotonic()
        token, worst = page["next"], max(worst, seen - done[0])
    # On an idle machine, it is within 0.5 s.
    assert worst < 2
