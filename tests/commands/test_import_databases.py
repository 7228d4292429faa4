"""Which databases can be the source of an import, with which privileges, and how they are told apart."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import psycopg.sql
import pytest
from conftest import Api, migrated
from imports import C, empty, fill, first, newest, numbers, numbers_of, take
from original import Original, uid
from process import run_here
from psycopg.conninfo import make_conninfo
from pytest_postgresql.executors import NoopExecutor

__all__ = ["empty", "first", "newest"]


def test_a_source_that_is_empty_now_removes_nothing(first: Original, api: Api, database: str) -> None:
    fill(first)
    take(database, first)
    first.conn.execute("TRUNCATE clusters, node_pools, adapter_statuses")
    output = take(database, first, code=3)
    assert "the source is empty; kept here" in output
    assert api.get("/clusters").json()["total"] == 2


@pytest.mark.parametrize("hidden", ["resource_conditions", "resource_labels", "resource_references"])
def test_a_table_that_the_role_cannot_read_is_reported_and_not_skipped(
    hidden: str, newest: Original, database: str
) -> None:
    fill(newest)
    role = f"partial_{next(numbers)}"
    newest.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        newest.conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        newest.conn.execute(f"REVOKE SELECT ON {hidden} FROM {role}")
        theirs = make_conninfo(newest.conninfo, user=role, password="secret")
        said = take(database, theirs, code=1)
        assert f"it lacks SELECT on {hidden}." in said
        newest.conn.execute(f"GRANT SELECT ON {hidden} TO {role}")
        assert "2 new" in take(database, theirs)
    finally:
        newest.conn.execute(f"DROP OWNED BY {role}")
        newest.conn.execute(f"DROP ROLE {role}")


def test_an_import_with_an_invalid_source_target_or_option_is_rejected(
    first: Original, database: str, empty: str, postgres: NoopExecutor
) -> None:
    with migrated(postgres, f"other_{next(numbers)}") as other:
        said = take(database, other, code=1)
        assert "is not a database of the original" in said
        assert "Tables found: _yoyo_log, _yoyo_migration" in said
        assert "clusters, feeds, generations, idempotency_keys" in said
    assert "database to import from is this service's own" in take(database, database, code=1)
    assert "lacks migrations (0001.resources, " in take(empty, database, code=1)
    for arguments, says in (
        ((), "either --from-database or --from-api"),
        (("--from-database", "a=b", "--from-api", "http://h"), "either --from-database or --from-api"),
        (
            ("--from-database", "a=secret", "--from-database-file", __file__),
            "Give either --from-database or --from-database-file, not both.",
        ),
        (("--from-database", "mysql://u:secret@h/d"), "the scheme mysql is not postgresql"),
        (("--from-api", "http://u:secret@h"), "must not hold a user or a password"),
        (("--from-api", "ftp://h"), "must be a URL such as"),
        (
            ("--from-api", "http://h", "--follow", "--dry-run"),
            "Give either --follow or --dry-run, not both.",
        ),
        (("--from-api", "http://127.0.0.1:1", "--token", "secret"), "cannot be read"),
        (("--from-database", "postgresql://u:secret@127.0.0.1:1/d"), "The import failed"),
    ):
        ended = run_here("import", "--database-url", database, *arguments)
        assert ended.returncode in (1, 2)
        assert says in ended.stdout, ended.stdout
        assert "secret" not in ended.stdout
        assert "Traceback" not in ended.stdout


def test_of_an_original_being_upgraded_the_tables_in_use_are_read(
    first: Original, database: str
) -> None:
    fill(first)
    first.conn.execute(
        """CREATE TABLE resources (id text, kind text, name text, spec jsonb, labels jsonb,
               generation int, owner_id text, created_time timestamptz, updated_time timestamptz,
               deleted_time timestamptz)"""
    )
    output = take(database, first)
    assert "clusters    2 new" in output
    assert "(tables clusters, node_pools, adapter_statuses)" in output
    first.conn.execute(
        """INSERT INTO resources SELECT id, kind, name, '{"new": true}', labels, generation, NULL,
               created_time, updated_time FROM clusters"""
    )
    output = take(database, first, "--dry-run", "--remove-most")
    assert "clusters    0 new, 2 changed, 0 same, 0 removed" in output
    assert "(tables resources, adapter_statuses)" in output


def test_a_role_with_select_on_each_column_suffices(newest: Original, database: str) -> None:
    fill(newest)
    role = f"columns_{next(numbers)}"
    newest.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        newest.conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        newest.conn.execute(f"REVOKE SELECT ON resource_labels FROM {role}")
        columns = [
            name
            for (name,) in newest.conn.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'resource_labels'::regclass"
                " AND attnum > 0"
            )
        ]
        theirs = make_conninfo(newest.conninfo, user=role, password="secret")
        newest.conn.execute(f"GRANT SELECT ({', '.join(columns[1:])}) ON resource_labels TO {role}")
        assert "it lacks SELECT on resource_labels." in take(database, theirs, code=1)
        newest.conn.execute(f"GRANT SELECT ({columns[0]}) ON resource_labels TO {role}")
        take(database, theirs)
    finally:
        newest.conn.execute(f"DROP OWNED BY {role} CASCADE")
        newest.conn.execute(f"DROP ROLE {role}")


def test_a_read_only_role_suffices(first: Original, database: str, tmp_path: Path) -> None:
    fill(first)
    role = f"{first.conn.info.dbname}_reader"
    first.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        first.conn.execute(f"GRANT SELECT ON clusters, node_pools, adapter_statuses TO {role}")
        theirs = make_conninfo(first.conninfo, user=role, password="secret")
        file = tmp_path / "url"
        file.write_text(theirs)
        ended = run_here("import", "--from-database-file", str(file), "--database-url", database)
        assert ended.returncode == 0, ended.stdout
        assert "secret" not in ended.stdout
    finally:
        first.conn.execute(f"DROP OWNED BY {role} CASCADE")
        first.conn.execute(f"DROP ROLE {role}")


@contextlib.contextmanager
def another(original: Original, *, newest: bool) -> Iterator[Original]:
    """Another original, at the address of the first one, which moves elsewhere."""
    name = original.conn.info.dbname
    original.conn.close()
    server = make_conninfo(original.conninfo, dbname="postgres")
    with psycopg.connect(server, autocommit=True) as conn:
        rename = psycopg.sql.SQL("ALTER DATABASE {} RENAME TO {}")
        old, moved = psycopg.sql.Identifier(name), psycopg.sql.Identifier(f"{name}_moved")
        conn.execute(rename.format(old, moved))
        conn.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(old))
        try:
            other = Original(original.conninfo, newest=newest)
            with other.conn:
                yield other
        finally:
            conn.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(moved))


def test_another_original_at_the_same_address_removes_nothing_of_the_first(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    for number in range(1, 7):
        newest.cluster(uid(number), f"eu-{number}")
    take(database, newest)
    newest.conn.execute("DELETE FROM resources WHERE name = 'eu-6'")
    assert "1 removed" in take(database, newest)
    with another(newest, newest=True) as other:
        other.cluster(uid(77), "us-1")
        # What both have counts as imported from the last one.
        other.cluster(uid(5), "eu-5")
        output = take(database, other)
        assert "clusters    1 new, 0 changed, 1 same, 0 removed" in output
        assert "Left alone, as they came from another original: 4 resources\n" in output
        assert numbers_of(sql) == (6, 0)
        other.conn.execute("DELETE FROM resources WHERE name = 'eu-5'")
        assert "1 removed" in take(database, other)


def test_a_database_is_recognized_at_another_address(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    for number in range(1, 6):
        newest.cluster(uid(number), f"eu-{number}")
    take(database, newest)
    # Most of it is gone, which is accepted of a database whose identity is certain.
    newest.conn.execute("DELETE FROM resources WHERE name <> 'eu-3'")
    host = newest.conn.info.host
    other = make_conninfo(newest.conninfo, host=f"{host},{host}", port=f"{newest.conn.info.port}")
    assert "clusters    0 new, 0 changed, 1 same, 4 removed" in take(database, other)
    assert numbers_of(sql) == (1, 0)


def test_a_database_of_uncertain_identity_does_not_remove_most_resources(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    for number in range(1, 6):
        newest.cluster(uid(number), f"eu-{number}")
    role = f"{newest.conn.info.dbname}_reader"
    newest.conn.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    newest.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        newest.conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        theirs = make_conninfo(newest.conninfo, user=role, password="secret")
        take(database, theirs)
        newest.conn.execute("DELETE FROM resources WHERE name IN ('eu-1', 'eu-2')")
        assert "2 removed" in take(database, theirs)
        newest.conn.execute("DELETE FROM resources WHERE name IN ('eu-3', 'eu-4')")
        output = take(database, theirs, code=3)
        assert (
            f"cluster {C}: it is gone from the source, like most of the import; kept here unless"
            in output
        )
        assert numbers_of(sql) == (3, 0)
        assert "2 removed" in take(database, theirs, "--remove-most")
        assert numbers_of(sql) == (1, 0)
    finally:
        newest.conn.execute(f"DROP OWNED BY {role} CASCADE")
        newest.conn.execute(f"DROP ROLE {role}")
