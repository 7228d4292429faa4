"""Migrations are applied, rolled back and listed."""

import pwd
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import psycopg.sql
import pytest
from conftest import Api
from older import needs_setting
from process import Serving, run, start
from psycopg.conninfo import make_conninfo

from hyperfleet.database import migration

pytestmark = pytest.mark.slow

# The tables of the schema, without the record of its migrations.
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename !~ 'yoyo' ORDER BY 1"


def test_all_migrations_can_be_rolled_back_and_applied_again(database: str) -> None:
    with psycopg.connect(database) as conn:
        assert migration.pending(conn) == []
        assert migration.applied(conn) == migration.names()
    assert migration.apply(database) == []
    assert migration.roll_back(database, 99) == migration.names()[::-1]
    with psycopg.connect(database) as conn:
        left = conn.execute(
            "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = 'public' AND relname !~ 'yoyo'"
            " UNION SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace"
            " WHERE nspname = 'public'"
        ).fetchall()
    assert left == []
    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(migration.apply, [database] * 4))
    assert sorted(runs, key=len)[-1] == migration.names()
    assert [run for run in runs if run] == [migration.names()]


def test_a_role_that_may_not_create_tables_is_told_the_missing_grant(
    database: str, sql: psycopg.Connection
) -> None:
    name = sql.info.dbname
    role = f"{name}_reader"
    migration.roll_back(database, 99)
    sql.execute("DROP TABLE IF EXISTS yoyo_lock, _yoyo_migration, _yoyo_log, _yoyo_version")
    sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        sql.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        theirs = make_conninfo(database, user=role, password="secret")
        done = run("migrate", "--database-url", theirs)
        assert done.returncode == 1
        assert f"The role {role} may not create tables in the schema public" in done.stdout
        grant = f'GRANT CREATE ON SCHEMA public TO "{role}";'
        assert grant in done.stdout
        assert "yoyo" not in done.stdout
        sql.execute(grant)
        assert run("migrate", "--database-url", theirs).returncode == 0
    finally:
        sql.execute(f"DROP OWNED BY {role} CASCADE")
        sql.execute(f"DROP ROLE {role}")


def test_a_user_id_without_a_name_can_migrate(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on platforms that run containers under ids of their own."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    [newest] = migration.roll_back(database, 1)
    assert migration.apply(database) == [newest]


def test_a_migration_that_gets_no_lock_says_so_once_and_is_applied_later(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "PAUSE", 0.05)
    [newest] = migration.roll_back(database, 1)
    said = f"{newest} waits for older transactions, such as a dump"
    with ThreadPoolExecutor(1) as threads, psycopg.connect(database) as older:
        # It can be read, so the migration begins.
        older.execute("LOCK TABLE _yoyo_migration IN SHARE MODE")
        applying = threads.submit(migration.apply, database)
        deadline = time.monotonic() + 20
        while said not in caplog.messages:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1)
        older.rollback()
        assert applying.result() == [newest]
    assert caplog.messages.count(said) == 1


def test_a_migration_that_fails_is_reported_after_those_applied(
    database: str, sql: psycopg.Connection
) -> None:
    migration.roll_back(database, len(migration.names()))
    # The table that the second migration creates already exists.
    sql.execute("CREATE TABLE audit ()")
    done = run("migrate", "--database-url", database)
    assert done.returncode == 1
    applied, failed = done.stdout.splitlines()[:2]
    assert applied == f"applied  {migration.names()[0]}"
    assert failed.startswith("Error: The migration failed: ")
    listed = run("migrate", "--list", "--database-url", database)
    assert [line.split()[0] for line in listed.stdout.splitlines()[:2]] == ["applied", "pending"]


