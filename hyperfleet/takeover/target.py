"""Reads what is already here, and writes what is imported: a whole batch with few statements."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple

import orjson
import psycopg

from hyperfleet.database import connection
from hyperfleet.database.connection import Connection
from hyperfleet.kinds import NATIVE, PerKind
from hyperfleet.resources.refold import UPDATE, fold_all
from hyperfleet.resources.removal import remove
from hyperfleet.resources.resource import REPORT, REPORT_SEEN
from hyperfleet.settings import tenancy
from hyperfleet.status.conditions import Folding
from hyperfleet.status.report import Report
from hyperfleet.takeover.rows import BATCH, Item, raw_text

# What was last imported from another source counts as changed, and then as imported from this one.
KNOWN = PerKind("""
SELECT owner_id::text, CASE WHEN source = %(source)s THEN fingerprint ELSE '' END, content, generation,
       hyperfleet_time(updated_time)
FROM imports WHERE owner_type = '{kind}' AND owner_id = ANY(%(ids)s::uuid[]) AND last_version IS NULL
""")
IMPORTED = PerKind("""
SELECT owner_id::text FROM imports
WHERE owner_type = '{kind}' AND source = %(source)s AND last_version IS NULL
""")
ELSEWHERE = "SELECT count(*) FROM imports WHERE source <> %(source)s AND last_version IS NULL"
STATE: LiteralString = """
SELECT id::text, generation, hyperfleet_time(updated_time), status,
       (SELECT json_agg(json_build_array(adapter, observed_generation, conditions,
                                         hyperfleet_time(adapter_statuses.created_time),
                                         hyperfleet_time(last_report_time){data}))
        FROM adapter_statuses WHERE owner_type = '{kind}' AND owner_id = {table}.id)
FROM {table} WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id
"""
# A dry run takes no row locks, since these are writes. Rules of mapped conditions need the data.
HERE = {
    (lock, seen): PerKind(STATE.replace("{data}", data) + suffix)
    for lock, suffix in ((False, ""), (True, "FOR NO KEY UPDATE"))
    for seen, data in ((False, ""), (True, ", data"))
}

NAMES = {
    "Cluster": "SELECT name, NULL, tenancy, id::text FROM clusters WHERE name = ANY(%(names)s)",
    "NodePool": "SELECT name, owner_id::text, '{}'::jsonb, id::text FROM node_pools "
    "WHERE owner_id = ANY(%(owners)s::uuid[]) AND name = ANY(%(names)s)",
}
OWNERS = "SELECT id::text FROM clusters WHERE id = ANY(%(owners)s::uuid[])"

# Ids, names and owners never change. New rows must not exist yet, and the others are locked, so that no
# unseen change is overwritten. A resource that comes back never gets a version that it had before.
_WRITE = PerKind("""
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s::text::jsonb) AS given
        (id uuid, owner_id uuid, name text, generation bigint, labels jsonb, spec jsonb, status jsonb,
         created_time timestamptz, updated_time timestamptz, created_by text, updated_by text,
         deleted_time timestamptz, deleted_by text, tenancy jsonb, is_here boolean)
), new AS (
    INSERT INTO {table}
        (id, owner_id, name, generation, labels, spec, status, created_time, updated_time,
         created_by, updated_by, deleted_time, deleted_by, tenancy, version)
    SELECT id, owner_id, name, generation, labels, spec, status, created_time, updated_time,
           created_by, updated_by, deleted_time, deleted_by,
           coalesce((SELECT clusters.tenancy FROM clusters WHERE clusters.id = given.owner_id),
                    tenancy, '{{}}'),
           1 + coalesce((SELECT last_version FROM imports
                         WHERE owner_type = '{kind}' AND imports.owner_id = given.id), 0)
    FROM given WHERE NOT is_here ORDER BY id
    RETURNING id, created_time, labels
), changed AS (
    UPDATE {table} AS resource SET generation = given.generation, labels = given.labels,
        spec = given.spec, status = given.status, version = resource.version + 1,
        updated_time = given.updated_time, updated_by = given.updated_by,
        deleted_time = given.deleted_time, deleted_by = given.deleted_by
    FROM given WHERE is_here AND resource.id = given.id
    RETURNING resource.id, resource.created_time, resource.labels
), written AS (
    SELECT * FROM new UNION ALL SELECT * FROM changed
), dropped AS (
    DELETE FROM labels USING given
    WHERE labels.owner_type = '{kind}' AND labels.owner_id = given.id AND NOT given.labels ? key
)
INSERT INTO labels (owner_type, owner_id, key, value, created_time)
SELECT '{kind}', written.id, label.key, label.value, written.created_time
FROM written, jsonb_each_text(written.labels) AS label
ON CONFLICT (owner_type, owner_id, key) DO UPDATE SET value = excluded.value
""")
WRITE: dict[str, LiteralString] = {
    kind: statement if NATIVE[kind].parent else statement.replace("id, owner_id, name", "id, name")
    for kind, statement in ((kind, _WRITE[kind]) for kind in NATIVE)
}
STORE = PerKind("""
INSERT INTO adapter_statuses
    (owner_type, owner_id, adapter, observed_generation, conditions, data, metadata,
     created_time, last_report_time)
