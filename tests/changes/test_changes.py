"""The feed of changes as clients see it: its pages, its streams, waiting, tokens and errors."""

import asyncio
import base64
import gc
import json
import logging
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
import requests
from conftest import Api, Service
from psycopg.conninfo import make_conninfo
from round_trips import RoundTrips
from watchers import follow, now, told

from hyperfleet.changes import following, retention, waiting
from hyperfleet.database.pool import new_pool
from hyperfleet.handlers import feed

FEED = "/changes"


@contextmanager
def later(do: Callable[[], object], seconds: float = 0.3) -> Iterator[None]:
    timer = threading.Timer(seconds, do)
    timer.start()
    yield
    timer.join()


def events(response: requests.Response, *, places: bool = False) -> Iterator[dict[str, str]]:
    """Server-sent events, as a browser understands them."""
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


def test_each_change_of_a_resource_appears_once_with_its_current_state(waiting: Api) -> None:
    api = waiting
    start = now(api)
    cluster = api.cluster("c1")
    path = f"/clusters/{cluster['id']}"
    pool = api.node_pool(cluster, "np1")
    assert api.patch(path, json={"labels": {"a": "b"}}).status_code == 200
    assert api.patch(path, json={"labels": {"a": "b"}}).status_code == 200
    assert api.report(cluster, "dns", observed_generation=2).status_code == 201
    assert api.delete(path).status_code == 202
    items, end = follow(api, start)
    assert told(items) == [
        ("created", "Cluster", "c1"),
        ("created", "NodePool", "np1"),
        ("updated", "Cluster", "c1"),
        ("status", "Cluster", "c1"),
        ("deleting", "NodePool", "np1"),
        ("deleting", "Cluster", "c1"),
    ]
    assert [one["generation"] for one in items] == [1, 1, 2, 2, 2, 3]
    assert [one.get("owner_id") for one in items] == [
        None,
        cluster["id"],
        None,
        None,
        cluster["id"],
        None,
    ]
    assert [one["by"] for one in items[:3]] == ["system@hyperfleet.local"] * 3
    assert items[3]["by"] == "dns"
    for one in items:
        of = {"Cluster": cluster, "NodePool": pool}[one["kind"]]
        assert one["id"] == of["id"]
        assert one["resource"] == api.read(of)
    versions = [one["version"] for one in items if one["kind"] == "Cluster"]
    assert versions == sorted(versions)
    assert f'"{versions[-1]}"' == api.get(path).headers["ETag"]
    assert api.post(f"{path}/force-delete", json={"reason": "test"}).status_code == 204
    gone, after = follow(api, end)
    assert told(gone) == [("removed", "NodePool", "np1"), ("removed", "Cluster", "c1")]
    assert all("resource" not in one for one in gone)
    assert follow(api, after) == ([], after)
    # A late reader gets all the changes, without the resources that are gone.
    late, _ = follow(api, start)
    assert told(late) == told(items) + told(gone)
    assert all("resource" not in one for one in late)


def test_a_report_that_repeats_the_last_one_is_not_a_change(api: Api) -> None:
    cluster = api.cluster()
    assert api.report(cluster).status_code == 201
    start, before = now(api), api.read(cluster)
    assert api.report(cluster, observed_time=None).status_code == 201
    assert api.read(cluster) != before
    assert follow(api, start)[0] == []
    for said in (
        {"conditions": [{"type": "Available", "status": "True", "reason": "Other"}]},
        {"conditions": [{"type": "Available", "status": "False", "reason": "Other"}]},
        {"adapter": "other"},
    ):
        assert api.report(cluster, **said).status_code == 201
        items, start = follow(api, start)
        assert [(one["change"], one["by"]) for one in items] == [("status", said.get("adapter", "dns"))]


