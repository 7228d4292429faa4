"""PgBouncer in transaction mode, where each transaction may get another one of a few sessions."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from conftest import Api
from original import Original, uid
from pooler import PROGRAM, pgbouncer
from process import Serving, run
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from round_trips import LastWords, RoundTrips

from hyperfleet.database import connection, migration

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROGRAM, reason="pgbouncer is not installed")]

SESSIONS = 4


@pytest.fixture
def bouncer(pooler: tuple[str, subprocess.Popen[bytes]]) -> str:
    """The connection string of this test's database through a PgBouncer with few sessions."""
    return pooler[0]


@pytest.fixture
def pooler(database: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The connection string for `bouncer`, and the PgBouncer process."""
    parts = conninfo_to_dict(database)
    target = " ".join(
        f"{key}={parts[key]}" for key in ("host", "port", "user", "password") if parts.get(key)
    )
    sslless = make_conninfo(database, host="127.0.0.1", port="{port}", sslmode="disable")
    settings = f"default_pool_size = {SESSIONS}"
    with pgbouncer(f"* = {target}", settings, sslless, str(parts["host"])) as (port, process):
        yield sslless.format(port=port), process


def seen_by_others(conninfo: str) -> set[tuple[str, ...]]:
    """Returns the state that other clients find in the sessions when they use all of them at once."""
    together = threading.Barrier(SESSIONS)

    def look(_: int) -> tuple[str, ...]:
        with psycopg.connect(conninfo) as conn:
            conn.execute("BEGIN")
            together.wait(10)
            row = conn.execute(
                "SELECT current_setting('statement_timeout'), current_setting('jit'),"
                " current_setting('max_parallel_workers_per_gather'),"
                " (SELECT count(*)::text FROM pg_prepared_statements WHERE NOT from_sql),"
                " (SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory')"
            ).fetchone()
            together.wait(10)
            assert row
            return row

    with ThreadPoolExecutor(SESSIONS) as threads:
        return set(threads.map(look, range(SESSIONS)))


def life(api: Api, number: int) -> None:
    """Takes a cluster and a node pool from creation to removal."""
    name = f"c{number}"
    for key in range(2):
        body = {"name": name, "spec": {}, "labels": {"number": str(number)}}
        answer = api.post("/clusters", json=body, headers={"Idempotency-Key": f'"{name}"'})
        assert answer.status_code == 201, (key, answer.text)
    cluster = answer.json()
    path = f"/clusters/{cluster['id']}"
    pool = api.node_pool(cluster, labels={"number": str(number)})
    for round_ in range(3):
        assert api.report(cluster).status_code == 201
        assert api.report(pool).status_code == 201
        assert api.patch(path, json={"spec": {"round": round_}}).status_code == 200
        found = api.get("/clusters", params={"search": f"labels.number='{number}'"})
        assert [item["name"] for item in found.json()["items"]] == [name]
        found = api.get(
            "/clusters", params={"search": "status.conditions.Reconciled='False'", "size": 3}
        )
        assert found.status_code == 200
        assert api.get(f"{path}/nodepools").json()["total"] == 1
        assert api.get(f"{path}/statuses").json()["total"] == 1
        assert api.read(pool)["name"] == "np1"
    assert api.post("/clusters", json={"name": name, "spec": {}}).status_code == 409
    assert api.delete(path).status_code == 202
    done = [{"type": "Finalized", "status": "True"}]
    assert api.report(pool, observed_generation=2, conditions=done).status_code == 201
    if number % 2:
        assert api.report(cluster, observed_generation=5, conditions=done).status_code == 201
    else:
        gone = api.post(f"{path}/force-delete", json={"reason": "test"})
        assert gone.status_code == 204, gone.text
    assert api.get(path).status_code == 404


def test_all_operations_work_and_leave_nothing_behind_in_the_sessions(
    bouncer: str, database: str, sql: psycopg.Connection
) -> None:
    # As for other programs; a write that waits for another one would fail with it.
    name = conninfo_to_dict(database)["dbname"]
    sql.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    before = seen_by_others(bouncer)
    with Serving("--no-auth", "--database-url", bouncer, "--log-level", "warning") as server:
        assert "through a pooler" in server.output
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(lambda number: life(Api(server.url), number), range(24)))
        assert Api(server.health).get("//readyz").status_code == 200
        assert seen_by_others(bouncer) == before
        assert "psycopg" not in server.output


def test_startup_fails_in_time_if_the_pooler_has_no_session_left(
    bouncer: str,
) -> None:
    with ExitStack() as stack:
        for _ in range(SESSIONS):
            stack.enter_context(psycopg.connect(bouncer)).execute("SELECT 1")
        began = time.monotonic()
        ended = run(
            "serve", "--no-auth", "--port=0", "--database-url", bouncer, "--db-connect-timeout=1"
        )
        assert (ended.returncode, "no answer within 5 s" in ended.stdout) == (1, True), ended.stdout
        # PgBouncer itself would respond after two minutes.
        assert time.monotonic() - began < 60


def test_requests_to_a_frozen_pooler_get_503_in_time(
    pooler: tuple[str, subprocess.Popen[bytes]],
) -> None:
    conninfo, process = pooler
    options = ("--no-auth", "--database-url", conninfo, "--statement-timeout", "1")
    with Serving(*options) as server, ThreadPoolExecutor(24) as threads:
        api = Api(server.url)
        cluster = api.cluster()
        list(threads.map(lambda _: api.get("/clusters"), range(24)))
        process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        asked = [threads.submit(api.report, cluster) for _ in range(12)]
        asked += [threads.submit(api.get, "/clusters") for _ in range(12)]
        assert {one.result().status_code for one in asked} == {503}
        # Twice the statement timeout, a margin, and the wait for a connection.
        assert time.monotonic() - start < 25
        process.send_signal(signal.SIGCONT)
        end = time.monotonic() + 10
        while api.report(cluster).status_code != 201:
            assert time.monotonic() < end


def test_the_statement_timeout_is_set_in_each_transaction(bouncer: str, database: str) -> None:
    options = ("--no-auth", "--database-url", bouncer, "--statement-timeout", "0.5")
    with Serving(*options) as server, psycopg.connect(database) as holder:
        api = Api(server.url)
        cluster = api.cluster()
        holder.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
        start = time.monotonic()
        assert api.get("/clusters").json()["code"] == "HYPERFLEET-SVC-002"
        assert api.report(cluster).json()["code"] == "HYPERFLEET-SVC-002"
        assert time.monotonic() - start < 2
        holder.rollback()
        assert api.report(cluster).status_code == 201


def test_each_statement_costs_a_round_trip_and_the_transaction_three(bouncer: str) -> None:
    """They are not pipelined, since PgBouncer 1.18 then sometimes keeps a session from other clients."""
    wire = RoundTrips(bouncer)
    options = ("--workers=1", "--db-pool-size=1", "--database-url", wire.conninfo)
    with Serving("--no-auth", *options) as server:
        api = Api(server.url)
        path = f"/clusters/{api.cluster()['id']}"
        for number in range(8):
            for method, where, body, trips in (
                ("GET", path, None, 4),
                ("GET", "/clusters?search=name='a'", None, 4),
                ("POST", "/clusters", {"name": f"wired-{number}", "spec": {}}, 4),
                ("PATCH", path, {"spec": {"number": number}}, 6),
            ):
                wire.reset()
                assert api.request(method, where, json=body).ok
                assert wire.count == trips, where
    wire.close()


def test_a_session_ended_right_after_its_commit_gets_503(bouncer: str) -> None:
    wire = LastWords(bouncer, "COMMIT")
    with Serving("--no-auth", "--workers=1", "--database-url", wire.conninfo) as server:
        api = Api(server.url)
        path = f"/clusters/{api.cluster()['id']}"
        for method, body in (("GET", None), ("PATCH", {"spec": {"a": 1}})):
            wire.wanted = True
            answer = api.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "HYPERFLEET-SVC-001")
            assert answer.headers["Retry-After"]
            assert not wire.wanted
            assert api.get(path).status_code == 200
        assert api.get(path).json()["spec"] == {"a": 1}
    wire.close()


def test_the_commands_work_through_pgbouncer(
    bouncer: str, database: str, sql: psycopg.Connection, tmp_path: Path
) -> None:
    given = ("--database-url", bouncer)
    before = seen_by_others(bouncer)
    taken = run("migrate", "--rollback", "99", "--yes", *given)
    assert taken.returncode == 0, taken.stdout
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: run("migrate", *given), range(4)))
    assert [one.returncode for one in done] == [0] * 4, [one.stdout for one in done]
    assert sum("applied" in one.stdout for one in done) == 1
    assert migration.pending(sql) == []
    assert "pending" not in run("migrate", "--list", *given).stdout
    with Serving("--no-auth", *given) as server:
        api = Api(server.url)
        for number in range(20):
            api.report(api.cluster(f"c{number}"))
    refolded = run("migrate", "--refold", "--required-adapters-cluster=gone", *given)
    assert refolded.returncode == 0, refolded.stdout
    assert "20 statuses changed" in refolded.stdout
    document = tmp_path / "schema.yaml"
    document.write_text(
        "openapi: 3.0.0\ninfo: {title: t, version: '1'}\npaths: {}\n"
        "components: {schemas: {ClusterSpec: {type: object}, NodePoolSpec: {type: object}}}\n"
    )
    checked = run("schema", "check", str(document), "--against", bouncer)
    assert checked.returncode == 0, checked.stdout
    assert "0 of 20 stored specs would break" in checked.stdout
    assert seen_by_others(bouncer) == before


def test_a_command_that_repeats_a_statement_leaves_none_prepared_in_the_sessions(bouncer: str) -> None:
    before = seen_by_others(bouncer)
    with connection.connect(bouncer) as conn:
        for number in range(20):
            assert conn.execute("SELECT 1 + %s::int", [number]).fetchone() == (number + 1,)
    assert seen_by_others(bouncer) == before


def test_an_import_reads_and_writes_through_pgbouncer(bouncer: str, database: str, api: Api) -> None:
    name = f"{conninfo_to_dict(database)['dbname']}_original"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
        try:
            original = Original(make_conninfo(database, dbname=name))
            with original.conn:
                original.cluster(uid(1), "prod")
                theirs = make_conninfo(bouncer, dbname=name)
                done = run("import", "--from-database", theirs, "--database-url", bouncer)
                assert done.returncode == 0, done.stdout
                same = run("import", "--from-database", bouncer, "--database-url", bouncer)
                assert "database to import from is this service's own" in same.stdout
            assert api.get(f"/clusters/{uid(1)}").json()["name"] == "prod"
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
