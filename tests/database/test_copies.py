"""Data that is published, or dumped and restored, stays the same and is counted correctly."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from conftest import Api, Service, migrated
from psycopg.conninfo import make_conninfo
from pytest_postgresql.executors import NoopExecutor

from hyperfleet.database import embedded, migration

pytestmark = pytest.mark.slow

RESOURCE = """
INSERT INTO resources (id, kind, href, name, labels, spec, status, created_time, updated_time,
                       created_by, updated_by)
SELECT gen_random_uuid(), kind, '/x', 'n' || number, '{}', '{}', '{"conditions": []}',
       now(), now(), 'x', 'x'
FROM (VALUES ('Channel'), ('Region')) AS kinds (kind), generate_series(1, 40) AS number
"""
LISTS = ("/clusters", "/nodepools", "/clusters?search=labels.number='7'", "/clusters?size=0")


def fleet(api: Api, size: int) -> None:
    def one(number: int) -> None:
        own = Api(api.url)
        cluster = own.cluster(f"c{number}", labels={"number": str(number)}, spec={"ü": "\t\\N"})
        assert own.report(cluster).status_code == 201
        assert own.report(own.node_pool(cluster, labels={"a": "b"})).status_code == 201
        if number % 10 == 0:
            path = f"/clusters/{cluster['id']}"
            assert own.patch(path, json={"labels": {"number": "10"}}).status_code == 200
            assert own.delete(path).status_code == 202
            assert own.post(f"{path}/force-delete", json={"reason": "test"}).status_code == 204

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(size)))


def totals(sql: psycopg.Connection) -> None:
    for table in ("clusters", "node_pools"):
        counted = sql.execute(
            "SELECT coalesce(sum(difference), 0) FROM row_counts WHERE table_name = %s", [table]
        ).fetchone()
        assert counted == sql.execute(f"SELECT count(*) FROM {table}").fetchone()
    if sql.execute("SELECT to_regclass('resources')").fetchone() == (None,):
        return
    kinds = sql.execute("SELECT 'resources/' || kind, count(*) FROM resources GROUP BY 1").fetchall()
    counts = sql.execute(
        "SELECT table_name, sum(difference)::bigint FROM row_counts WHERE table_name ~ '/' GROUP BY 1"
    ).fetchall()
    assert sorted(counts) == sorted(kinds)


def test_a_publication_of_all_tables_does_not_prevent_writes(api: Api, sql: psycopg.Connection) -> None:
    sql.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    fleet(api, 200)
    assert api.get("/clusters?size=0").json()["total"] == 180
    assert api.get("/nodepools?size=0").json()["total"] == 180
    totals(sql)
    # Rows are summed up now and then, or there would be 440.
    [(rows,)] = sql.execute("SELECT count(*) FROM row_counts").fetchall()
    assert rows < 400
    for number in range(100):
        sql.execute(RESOURCE.replace("'n' ||", f"'n{number}-' ||"))
        sql.execute("DELETE FROM resources WHERE name ~ '3$'")
    totals(sql)
    sql.execute("TRUNCATE resources")
    totals(sql)


def test_a_published_database_can_be_migrated_and_rolled_back(
    database: str, api: Api, sql: psycopg.Connection
) -> None:
    # Before the rollback, since this version writes what the older schema lacks.
    cluster = api.cluster("early", labels={"a": "b"})
    migration.roll_back(database, 1)
    sql.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    assert migration.apply(database) == migration.names()[-1:]
    assert api.read(cluster) == cluster
    api.cluster("late", labels={"a": "b"})
    assert api.get("/clusters?search=labels.a='b'").json()["total"] == 2
    totals(sql)
    assert migration.roll_back(database, 1) == migration.names()[-1:]
    totals(sql)


def test_every_table_has_a_replica_identity(sql: psycopg.Connection) -> None:
    lacking = sql.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)"
    ).fetchall()
    assert lacking == []


def test_a_subscriber_can_take_over_after_the_docs_statement_for_sequences(
    api: Api, root: Path, sql: psycopg.Connection
) -> None:
    before = [f"c{number}" for number in range(8)]
    for name in before:
        api.cluster(name)
    # A subscriber's rows come with their numbers, which its sequences do not know.
    for table, column in (("audit", "id"), ("changes", "sequence")):
        sql.execute("SELECT setval(pg_get_serial_sequence(%s, %s), 1, false)", [table, column])
    page = (root / "docs" / "operating.md").read_text()
    [statement] = re.findall(r"^SELECT setval\(.*?;$", page, re.DOTALL | re.MULTILINE)
    sql.execute(statement)
    link = api.get("/clusters").json()["changes"]
    cluster = api.cluster("two")
    assert api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}}).status_code == 200
    assert [one["name"] for one in api.get("/" + link).json()["items"]] == ["two", "two"]
    found = [(one["name"], one["action"]) for one in api.get("/audit").json()["items"]]
    created = [(name, "create") for name in ("two", *reversed(before))]
    assert found == [("two", "patch"), *created]


@pytest.mark.parametrize(
    "options",
    [["--data-only"], ["--data-only", "--inserts"], ["--data-only", "--disable-triggers"], []],
    ids=" ".join,
)
def test_a_restored_dump_has_the_same_data_and_takes_writes(
    api: Api,
    postgres: NoopExecutor,
    database: str,
    tmp_path: Path,
    options: list[str],
) -> None:
    fleet(api, 30)
    with psycopg.connect(database, autocommit=True) as own:
        own.execute(RESOURCE)
    programs = embedded._server(tmp_path).bin_path
    # The table of migrations belongs to the schema, which already exists.
    left_out = ["--exclude-table=*yoyo*"] if options else []
    dump = subprocess.run(
        [programs / "pg_dump", *options, *left_out, "-d", make_conninfo(database)],
        capture_output=True,
        check=True,
    ).stdout
    assert b"set_config('search_path', ''" in dump
    with (
        migrated(postgres, "restored") as elsewhere,
        psycopg.connect(elsewhere, autocommit=True) as sql,
    ):
        # As if it had been migrated on its own, not copied.
        sql.execute("SELECT hyperfleet_feed_anew(true)")
        if not options:
            sql.execute("DROP SCHEMA public CASCADE")
            sql.execute("CREATE SCHEMA public")
        restored = subprocess.run(
            [programs / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", elsewhere],
            input=dump,
            capture_output=True,
            check=False,
        )
        assert restored.returncode == 0, restored.stderr.decode()
        totals(sql)
        there = Service(elsewhere)
        try:
            other = Api(there.url)
            for path in LISTS:
                assert {**other.get(path).json(), "changes": ""} == {
                    **api.get(path).json(),
                    "changes": "",
                }
            link = other.get("/resources?size=0").json()["changes"].partition("v1")[2]
            after = other.cluster("after")
            assert other.get("/clusters?size=0").json()["total"] == 28
            assert other.delete(f"/clusters/{after['id']}").status_code == 202
            totals(sql)
            told = other.get(link).json()["items"]
            assert {(one["kind"], one["name"]) for one in told} == {("Cluster", "after")}
            assert told[-1]["change"] == "removed"
        finally:
            there.stop()