def test_changes_without_a_report_or_a_new_generation_appear_too(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster()
    assert api.report(cluster).status_code == 201
    start = now(api)
    # As an import does after a manual correction at the source.
    for what in ("spec = '{\"b\": 1}'", 'labels = \'{"b": "1"}\'', "updated_time = now()"):
        sql.execute(f"UPDATE clusters SET version = version + 1, {what}")
        items, start = follow(api, start)
        assert [(one["change"], one["by"]) for one in items] == [("updated", cluster["created_by"])]
    # As rules of mapped conditions may do: a reason moves from one condition to the next.
    for one, two in ((',"reason":"A"', ""), ("", ',"reason":"A"')):
        conditions = f'[{{"type":"X","status":"True"{one}}},{{"type":"Y","status":"True"{two}}}]'
        sql.execute(
            "UPDATE clusters SET version = version + 1, status = status || jsonb_build_object("
            "'conditions', %s::jsonb)",
            [conditions],
        )
        # These conditions are incomplete, so only the id is requested.
        items, start = follow(api, f"/changes?fields=id&after={start}")
        assert [one["change"] for one in items] == ["status"]


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


def test_a_list_links_to_the_changes_after_it(api: Api) -> None:
    first = api.cluster("c1")
    pool = api.node_pool(first, "np1")
    own = f"/clusters/{first['id']}/nodepools"
    links = {}
    for path in (
        "/clusters",
        "/nodepools",
        own,
        "/resources",
        "/clusters?search=name = 'c2'&fields=name",
    ):
        link = api.get(path).json()["changes"]
        assert follow(api, link)[0] == []
        links[path] = link
    second = api.cluster("c2")
    api.node_pool(second, "np2")
    other = api.node_pool(first, "np3")
    assert api.patch(api.url + pool["href"], json={"spec": {"a": 1}}).status_code == 200
    found = {path: told(follow(api, link)[0]) for path, link in links.items()}
    c2 = [("created", "Cluster", "c2")]
    np2, np3 = ("created", "NodePool", "np2"), ("created", "NodePool", "np3")
    changed = ("updated", "NodePool", "np1")
    assert found == {
        "/clusters": c2,
        "/nodepools": [np2, np3, changed],
        own: [np3, changed],
        "/resources": [*c2, np2, np3, changed],
        "/clusters?search=name = 'c2'&fields=name": c2,
    }
    [item] = follow(api, links["/clusters?search=name = 'c2'&fields=name"])[0]
    assert item["resource"] == {"id": second["id"], "name": "c2"}
    assert "changes" not in api.get(f"{own}/{other['id']}/statuses").json()
    assert api.get("/nodepools?size=0").json()["changes"]


def test_the_link_does_not_change_the_etag_of_a_list(api: Api) -> None:
    cluster = api.cluster("c1")
    before = api.get("/clusters")
    api.node_pool(cluster)
    after = api.get("/clusters")
    assert after.headers["ETag"] == before.headers["ETag"]
    assert after.json()["changes"] != before.json()["changes"]
    assert {**after.json(), "changes": ""} == {**before.json(), "changes": ""}
    known = {"If-None-Match": before.headers["ETag"]}
    assert api.get("/clusters", headers=known).status_code == 304


def test_a_client_of_an_older_generation_does_not_get_the_link(api: Api) -> None:
    api.cluster()
    strict = {"User-Agent": "OpenAPI-Generator/1.0.0/go"}
    assert set(api.get("/clusters", headers=strict).json()) == {"kind", "page", "size", "total", "items"}


def test_a_very_large_list_has_the_link_too(api: Api) -> None:
    for number in range(3):
        api.cluster(f"large{number}", spec={"text": "x" * 600_000})
    page = api.get("/clusters")
    assert page.headers.get("ETag") is None
    api.cluster("c1")
    items, _ = follow(api, page.json()["changes"])
    assert told(items) == [("created", "Cluster", "c1")]


def test_a_search_matches_the_current_state_of_resources_and_all_removals(waiting: Api) -> None:
    api, query = waiting, "kind=Cluster&search=labels.env = 'prod'"
    start = now(api, query)
    one = api.cluster("one", labels={"env": "prod"})
    two = api.cluster("two", labels={"env": "test"})
    page = api.get(f"/changes?{query}&after={start}").json()
    assert told(page["items"]) == [("created", "Cluster", "one")]
    # Changes that did not match are skipped for good.
    assert api.get(f"/changes?{query}&after={page['next']}").json()["items"] == []
    assert api.patch(f"/clusters/{two['id']}", json={"labels": {"env": "prod"}}).status_code == 200
    assert api.patch(f"/clusters/{one['id']}", json={"labels": {"env": "test"}}).status_code == 200
    items = api.get(f"/changes?{query}&after={page['next']}").json()["items"]
    assert told(items) == [("updated", "Cluster", "two")]
    for cluster in (one, two):
        path = f"/clusters/{cluster['id']}"
        assert api.delete(path).status_code == 202
        assert api.post(f"{path}/force-delete", json={"reason": "x"}).status_code == 204
    items = api.get(f"/changes?{query}&after={start}").json()["items"]
    assert told(items) == [("removed", "Cluster", "one"), ("removed", "Cluster", "two")]


def test_small_pages_follow_each_other_without_gaps(api: Api) -> None:
    start = now(api)
    for number in range(7):
        api.cluster(f"c{number}")
    token, seen = start, []
    for size in (3, 3, 1):
        page = api.get(f"/changes?limit=3&after={token}").json()
        assert len(page["items"]) == size
        seen += [one["name"] for one in page["items"]]
        token = page["next"]
    assert seen == [f"c{number}" for number in range(7)]
    assert api.get(f"/changes?limit=3&after={token}").json() == {
        "kind": "ChangeList",
        "items": [],
        "next": token,
    }


def test_a_page_of_large_resources_has_fewer_items(api: Api) -> None:
    start = now(api)
    for number in range(4):
        api.cluster(f"large{number}", spec={"text": "x" * 600_000})
    first = api.get(f"/changes?after={start}").json()
    assert [one["name"] for one in first["items"]] == ["large0"]
    items, _ = follow(api, start)
    assert [one["name"] for one in items] == [f"large{number}" for number in range(4)]


@pytest.mark.parametrize("how", ["wait", "Prefer"])
def test_a_waiting_client_is_answered_as_soon_as_something_changes(api: Api, how: str) -> None:
    token = now(api)
    query, headers = ("&wait=20", {}) if how == "wait" else ("", {"Prefer": "respond-async, wait=20"})
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
    with ThreadPoolExecutor(len(asked)) as threads:
        waiting = [threads.submit(Api(api.url).get, path) for path in asked]
        time.sleep(0.5)
        api.node_pool(cluster)
        for path, one in zip(asked, waiting, strict=True):
            assert told(one.result().json()["items"]) == [("created", "NodePool", "np1")], path


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


@pytest.mark.parametrize(
    ("query", "field", "says"),
    [
        ("after=garbage", "after", "token"),
        ("after=", "after", ""),
        (f"after={base64.urlsafe_b64encode(bytes(35)).decode()}", "after", "token"),
        ("kind=cluster", "kind", "did you mean Cluster"),
        ("kind=AdapterStatus", "kind", "Cluster"),
        ("owner_id=x", "owner_id", "id"),
        ("limit=0", "limit", "from 1 to 1000"),
        ("limit=1001", "limit", "from 1 to 1000"),
        ("wait=61", "wait", "from 0 to 60"),
        ("wait=-1", "wait", "from 0 to 60"),
        ("fields=nonsense", "fields", "nonsense"),
        ("kind=Cluster&search=nonsense = 1", "search", "nonsense"),
        ("kind=Cluster&search=name ~= '('", "search", "regular expression"),
        ("since=1", "since", ""),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_an_invalid_parameter_is_rejected_by_name(
    api: Api, query: str, field: str, says: str, accept: str
) -> None:
    token = now(api)
    api.cluster()
    place = "" if "after" in query else f"&after={token}"
    answer = api.get(f"/changes?{query}{place}", headers={"Accept": accept})
    assert answer.status_code == 400, answer.text
    assert answer.headers["Content-Type"] in ("application/problem+json", "application/json")
    assert answer.json()["errors"][0]["field"] == field
    assert says in answer.json()["detail"]


def test_a_token_of_another_feed_gets_410_and_advice_to_list_again(
    api: Api, sql: psycopg.Connection
) -> None:
    api.cluster()
    raw = bytearray(base64.urlsafe_b64decode(token := now(api)))
    # While a transaction on the server is older than the row, the feed ends before it, at no row.
    while raw[-4:] == bytes(4):
        time.sleep(0.05)
        raw = bytearray(base64.urlsafe_b64decode(token := now(api)))
    other, ahead, different = bytearray(raw), bytearray(raw), bytearray(raw)
    other[0] ^= 1
    ahead[16:24] = (2**40).to_bytes(8, "big")
    different[-1] ^= 1
    for changed in (other, ahead, different):
        strange = base64.urlsafe_b64encode(bytes(changed)).decode()
        for accept, wait in (
            ("application/json", ""),
            ("application/json", "&wait=5"),
            ("text/event-stream", ""),
        ):
            answer = api.get(f"/changes?after={strange}{wait}", headers={"Accept": accept})
            assert answer.status_code == 410
            assert answer.json()["code"] == "HYPERFLEET-NTF-100"
            assert "list again" in answer.json()["detail"]
    refused = api.get("/changes", headers={"Accept": "text/event-stream", "Last-Event-ID": "garbage"})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == "Last-Event-ID"
    assert api.get(f"/changes?after={token}").status_code == 200
    # As after restoring the dump of another server, which needs no further step.
    sql.execute("UPDATE feeds SET server = server + 1")
    assert api.get(f"/changes?after={token}").status_code == 410
    link = api.get("/clusters").json()["changes"]
    api.cluster("c2")
    assert told(follow(api, link)[0]) == [("created", "Cluster", "c2")]


def test_a_role_that_can_only_read_and_write_rows_serves_and_starts_a_new_feed(
    service: Callable[..., Api], database: str, sql: psycopg.Connection
) -> None:
    sql.execute("DROP ROLE IF EXISTS hf_serves")
    sql.execute("CREATE ROLE hf_serves LOGIN")
    try:
        sql.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO hf_serves")
        api = service(make_conninfo(database, user="hf_serves"))
        token = now(api)
        cluster = api.cluster()
        assert api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}}).status_code == 200
        assert [one["change"] for one in follow(api, token)[0]] == ["created", "updated"]
        sql.execute("UPDATE feeds SET server = server + 1")
        assert api.get(f"/changes?after={token}").status_code == 410
        token = now(api)
        api.cluster("c2")
        assert told(follow(api, token)[0]) == [("created", "Cluster", "c2")]
    finally:
        sql.execute("DROP OWNED BY hf_serves")
        sql.execute("DROP ROLE hf_serves")