def test_a_role_with_the_documented_grants_can_write_right_after_a_migration(
    service: Callable[..., Api], root: Path, database: str, sql: psycopg.Connection
) -> None:
    role, names = f"{sql.info.dbname}_serves", [name for name in migration.names() if name >= "0009"]
    migration.roll_back(database, len(names))
    page = (root / "docs" / "operating.md").read_text()
    grants = re.findall(r"^(ALTER DEFAULT PRIVILEGES .*|GRANT SELECT, .*);", page, re.MULTILINE)
    assert len(grants) == 2
    sql.execute(f"CREATE ROLE {role} LOGIN")
    try:
        for grant in grants:
            sql.execute(grant.replace("migrates", "CURRENT_USER").replace("serves", role))
        assert migration.apply(database) == names
        api = service(make_conninfo(database, user=role))
        token = api.get("/changes").json()["next"]
        cluster = api.cluster()
        path = f"/clusters/{cluster['id']}"
        assert api.patch(path, json={"spec": {"a": 1}}).status_code == 200
        assert api.report(cluster, "dns", observed_generation=2).status_code in {200, 201}
        told = api.get(f"/changes?after={token}").json()["items"]
        assert [one["change"] for one in told] == ["created", "updated", "status"]
        assert api.get(f"{path}/history").json()["total"] == 2
        assert api.delete(path).status_code == 202
    finally:
        sql.execute(f"DROP OWNED BY {role}")
        sql.execute(f"DROP ROLE {role}")


def test_a_rollback_lists_what_it_drops_and_requires_yes(database: str, sql: psycopg.Connection) -> None:
    newest = migration.names()[-1]
    refused = run("migrate", "--rollback", "99", "--database-url", database)
    assert refused.returncode == 2
    assert "--yes" in refused.stdout
    [first] = [line for line in refused.stdout.splitlines() if line.startswith("0001.resources drops:")]
    for table in ("clusters", "node_pools", "adapter_statuses", "labels"):
        assert f"table {table}" in first
    [tenth] = [line for line in refused.stdout.splitlines() if line.startswith("0010.")]
    assert "index clusters_tenancy" in tenth
    assert "resources_name," not in tenth
    # Rows removed from tables that remain are named, too.
    [history] = [line for line in refused.stdout.splitlines() if line.startswith("0013.")]
    assert "rows of audit" in history
    [kinds] = [line for line in refused.stdout.splitlines() if line.startswith("0007.")]
    for table in ("adapter_statuses", "labels"):
        assert f"rows of {table}" in kinds
    assert migration.applied(sql) == migration.names()
    done = run("migrate", "--rollback", "1", "--yes", "--database-url", database)
    assert done.returncode == 0, done.stdout
    assert [
        line.partition(" drops: ")[0] for line in done.stdout.splitlines() if " drops: " in line
    ] == [newest]
    assert f"rolled back  {newest}" in done.stdout
    assert migration.pending(sql) == [newest]


def test_migrations_of_a_newer_version_are_listed_and_prevent_a_rollback(
    database: str, sql: psycopg.Connection
) -> None:
    sql.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('f00', '9999.future', now())"
    )
    listed = run("migrate", "--list", "--database-url", database)
    assert "unknown  9999.future" in listed.stdout
    refused = run("migrate", "--rollback", "1", "--database-url", database)
    assert "A newer version has applied" in refused.stdout
    assert "--yes" not in refused.stdout
    refused = run("migrate", "--rollback", "1", "--yes", "--database-url", database)
    assert refused.returncode == 1
    assert "9999.future" in refused.stdout
    assert migration.pending(sql) == []


def test_serve_reports_pending_migrations_at_startup(database: str) -> None:
    newest = migration.names()[-1]
    with Serving("--no-auth", "--database-url", database) as server:
        assert "pending" not in server.output
    migration.roll_back(database, 1)
    with Serving("--no-auth", "--database-url", database) as server:
        assert f"{newest} pending: run hyperfleet migrate" in server.output


@pytest.mark.parametrize("back", [False, True])
def test_a_migration_killed_before_it_is_recorded_can_be_run_again(
    back: bool, database: str, sql: psycopg.Connection
) -> None:
    newest = migration.names()[-1]
    if not back:
        migration.roll_back(database, 1)
    arguments = ("migrate", "--database-url", database, *(("--rollback", "1", "--yes") if back else ()))
    waiting = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query ~ '_yoyo_migration'"
    )
    with psycopg.connect(database) as holder:
        # A migration that records its end waits.
        holder.execute("LOCK TABLE _yoyo_migration IN SHARE MODE")
        started = start(*arguments)
        until = time.monotonic() + 30
        while time.monotonic() < until and not sql.execute(waiting).fetchall():
            time.sleep(0.01)
        started.kill()
        started.wait(10)
    ended = run(*arguments)
    assert ended.returncode == 0, ended.stdout
    assert f"{'rolled back' if back else 'applied'}  {newest}" in ended.stdout
    assert migration.pending(sql) == ([newest] if back else [])
    functions = sql.execute("SELECT FROM pg_proc WHERE proname = 'hyperfleet_place'").fetchall()
    assert len(functions) == (0 if back else 1)


