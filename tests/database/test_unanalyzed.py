"""Tables that PostgreSQL has not analyzed yet, as after a restore, are still read by index."""

import re
from collections.abc import Iterator
from typing import Any

import declared_kinds
import psycopg
import pytest
from plans import kept_steps, of_table, rows, steps

from hyperfleet import kinds
from hyperfleet.changes import pages
from hyperfleet.lists.place import CHECKED, Place
from hyperfleet.lists.projection import Shape
from hyperfleet.resources import marking
from hyperfleet.settings import declared

pytestmark = pytest.mark.slow

# The number of clusters, and of releases, each of which refers to a cluster.
ROWS = 3000
# So many releases that a planner without statistics would not start with the references.
MANY = 20_000

FILL = """
INSERT INTO {table} ({columns} id, name, labels, spec, status, created_time, updated_time,
                     created_by, updated_by)
SELECT {values} md5('{table}' || i)::uuid, 'name-' || i, '{{"env": "prod"}}', '{{}}', '{{}}',
       now(), now(), 'x', 'x'
FROM generate_series({first}, {last}) AS i
"""
REFER = """
INSERT INTO resource_references
    (source_kind, source_id, ref_type, target_kind, target_id, created_time)
SELECT 'Release', md5('resources' || i)::uuid, 'cluster', 'Cluster', md5('clusters' || i)::uuid, now()
FROM generate_series(%s::int, %s::int) AS i
"""
LABELS = """
INSERT INTO labels (owner_type, owner_id, key, value, created_time)
SELECT 'Cluster', id, key, value, created_time FROM clusters, jsonb_each_text(labels)
"""
PLACE = f"""
SELECT concat_ws(' ', epoch, position, sequence, {CHECKED}) FROM feeds, changes
ORDER BY position, sequence LIMIT 1
"""


@pytest.fixture
def restored(sql: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A connection to a database with resources in tables that were never analyzed."""
    refers = {"ref_type": "cluster", "target_kind": "Cluster"}
    given = [{"kind": "Release", "plural": "releases", "references": [refers]}]
    kinds.declare(declared.kinds_of(declared_kinds.parsed(given)))
    tables = ("clusters", "resources", "node_pools", "labels", "resource_references", "changes")
    for table in tables:
        sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    sql.execute(FILL.format(table="clusters", columns="", values="", first=1, last=ROWS))
    releases(sql, 1, ROWS)
    sql.execute(LABELS)
    yield sql
    kinds.declare(declared.kinds_of(declared_kinds.of({})))


def releases(sql: psycopg.Connection, first: int, last: int) -> None:
    values = {"columns": "kind, href,", "values": "'Release', '/x',"}
    sql.execute(FILL.format(table="resources", **values, first=first, last=last))
    sql.execute(REFER, [first, last])


def rows_read(sql: psycopg.Connection, statement: str, values: dict[str, Any]) -> dict[str, float]:
    """Returns how many rows of each table a statement reads with a generic or a custom plan, at most."""
    most: dict[str, float] = {}
    for planned in (kept_steps, steps):
        found = planned(sql, statement, values)
        for table in {step["Relation Name"] for step in found if "Relation Name" in step}:
            most[table] = max(most.get(table, 0), sum(map(rows, of_table(found, table))))
    return most


def test_referrers_are_found_without_reading_all_resources_that_could_refer(
    restored: psycopg.Connection,
) -> None:
    restored.execute("ALTER TABLE resources DISABLE TRIGGER USER")
    releases(restored, ROWS + 1, MANY)
    # Not cached, since other tests have other kinds.
    [statement] = marking._referring.__wrapped__("Cluster", scoped=False)
    for number, count in ((ROWS, 1), (MANY + 1, 0)):
        query = "SELECT md5('clusters' || %s)::uuid::text"
        [(id_,)] = restored.execute(query, [str(number)]).fetchall()
        values = {"ids": [id_], "id": id_}
        assert len(restored.execute(statement, values).fetchall()) == count
        looked = rows_read(restored, statement, values)
        # Each reference at most once.
        assert looked.pop("resource_references", 0) <= MANY
        assert sum(looked.values()) <= 10, looked


@pytest.mark.parametrize("kind", [None, "Cluster", "Release"])
def test_a_search_in_the_feed_reads_rows_by_id(restored: psycopg.Connection, kind: str | None) -> None:
    [(text,)] = restored.execute(PLACE).fetchall()
    for search in ("labels.env='prod'", "labels.env='prod' and labels.tier='gold'", "name='nobody'"):
        condition = pages.searched(search, kind)
        wanted = pages.Wanted(kind, None, condition, search, Shape(), "", 100, {})
        looked = rows_read(restored, *pages.plan(wanted, Place.parse(text)))
        assert "labels" not in looked
        # Sorting a small feed is as good as reading it in order.
        looked.pop("changes")
        assert max(looked.values()) <= pages.SCANNED + 10, (search, looked)


def test_the_end_of_the_feed_is_found_without_reading_all_of_it(restored: psycopg.Connection) -> None:
    [(text,)] = restored.execute(
        re.sub("position, sequence LIMIT", "position DESC LIMIT", PLACE)
    ).fetchall()
    for after in (None, Place.parse(text)):
        wanted = pages.Wanted(None, None, pages.searched("", None), "", Shape(), "", 100, {})
        looked = rows_read(restored, *pages.plan(wanted, after))
        assert looked.get("changes", 0) <= pages.SCANNED + 10, looked