SELECT '{kind}', id, adapter, observed_generation, conditions, data, metadata,
       created_time, last_report_time
FROM jsonb_to_recordset(%(rows)s::text::jsonb) AS given
    (id uuid, adapter text, observed_generation bigint, conditions jsonb, data jsonb, metadata jsonb,
     created_time timestamptz, last_report_time timestamptz)
ON CONFLICT (owner_type, owner_id, adapter) DO UPDATE SET
    observed_generation = excluded.observed_generation, conditions = excluded.conditions,
    data = excluded.data, metadata = excluded.metadata, created_time = excluded.created_time,
    last_report_time = excluded.last_report_time
""")
RECORD = PerKind("""
INSERT INTO imports (owner_type, owner_id, source, fingerprint, content, generation, updated_time)
SELECT '{kind}', id, %(source)s, fingerprint, content, generation, updated_time
FROM jsonb_to_recordset(%(rows)s::text::jsonb) AS given
    (id uuid, fingerprint text, content text, generation bigint, updated_time timestamptz)
ON CONFLICT (owner_type, owner_id) DO UPDATE SET source = excluded.source,
    fingerprint = excluded.fingerprint, content = excluded.content, generation = excluded.generation,
    updated_time = excluded.updated_time, last_version = NULL
""")

# To remove node pools, lock their clusters first, in the order of their ids.
LOCK_OWNERS = """
SELECT 1 FROM clusters WHERE id IN (SELECT owner_id FROM node_pools WHERE id = ANY(%(ids)s::uuid[]))
ORDER BY id FOR NO KEY UPDATE
"""
# For each resource that is gone at the source: its name, whether it was changed here after the import,
# what belongs to it, and whether anything that still exists refers to it.
GONE = PerKind("""
SELECT imports.owner_id::text, resource.name,
       (resource.generation, resource.updated_time) <> (imports.generation, imports.updated_time),
       ARRAY(SELECT id::text FROM node_pools WHERE node_pools.owner_id = resource.id
             UNION ALL SELECT id::text FROM resources WHERE resources.owner_id = resource.id),
       EXISTS (SELECT 1 FROM resource_references AS reference JOIN all_resources AS source
                   ON source.id = reference.source_id AND source.kind = reference.source_kind
               WHERE reference.target_id = resource.id)
FROM imports LEFT JOIN {table} AS resource ON resource.id = imports.owner_id
WHERE owner_type = '{kind}' AND imports.owner_id = ANY(%(ids)s::uuid[])
""")
# Keeps only its last version; if that is unknown, a time, which is more than any version.
FORGET = PerKind("""
UPDATE imports SET fingerprint = '', content = '',
    last_version = coalesce((SELECT version FROM {table} WHERE id = imports.owner_id),
                            extract(epoch FROM now())::bigint)
WHERE owner_type = '{kind}' AND owner_id = ANY(%(ids)s::uuid[])
""")
LOCK = 4857301965
ALONE: LiteralString = "SELECT pg_try_advisory_xact_lock(%s)"
MARKED = (
    "SELECT id::text FROM clusters JOIN imports ON owner_type = 'Cluster' AND owner_id = id "
    "WHERE deleted_time IS NOT NULL ORDER BY id"
)


class Known(NamedTuple):
    """What is recorded of a resource's last import.

    :param fingerprint: as in :class:`Item`; empty if it must be read again
    :param content: a hash of the resource itself
    :param age: its age, which is the same here unless it was changed here
    """

    fingerprint: str
    content: str
    age: tuple[int, str]


class Here(NamedTuple):
    """A resource as it is here.

    :param age: its generation and the time of its last change, which grow with each change
    """

    age: tuple[int, str]
    status: Any
    reports: dict[str, Report]


@dataclass
class Written:
    """What to write of a batch.

    :param whole: the resources to write, each with its status, and whether it is already here
    :param folded: the resources of which only the status is written
    :param reports: the reports to store, each with its item
    :param records: the items to record as imported
    """

    whole: list[tuple[Item, Any, bool]]
    folded: list[tuple[Item, Any]]
    reports: list[tuple[Item, Report]]
    records: list[Item]


def alone(conn: psycopg.Connection[Any]) -> bool:
    """Begins a transaction that locks out other imports until it ends. Returns False if another import
    is already running.
    """
    conn.autocommit = False
    # The transaction is idle during the import. It keeps no snapshot, so it does not hold back vacuum.
    connection.lasting(conn)
    return conn.execute(ALONE, [LOCK]).fetchone() == (True,)


def known(conn: Connection, kind: str, source: str, ids: Sequence[str]) -> dict[str, Known]:
    """Returns what is recorded of earlier imports, by id."""
    rows = conn.execute(KNOWN[kind], {"ids": ids, "source": source})
    return {id_: Known(mark, content, (number, at)) for id_, mark, content, number, at in rows}


def elsewhere(conn: psycopg.Connection[Any], source: str) -> int:
    """Returns the number of resources whose last import was from another source."""
    row = conn.execute(ELSEWHERE, {"source": source}).fetchone()
    return int(row[0]) if row else 0


def imported(conn: Connection, kind: str, source: str) -> set[str]:
    """Returns the ids of all resources that were imported from a source."""
    return {row[0] for row in conn.execute(IMPORTED[kind], {"source": source})}


def here(
    conn: Connection, kind: str, ids: Sequence[str], *, lock: bool, seen: bool = False
) -> dict[str, Here]:
    """Returns the resources that are here, by id.

    :param lock: whether to lock them
    :param seen: whether to read the data of reports
    """
    found, members = {}, REPORT_SEEN if seen else REPORT
    for id_, generation, updated, status, rows in conn.execute(HERE[lock, seen][kind], {"ids": ids}):
        reports: list[Any] = [dict(zip(members, row, strict=True)) for row in rows or ()]
        by_adapter = {report["adapter"]: report for report in reports}
        found[id_] = Here((generation, updated), status, by_adapter)
    return found


def named(conn: Connection, kind: str, items: Collection[Item]) -> dict[tuple[str | None, str], str]:
    """Returns the ids of resources here with the names of items, by the names' scope and name."""
    values = {
        "names": [item.row["name"] for item in items],
        "owners": [item.owner_id for item in items],
    }
    return {
        (tenancy.text(tenant) or owner, name): id_
        for name, owner, tenant, id_ in conn.execute(NAMES[kind], values)
    }