def test_the_migrations_for_tenants_do_not_block_writes_during_a_dump(
    database: str, sql: psycopg.Connection
) -> None:
    """Later requests would queue behind a lock that a migration waits for."""
    names = [name for name in migration.names() if name >= "0009"]
    migration.roll_back(database, len(names))
    sql.execute("SET lock_timeout = '3s'")
    with psycopg.connect(database) as dump, ThreadPoolExecutor(1) as threads:
        dump.execute("SELECT FROM resources, clusters, all_resources")
        applied = threads.submit(migration.apply, database)
        try:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                sql.execute("UPDATE clusters SET version = version")
                sql.execute("UPDATE resources SET version = version")
                time.sleep(0.01)
            assert not applied.done()
        finally:
            dump.rollback()
        assert applied.result(30) == names
    # As if killed between its last statement and the record that it is applied.
    sql.execute("DELETE FROM _yoyo_migration WHERE migration_id ~ '^0010'")
    assert migration.apply(database) == [name for name in names if name.startswith("0010")]


@pytest.mark.parametrize("bound", ["transaction_timeout", "idle_session_timeout"])
def test_a_timeout_for_transactions_or_sessions_does_not_end_a_waiting_migration(
    bound: str, database: str, sql: psycopg.Connection
) -> None:
    needs_setting(sql, bound)
    names = [name for name in migration.names() if name >= "0013"]
    migration.roll_back(database, len(names))
    with psycopg.connect(database) as dump, ThreadPoolExecutor(2) as threads:
        dump.execute("SELECT FROM clusters")
        # Applies to sessions that start from here on.
        name = psycopg.sql.Identifier(sql.info.dbname)
        bounded = psycopg.sql.SQL("ALTER DATABASE {} SET {} = '2s'")
        sql.execute(bounded.format(name, psycopg.sql.Identifier(bound)))
        runs = [threads.submit(migration.apply, database) for _ in range(2)]
        time.sleep(4)
        assert not any(run.done() for run in runs)
        dump.rollback()
        assert sorted(run.result(30) for run in runs) == [[], names]
        dump.execute("SELECT FROM clusters")
        back = threads.submit(migration.roll_back, database, len(names))
        time.sleep(4)
        assert not back.done()
        dump.rollback()
        assert back.result(30) == names[::-1]


@pytest.mark.parametrize("first", ["0005", "0007", "0008", "0012", "0013"])
def test_migrations_and_rollbacks_do_not_block_writes_during_a_dump(
    first: str, database: str, sql: psycopg.Connection
) -> None:
    names = [name for name in migration.names() if name >= first]
    migration.roll_back(database, len(names))
    sql.execute("SET lock_timeout = '2s'")

    def beside_a_dump(step: Callable[[], list[str]]) -> list[str]:
        tables = [name for (name,) in sql.execute(TABLES)]
        with psycopg.connect(database) as dump, ThreadPoolExecutor(1) as threads:
            dump.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE")
            stepping = threads.submit(step)
            try:
                until = time.monotonic() + 4
                while time.monotonic() < until:
                    for table in tables:
                        # Takes the lock that every write takes.
                        sql.execute(f"DELETE FROM {table} WHERE false")
                    time.sleep(0.01)
                assert not stepping.done()
            finally:
                dump.rollback()
            return stepping.result(60)

    assert beside_a_dump(lambda: migration.apply(database)) == names
    newest = [name for name in names[::-1] if name >= "0010"]
    assert beside_a_dump(lambda: migration.roll_back(database, len(newest))) == newest