def test_rows_from_another_server_hold_nothing_back(api: Api, sql: psycopg.Connection) -> None:
    cluster = api.cluster()
    token = now(api)
    sql.execute("UPDATE changes SET position = '999999999999'")
    assert api.patch(f"/clusters/{cluster['id']}", json={"labels": {"a": "b"}}).status_code == 200
    assert api.get(f"/changes?after={token}").status_code == 410
    token = now(api)
    assert api.patch(f"/clusters/{cluster['id']}", json={"labels": {"a": "c"}}).status_code == 200
    assert told(follow(api, token)[0]) == [("updated", "Cluster", "c1")]


def test_waiting_clients_are_told_at_once_when_a_table_is_emptied(
    api: Api, sql: psycopg.Connection
) -> None:
    api.cluster()
    token = now(api)
    with later(lambda: sql.execute("TRUNCATE clusters CASCADE")):
        assert api.get(f"/changes?after={token}&wait=20").status_code == 410
    token = now(api)
    with api.get(
        f"/changes?after={token}", headers={"Accept": "text/event-stream"}, stream=True
    ) as stream:
        coming = events(stream, places=True)
        assert set(next(coming)) == {"id"}
        with later(lambda: sql.execute("TRUNCATE clusters CASCADE")):
            gone = next(coming)
    assert gone["event"] == "gone"
    assert json.loads(gone["data"])["status"] == 410


