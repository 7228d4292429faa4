"""Streams of changes: how they begin, end and resume."""

import json
import string
import threading
import time
from collections.abc import Callable
from itertools import islice

import psycopg
import pytest
from conftest import Api
from watchers import events, later, now

from hyperfleet.changes import following, waiting


def test_a_stream_has_all_changes_and_resumes_where_it_ended(api: Api) -> None:
    token = now(api)
    api.cluster("c1")
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
    with api.get(f"/changes?after={token}", headers=headers, stream=True) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        coming = events(stream)
        first = next(coming)
        with later(lambda: Api(api.url).cluster("c2")):
            second = next(coming)
    assert [first["event"], second["event"]] == ["created", "created"]
    assert [json.loads(one["data"])["name"] for one in (first, second)] == ["c1", "c2"]
    assert json.loads(first["data"])["resource"]["kind"] == "Cluster"
    # The last event takes precedence over the URL, which is still that of the first request.
    resumed = {"Accept": "text/event-stream", "Last-Event-ID": first["id"]}
    with api.get(f"/changes?after={token}", headers=resumed, stream=True) as stream:
        assert json.loads(next(events(stream))["data"])["name"] == "c2"


def test_a_stream_that_starts_now_can_be_resumed_before_its_first_change(api: Api) -> None:
    headers = {"Accept": "text/event-stream"}
    with api.get("/changes", headers=headers, stream=True) as stream:
        begun = next(events(stream, places=True))
    assert set(begun) == {"id"}
    api.cluster("c1")
    with api.get("/changes", headers={**headers, "Last-Event-ID": begun["id"]}, stream=True) as stream:
        assert json.loads(next(events(stream))["data"])["name"] == "c1"


def test_a_stream_can_be_resumed_after_changes_that_it_leaves_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LASTS", 2.0)
    cluster, token = api.cluster("c1"), now(api)
    api.node_pool(cluster)
    api.cluster("c2")
    headers = {"Accept": "text/event-stream"}
    with api.get(f"/changes?after={token}&kind=NodePool", headers=headers, stream=True) as stream:
        first, place = islice(events(stream, places=True), 2)
    assert json.loads(first["data"])["name"] == "np1"
    assert set(place) == {"id"}
    assert place["id"] == api.get(f"/changes?after={first['id']}&kind=NodePool").json()["next"]
    assert api.get(f"/changes?after={place['id']}").json()["items"] == []


def test_a_stream_ends_after_its_time_and_can_be_resumed_without_a_gap(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LASTS", 0.5)
    monkeypatch.setattr(following, "BEAT", 0.2)
    headers = {"Accept": "text/event-stream"}
    with api.get("/changes", headers=headers, stream=True, timeout=10) as stream:
        *_, last = events(stream, places=True)
    api.cluster("c1")
    with api.get("/changes", headers={**headers, "Last-Event-ID": last["id"]}, stream=True) as stream:
        assert json.loads(next(events(stream))["data"])["name"] == "c1"


@pytest.mark.slow
def test_a_stream_shows_signs_of_life_amid_changes_that_it_leaves_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BEAT", 0.5)
    cluster, over = api.cluster(), threading.Event()

    def write() -> None:
        own, number = Api(api.url), 0
        while not over.wait(0.1):
            number += 1
            own.patch(f"/clusters/{cluster['id']}", json={"labels": {"n": str(number)}})

    headers, search = {"Accept": "text/event-stream"}, {"search": "name = 'wanted'"}
    with api.get("/changes", params=search, headers=headers, stream=True) as stream:
        coming = events(stream, places=True)
        place = next(coming)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            began = time.monotonic()
            for _ in range(2):
                passed = next(coming)
                # Proxies end a connection that is silent, and an old place is forgotten some day.
                assert set(passed) == {"id"}
                assert passed != place
                place = passed
            assert time.monotonic() - began < 4
        finally:
            over.set()
            writer.join()


@pytest.mark.slow
def test_a_stream_goes_on_after_a_page_that_could_not_be_read(
    service: Callable[..., Api], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Leaves time to lock a table before the change is seen.
    monkeypatch.setattr(waiting, "POLL", 1.0)
    api = service(statement_timeout=0.5)
    with api.get("/changes", headers={"Accept": "text/event-stream"}, stream=True) as stream:
        coming = events(stream, places=True)
        assert set(next(coming)) == {"id"}
        api.cluster("c1")
        with psycopg.connect(database) as conn:
            conn.execute("LOCK TABLE node_pools IN ACCESS EXCLUSIVE MODE")
            # Meanwhile, a page was asked for in vain.
            time.sleep(2.5)
        assert json.loads(next(coming)["data"])["name"] == "c1"


def test_a_head_request_for_a_stream_leaves_the_connection_to_the_next_request(api: Api) -> None:
    # On the same connection, like clients that first ask which content type a path has.
    head = api.head("/changes", headers={"Accept": "text/event-stream"}, timeout=5)
    assert head.headers["Content-Type"].startswith("text/event-stream")
    assert (head.status_code, head.content) == (200, b"")
    assert api.get("/changes", timeout=5).status_code == 200


def test_a_search_that_takes_too_long_ends_a_stream_without_a_gone_event(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api, headers = service(statement_timeout=0.5), {"Accept": "text/event-stream"}
    search = " or ".join(f"spec.x ~= '(a|b|ab)*{end}'" for end in string.ascii_lowercase[2:20])
    with api.get("/changes", params={"search": search}, headers=headers, stream=True) as stream:
        coming = events(stream, places=True)
        begun = next(coming)
        sql.execute(
            "INSERT INTO clusters SELECT gen_random_uuid(), 'c' || n, 1, 1, '{}',"
            " jsonb_build_object('x', repeat('ab', 10000)), '{\"conditions\": []}', now(), now(), 'm',"
            " 'm', NULL, NULL FROM generate_series(1, 1000) AS n"
        )
        # There is no need to list again; clients that continue are told why it ended.
        assert [*coming] == []
    headers["Last-Event-ID"] = begun["id"]
    answer = api.get("/changes", params={"search": search}, headers=headers)
    assert answer.status_code == 400
    assert "takes too long" in answer.json()["detail"]
