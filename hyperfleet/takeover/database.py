"""Reads the database of an original, that of December 2025 or the newest, without writing to it."""

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hyperfleet.database import connection
from hyperfleet.errors import StartError
from hyperfleet.kinds import NATIVE
from hyperfleet.takeover.rows import BATCH, Raw, Refusal

COLUMNS = """
SELECT table_name::text, array_agg(column_name::text) FROM information_schema.columns
WHERE table_schema = ANY(current_schemas(false)) GROUP BY table_name
"""
# Tables with columns that the role may not read: their content would be missing without notice.
HIDDEN = """
SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(current_schemas(false)) AND c.relname = ANY(%s)
  AND EXISTS (SELECT 1 FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0
              AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT'))
ORDER BY c.relname
"""
BESIDE = ["resource_conditions", "resource_labels", "resource_references"]
# The columns that distinguish the original's tables from any others, such as those of this service.
FIRST = {
    "clusters": {"id", "name", "spec", "labels", "generation", "created_time", "updated_time"},
    "node_pools": {"id", "name", "spec", "labels", "generation", "owner_id", "updated_time"},
    "adapter_statuses": {"resource_type", "resource_id", "adapter", "conditions", "last_report_time"},
}
NEWEST = {
    "resources": {"id", "kind", "name", "spec", "generation", "owner_id", "deleted_time"},
    "adapter_statuses": FIRST["adapter_statuses"],
}
# Roles that may not run the first can still run the second, which identifies a database of a server.
SYSTEM = "SELECT system_identifier::text FROM pg_control_system()"
OID = "SELECT oid::text FROM pg_database WHERE datname = current_database()"
USED = "SELECT EXISTS (SELECT FROM resources WHERE kind IN ('Cluster', 'NodePool'))"

TABLES: dict[str, dict[str, LiteralString]] = {
    "first": {"Cluster": "clusters AS t WHERE ", "NodePool": "node_pools AS t WHERE "},
    "newest": {
        "Cluster": "resources AS t WHERE kind = 'Cluster' AND ",
        "NodePool": "resources AS t WHERE kind = 'NodePool' AND ",
    },
}
# In older schemas, this column is set for resources that are deleted for good; gorm never shows them.
VISIBLE: dict[bool, LiteralString] = {True: "t.deleted_at IS NULL", False: "true"}
# Resources that are being deleted come last, since another may have the same name.
ORDER: dict[bool, LiteralString] = {
    True: " ORDER BY t.deleted_time IS NOT NULL, t.id",
    False: " ORDER BY t.id",
}
LABELS: dict[bool, LiteralString] = {
    True: "(SELECT jsonb_object_agg(key, value) FROM resource_labels AS l WHERE l.resource_id = t.id)",
    False: "t.labels",
}
COUNT: LiteralString = "SELECT count(*) FROM {shown}"
IDS: LiteralString = "SELECT t.id FROM {shown}"
CHILDREN: LiteralString = (
    "SELECT t.owner_id, count(*) FROM {shown} AND t.owner_id = ANY(%s) GROUP BY t.owner_id"
)
ROWS: LiteralString = """
SELECT t.id, ((to_jsonb(t) - %(apart)s::text[])
              || jsonb_build_object('labels', {labels}, 'conditions', {conditions}))::text,
       t.spec::text, to_jsonb(t) ->> 'deleted_time' IS NOT NULL
FROM {shown}
"""
# In a table of their own; older schemas have them in a column, or not at all.
CONDITIONS: LiteralString = (
    "(SELECT jsonb_agg(to_jsonb(c) ORDER BY type) FROM resource_conditions AS c "
    "WHERE c.resource_id = t.id)"
)
# Columns that are read separately, or whose content is computed here.
APART = ["spec", "labels", "status_conditions", "status_adapters"]
# Resources that have changed since a time, or must be read again. Changes become visible only when they
# are committed, and their times come from clients and various clocks, hence the two minutes.
CHANGED: LiteralString = """
 AND (t.updated_time >= %(since)s::timestamptz - interval '2 minutes' OR t.id = ANY(%(again)s)
      OR t.id IN (SELECT resource_id FROM adapter_statuses
                  WHERE greatest(created_time, updated_time, last_report_time)
                        >= %(since)s::timestamptz - interval '2 minutes'))
"""
REPORTS: LiteralString = """
SELECT resource_id, (to_jsonb(t) - '{data,metadata}'::text[])::text, t.data::text, t.metadata::text
FROM adapter_statuses AS t
WHERE resource_type = %(kind)s AND resource_id = ANY(%(ids)s)
  AND {visible}
ORDER BY adapter
"""
OTHERS = """
SELECT kind, id, name, 'this service knows no such kind' FROM resources
WHERE kind NOT IN ('Cluster', 'NodePool')
ORDER BY kind, id
"""
REFERENCES = """
SELECT 'reference', source_id, ref_type, 'references are not kept: ' || target_kind || ' ' || target_id
FROM resource_references JOIN resources AS t ON t.id = source_id
WHERE t.kind IN ('Cluster', 'NodePool') ORDER BY source_id, ref_type
"""