def test_waiting_clients_are_told_at_once_during_a_restore_and_no_error_is_logged(
    api: Api, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    token = now(api)
    # A dump restores the row that names the feed after the functions and most tables.
    with later(lambda: sql.execute("DELETE FROM feeds")):
        assert api.get(f"/changes?after={token}&wait=20").status_code == 410
    # An exception that was not retrieved is logged when it is collected.
    assert api.get("/changes?wait=1").status_code == 200
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_polling_does_not_multiply_when_clients_return_to_a_new_feed(
    service: Callable[..., Api], database: str, sql: psycopg.Connection
) -> None:
    wire = RoundTrips(database)
    api = service(wire.conninfo)
    for _ in range(3):
        with later(lambda: sql.execute("TRUNCATE clusters CASCADE")):
            assert api.get("/changes?wait=20").status_code == 410
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(lambda: Api(api.url).get("/changes?wait=3"))
        time.sleep(0.5)
        wire.reset()
        time.sleep(2)
        assert wire.count < 1.5 * 2 / waiting.POLL
        assert waiter.result().json()["items"] == []
    wire.close()


def test_a_reader_does_not_block_the_emptying_of_a_table(
    api: Api, sql: psycopg.Connection, database: str
) -> None:
    api.cluster()
    token = now(api)
    # Like a reader that waits for the emptied table: a deadlock if TRUNCATE waited for it, too.
    sql.execute("SET lock_timeout = '2s'")
    with psycopg.connect(database) as reader:
        reader.execute("LOCK TABLE changes IN ACCESS SHARE MODE")
        sql.execute("TRUNCATE clusters CASCADE")
    assert api.get(f"/changes?after={token}").status_code == 410
    token = now(api)
    api.cluster("c2")
    assert told(follow(api, token)[0]) == [("created", "Cluster", "c2")]


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


async def remove(conninfo: str, seconds: float) -> int:
    async with new_pool(conninfo, 1) as pool:
        return await retention.remove(pool, seconds)


def test_old_changes_are_removed_and_tokens_from_before_them_get_410(
    api: Api, database: str, sql: psycopg.Connection
) -> None:
    begin = now(api)
    for number in range(3):
        api.cluster(f"c{number}")
    middle = now(api)
    sql.execute("UPDATE changes SET time = time - interval '8 days'")
    assert asyncio.run(remove(database, 9 * 86400)) == 0
    assert asyncio.run(remove(database, 7 * 86400)) == 3
    assert sql.execute("SELECT count(*) FROM changes").fetchone() == (0,)
    assert api.get(f"/changes?after={begin}").status_code == 410
    # Nothing is missing after the last one that was removed.
    assert follow(api, middle) == ([], middle)
    api.cluster("c3")
    end = now(api)
    assert told(follow(api, middle)[0]) == [("created", "Cluster", "c3")]
    assert asyncio.run(remove(database, 0.0)) == 1
    assert api.get(f"/changes?after={middle}").status_code == 410
    assert follow(api, end) == ([], end)


def test_tokens_for_a_quiet_kind_stay_valid_when_other_changes_are_removed(
    api: Api, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BEAT", 0.5)
    cluster, begin = api.cluster(), now(api)
    headers = {"Accept": "text/event-stream"}
    with api.get("/changes?kind=NodePool", headers=headers, stream=True) as stream:
        coming = events(stream, places=True)
        first = next(coming)["id"]
        api.cluster("c2")
        waited = api.get(f"/changes?kind=NodePool&after={begin}&wait=1").json()
        # Without data: it moves past changes to other kinds.
        passed = next(coming)
        assert set(passed) == {"id"}
        assert asyncio.run(remove(database, 0.0)) == 2
        api.node_pool(cluster)
        assert next(coming)["event"] == "created"
    assert api.get(f"/changes?after={first}").status_code == 410
    for token in (passed["id"], waited["next"]):
        assert told(follow(api, token)[0]) == [("created", "NodePool", "np1")]


def test_old_changes_after_a_recent_one_are_kept(
    api: Api, database: str, sql: psycopg.Connection
) -> None:
    for number in range(3):
        api.cluster(f"c{number}")
    sql.execute("UPDATE changes SET time = time - interval '8 days' WHERE name <> 'c1'")
    assert asyncio.run(remove(database, 7 * 86400)) == 1
    assert sql.execute("SELECT name FROM changes ORDER BY position").fetchall() == [("c1",), ("c2",)]


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


def test_an_open_transaction_holds_back_the_changes_made_since_it_began(api: Api, database: str) -> None:
    token = now(api)
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_current_xact_id()")
        api.cluster("c1")
        link = api.get("/clusters").json()["changes"]
        assert follow(api, token)[0] == []
        assert follow(api, link)[0] == []
        other.rollback()
    assert told(follow(api, token)[0]) == [("created", "Cluster", "c1")]
    # What the list already had appears once more, rather than never.
    assert told(follow(api, link)[0]) == [("created", "Cluster", "c1")]
