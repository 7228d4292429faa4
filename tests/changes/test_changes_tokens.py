"""Which places in the feed stay valid, and what clients learn when theirs is gone."""

import asyncio
import base64
import gc
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from conftest import Api
from psycopg.conninfo import make_conninfo
from round_trips import RoundTrips
from watchers import events, follow, later, now, told

from hyperfleet.changes import following, retention, waiting
from hyperfleet.database.pool import new_pool


def test_a_token_of_another_feed_gets_410_and_advice_to_list_again(
    api: Api, sql: psycopg.Connection
) -> None:
    api.cluster()
    raw = bytearray(base64.urlsafe_b64decode(token := now(api)))
    # While a transaction on the server is older than the row, the feed ends before it, at no row.
    while raw[-4:] == bytes(4):
        time.sleep(0.05)
        raw = bytearray(base64.urlsafe_b64decode(token := now(api)))
    other, ahead, unknown, different = (bytearray(raw) for _ in range(4))
    other[0] ^= 1
    ahead[16:24] = (2**40).to_bytes(8, "big")
    # PostgreSQL does not say whether such a transaction is still running: there was none yet.
    unknown[16:24] = (2**40 + 5).to_bytes(8, "big")
    different[-1] ^= 1
    for changed in (other, ahead, unknown, different):
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


def test_changes_that_an_open_transaction_holds_back_are_not_removed(
    api: Api, database: str, sql: psycopg.Connection
) -> None:
    token = now(api)
    with psycopg.connect(database) as older:
        older.execute("SELECT pg_current_xact_id()")
        api.cluster()
        sql.execute("UPDATE changes SET time = time - interval '8 days'")
        assert follow(api, token) == ([], token)
        assert asyncio.run(remove(database, 7 * 86400)) == 0
    assert told(follow(api, token)[0]) == [("created", "Cluster", "c1")]


def test_all_old_changes_are_removed_even_after_an_error(
    api: Api, database: str, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOOK", 0.05), ("PAUSE", 0.01), ("MOST", 2)):
        monkeypatch.setattr(retention, name, value)
    for number in range(5):
        api.cluster(f"c{number}")

    async def main() -> None:
        async with new_pool(database, 1) as pool, asyncio.timeout(20):
            sql.execute("ALTER TABLE changes RENAME TO away")
            task = asyncio.create_task(retention.removing(pool, 0.0))
            await asyncio.sleep(0.5)
            # One more round, which must remove all.
            monkeypatch.setattr(retention, "LOOK", 1.0)
            await asyncio.sleep(0.3)
            monkeypatch.setattr(retention, "LOOK", 60)
            sql.execute("ALTER TABLE away RENAME TO changes")
            while sql.execute("SELECT count(*) FROM changes").fetchone() != (0,):
                await asyncio.sleep(0.02)
            task.cancel()

    asyncio.run(main())