class Shape(NamedTuple):
    """Which of the originals created a database.

    :param name: ``first`` or ``newest``
    :param columns: the columns of each table
    """

    name: str
    columns: dict[str, set[str]]

    def has(self, kind: str, column: str) -> bool:
        """Whether the table of a kind has a column."""
        table = "resources" if self.name == "newest" else NATIVE[kind].table
        return column in self.columns[table]


class Database:
    """The database of an original.

    After the first look, ``identity`` identifies it from one run to the next, without any secret, and
    ``certain`` tells whether no other database can have that identity.

    :param conninfo: how to connect to it
    """

    def __init__(self, conninfo: str) -> None:
        given = conninfo_to_dict(conninfo)
        options = f"{given.get('options') or ''} -c default_transaction_read_only=on".strip()
        self._conninfo = make_conninfo(
            **{"connect_timeout": "10", "application_name": "hyperfleet-import", **given}  # type: ignore[arg-type]
        )
        self._read_only = make_conninfo(self._conninfo, options=options)
        self.name = connection.describe(conninfo)
        self.shape = Shape("", {})
        self.identity, self.certain = self.name, False

    def open(self, target: psycopg.Connection[Any]) -> str:
        """Finds out which original created it; returns the source in words.

        Raises StartError if none did, if it is the target itself, or if the role may not read all of it.
        """
        with self._snapshot() as conn:
            if self._same(conn, target):
                raise StartError("The database to import from is this service's own.")
            columns = {table: set(names) for table, names in conn.execute(COLUMNS)}
            newest = _fits(columns, NEWEST) and (
                not _fits(columns, FIRST) or conn.execute(USED).fetchone() == (True,)
            )
            if not newest and not _fits(columns, FIRST):
                tables = ", ".join(sorted(columns)) or "none that this role may see"
                raise StartError(
                    f"{self.name} is not a database of the original: it should have the tables "
                    "clusters, node_pools and adapter_statuses, or resources and adapter_statuses, with "
                    f"the original's columns. Tables found: {tables}."
                )
            hidden = [table for (table,) in conn.execute(HIDDEN, [BESIDE if newest else []])]
            if hidden:
                raise StartError(
                    f"The role may not read all of {self.name}; it lacks SELECT on {', '.join(hidden)}."
                )
        self.shape = Shape("newest" if newest else "first", columns)
        found = "resources" if newest else "clusters, node_pools"
        return f"the database {self.name} (tables {found}, adapter_statuses)"

    @contextmanager
    def look(self, since: str | None, again: Collection[str]) -> Iterator["Look"]:
        """Yields a look at one snapshot.

        :param since: only what has changed since then; None means everything
        :param again: the ids, at the source, of what is read in any case
        """
        with self._snapshot() as conn:
            self._identify(conn)
            yield Look(conn, self.shape, since, again)

    @contextmanager
    def _snapshot(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            conn = connection.connect(self._read_only)
        except psycopg.OperationalError as error:
            # Poolers do not accept options; the transactions are read-only anyway.
            if "startup parameter" not in str(error):
                raise
            conn = connection.connect(self._conninfo)
        with conn:
            conn.autocommit = False
            conn.read_only = True
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            # The session is idle while a batch is stored here.
            connection.lasting(conn)
            yield conn
            conn.rollback()

    def _identify(self, conn: psycopg.Connection[Any]) -> None:
        """Identifies the database regardless of its address, where another may be one day."""
        try:
            with conn.transaction():
                server = conn.execute(SYSTEM).fetchone()
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction):
            server = None
        oid = conn.execute(OID).fetchone()
        assert oid is not None
        self.certain = server is not None
        self.identity = f"{server[0] if server else self.name}/{oid[0]}"

    @staticmethod
    def _same(conn: psycopg.Connection[Any], target: psycopg.Connection[Any]) -> bool:
        """Whether both are the same database: a lock taken in one is visible in the other."""
        high, low = secrets.randbits(31), secrets.randbits(31)
        seen = (
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s "
            "AND objid = %s AND database = (SELECT oid FROM pg_database "
            "WHERE datname = current_database()))"
        )
        with target.transaction():
            target.execute("SELECT pg_advisory_xact_lock(%s, %s)", [high, low])
            return conn.execute(seen, [high, low]).fetchone() == (True,)