def clusters(conn: Connection, ids: Collection[str]) -> set[str]:
    """Returns which of some clusters are here."""
    return {row[0] for row in conn.execute(OWNERS, {"owners": list(ids)})}


def write(conn: Connection, kind: str, source: str, written: Written) -> None:
    """Writes a batch in the caller's transaction."""
    if written.whole:
        rows = [
            {**item.row, "spec": raw_text(item.row["spec"]), "status": status, "is_here": is_here}
            for item, status, is_here in written.whole
        ]
        conn.execute(WRITE[kind], {"rows": _json(rows)})
    if written.folded:
        rows = [{"id": item.id, "status": status} for item, status in written.folded]
        conn.execute(UPDATE[kind], {"folded": _json(rows)})
    if written.reports:
        rows = []
        for item, report in written.reports:
            data, metadata = item.texts[report["adapter"]]
            rows.append(
                {"id": item.id, **report, "data": raw_text(data), "metadata": raw_text(metadata)}
            )
        conn.execute(STORE[kind], {"rows": _json(rows)})
    if written.records:
        rows = [
            {
                # An item with refusals is read again each time, so that they are reported again.
                **{"id": item.id, "fingerprint": "" if item.refusals else item.fingerprint},
                "content": item.content,
                **{"generation": item.row["generation"], "updated_time": item.row["updated_time"]},
            }
            for item in written.records
        ]
        conn.execute(RECORD[kind], {"rows": _json(rows), "source": source})


def take_away(
    conn: Connection, kind: str, ids: Sequence[str], before: Collection[str], *, dry: bool
) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Removes, in the caller's transaction, what is gone at the source, and the record of its import.

    :param before: what was removed before, or would have been in a dry run
    :return: the ids of what was removed, and id, name and reason of what was kept
    """
    if not dry and kind == "NodePool":
        conn.execute(LOCK_OWNERS, {"ids": ids})
    gone, missing, kept = [], [], []
    if not dry:
        here(conn, kind, ids, lock=True)
    for id_, name, changed, children, referred in conn.execute(GONE[kind], {"ids": ids}):
        if name is None:
            missing.append(id_)
        elif changed:
            kept.append((id_, name, "it is gone there, and was changed here after the import"))
        elif any(child not in before for child in children):
            kept.append((id_, name, "it is gone there, and something belongs to it here"))
        elif referred:
            kept.append((id_, name, "it is gone there, and something here refers to it"))
        else:
            gone.append(id_)
    if not dry:
        conn.execute(FORGET[kind], {"ids": [*gone, *missing]})
        if gone:
            remove(conn, kind, *gone)
    return gone, kept


def settle(conn: psycopg.Connection[Any], folding: Folding) -> None:
    """Computes anew the statuses of imported clusters that are being deleted: their node pools count."""
    ids = [row[0] for row in conn.execute(MARKED)]
    for start in range(0, len(ids), BATCH):
        with conn.transaction():
            fold_all(conn, "Cluster", ids[start : start + BATCH], folding)


def measure(conn: psycopg.Connection[Any]) -> None:
    """Analyzes the tables: autovacuum takes up to a minute, and until then searches are planned for
    empty tables. Without the privilege, PostgreSQL only warns, which is acceptable.
    """
    conn.execute("ANALYZE clusters, node_pools, adapter_statuses, labels, changes")


def _json(rows: Iterable[Any]) -> str:
    return orjson.dumps(list(rows)).decode()