class Look:
    """A view of one snapshot; ``at`` is its time by the source's clock."""

    def __init__(
        self, conn: psycopg.Connection[Any], shape: Shape, since: str | None, again: Collection[str]
    ) -> None:
        self._conn, self._shape = conn, shape
        self._values = {"since": since, "again": list(again), "apart": APART}
        row = conn.execute("SELECT now()::text").fetchone()
        assert row is not None
        self.at: str = row[0]
        changed: LiteralString = CHANGED if since else ""
        self._from: dict[str, LiteralString] = {kind: self._shown(kind) + changed for kind in NATIVE}

    def count(self, kind: str) -> int:
        """Returns the number of resources of a kind to read."""
        statement: LiteralString = COUNT.replace("{shown}", self._from[kind])
        row = self._conn.execute(statement, self._values).fetchone()
        assert row is not None
        return int(row[0])

    def ids(self, kind: str, *, anew: bool = False) -> set[str]:
        """Returns the ids of all resources of a kind; in a snapshot, they are always the same."""
        statement: LiteralString = IDS.replace("{shown}", self._shown(kind))
        return {row[0] for row in self._conn.execute(statement)}

    def batches(self, kind: str) -> Iterator[list[Raw]]:
        """Yields the resources of a kind with their reports; those that are being deleted come last."""
        apart = self._shape.name == "newest" and "resource_labels" in self._shape.columns
        order = ORDER[self._shape.has(kind, "deleted_time")]
        conditions = CONDITIONS if "resource_conditions" in self._shape.columns else "NULL::jsonb"
        if self._shape.has(kind, "status_conditions"):
            conditions = "t.status_conditions"
        statement: LiteralString = ROWS.replace("{labels}", LABELS[apart])
        statement = statement.replace("{conditions}", conditions)
        statement = statement.replace("{shown}", self._from[kind]) + order
        with self._conn.cursor(name="resources") as cursor:
            cursor.itersize = BATCH
            cursor.execute(statement, self._values)
            while rows := cursor.fetchmany(BATCH):
                yield self._whole(kind, rows)

    def others(self) -> Iterator[Refusal]:
        """Yields what the source has besides clusters and node pools, and why it is left out."""
        if self._shape.name == "newest":
            yield from map(Refusal._make, self._conn.execute(OTHERS))
            if "resource_references" in self._shape.columns:
                yield from map(Refusal._make, self._conn.execute(REFERENCES))

    def _whole(self, kind: str, rows: list[tuple[Any, ...]]) -> list[Raw]:
        ids = [id_ for id_, *_ in rows]
        reports: dict[str, list[Any]] = {}
        hidden = "deleted_at" in self._shape.columns["adapter_statuses"]
        statement: LiteralString = REPORTS.replace("{visible}", VISIBLE[hidden])
        for id_, *texts in self._conn.execute(statement, {"kind": kind, "ids": ids}):
            reports.setdefault(id_, []).append(tuple(texts))
        marked = [id_ for id_, *_, deleted in rows if deleted]
        children: dict[str, int] = {}
        if kind == "Cluster" and marked:
            statement = CHILDREN.replace("{shown}", self._shown("NodePool"))
            children = dict(self._conn.execute(statement, [marked]))
        return [
            Raw(kind, id_, members, spec, reports.get(id_, []), children.get(id_, 0))
            for id_, members, spec, _ in rows
        ]

    def _shown(self, kind: str) -> LiteralString:
        return TABLES[self._shape.name][kind] + VISIBLE[self._shape.has(kind, "deleted_at")]


def _fits(columns: dict[str, set[str]], wanted: dict[str, set[str]]) -> bool:
    return all(names <= columns.get(table, set()) for table, names in wanted.items())
