"""From the first change to the end: patch, delete, finalize, force-delete; for both kinds.

The order of locks, which keeps two transactions from waiting for each other: whoever marks or
removes a node pool, or takes a report on one that is marked, holds the lock on its cluster first;
whoever locks several of a kind locks them in the order of their ids.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, LiteralString

import flask
import json_merge_patch
from psycopg.types.json import Jsonb

from hyperfleet import aggregation, database, projection, resource, times
from hyperfleet.database import Connection
from hyperfleet.errors import INVALID, WRONG_STATE, Fault, Problem, with_value
from hyperfleet.identity import caller
from hyperfleet.kinds import RESOURCES
from hyperfleet.resource import both

logger = logging.getLogger(__name__)

LOCK = both("""
SELECT id::text, name, generation, version, labels, spec, status, document,
       hyperfleet_time(created_time), hyperfleet_time(updated_time),
       hyperfleet_time(deleted_time)
FROM {table} WHERE id = %(id)s {under} FOR NO KEY UPDATE
""")
ROW = (
    "id", "name", "generation", "version", "labels", "spec", "status", "document",
    "created_time", "updated_time", "deleted_time",
)  # fmt: skip

# Statements of their own: one that waited for a lock would see what was there before the wait.
REPORTS = """
SELECT adapter, observed_generation, conditions,
       hyperfleet_time(created_time), hyperfleet_time(last_report_time)
FROM adapter_statuses WHERE owner_type = %(kind)s AND owner_id = %(id)s
"""
REPORT = ("adapter", "observed_generation", "conditions", "created_time", "last_report_time")

CHILDREN = "SELECT count(*) FROM node_pools WHERE owner_id = %(id)s"

# The cluster of a node pool, which never changes.
OWNER = both("""
SELECT id::text FROM clusters WHERE id = (
    SELECT owner_id FROM {table} WHERE id = %(id)s {under}
) FOR NO KEY UPDATE
""")["NodePool"]

CHANGE = both("""
WITH dropped AS (
    DELETE FROM labels
    WHERE owner_type = '{kind}' AND owner_id = %(id)s AND NOT %(labels)s::jsonb ? key
), kept AS (
    INSERT INTO labels (owner_type, owner_id, key, value, created_time)
    SELECT '{kind}', %(id)s, label.key, label.value, %(created_time)s
    FROM jsonb_each_text(%(labels)s::jsonb) AS label
    ON CONFLICT (owner_type, owner_id, key) DO UPDATE SET value = excluded.value
)
UPDATE {table} SET labels = %(labels)s, spec = %(spec)s, status = %(status)s,
    generation = generation + 1, version = version + 1,
    updated_time = %(at)s, updated_by = %(by)s
WHERE id = %(id)s RETURNING document
""")

MARK = both("""
UPDATE {table} SET status = %(status)s, generation = generation + 1, version = version + 1,
    deleted_time = %(at)s, deleted_by = %(by)s, updated_time = %(at)s, updated_by = %(by)s
WHERE id = %(id)s RETURNING document
""")

SET_STATUS = both("UPDATE {table} SET status = %(status)s, version = version + 1 WHERE id = %(id)s")

# Whoever locks several node pools locks them in this order.
LOCK_POOLS = "SELECT 1 FROM node_pools WHERE owner_id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE"

# The node pools that a deletion reaches, each with its reports.
POOLS = """
SELECT pool.id::text, pool.generation, pool.status, hyperfleet_time(pool.created_time),
       hyperfleet_time(pool.updated_time),
       (SELECT coalesce(jsonb_agg(report.document::jsonb), '[]') FROM adapter_statuses AS report
        WHERE report.owner_type = 'NodePool' AND report.owner_id = pool.id)
FROM node_pools AS pool WHERE pool.owner_id = %(id)s AND pool.deleted_time IS NULL
"""
MARK_POOLS = """
UPDATE node_pools AS pool SET status = marked.status, generation = generation + 1,
    version = version + 1, deleted_by = %(by)s, updated_by = %(by)s,
    deleted_time = greatest(updated_time, %(at)s), updated_time = greatest(updated_time, %(at)s)
FROM jsonb_to_recordset(%(pools)s) AS marked (id uuid, status jsonb) WHERE pool.id = marked.id
"""

# The rows of an owner and all that belongs to it; labels and reports have no foreign key to follow.
REMOVE: LiteralString = """
WITH pools AS (
    DELETE FROM node_pools WHERE id = ANY(%(ids)s) OR owner_id = ANY(%(ids)s) RETURNING id
), gone AS (
    SELECT id FROM pools UNION SELECT unnest(%(ids)s::uuid[])
), reports AS (
    DELETE FROM adapter_statuses USING gone
    WHERE owner_type IN ('Cluster', 'NodePool') AND owner_id = gone.id
)
DELETE FROM labels USING gone WHERE owner_type IN ('Cluster', 'NodePool') AND owner_id = gone.id
"""
# After its node pools, in a statement of its own: the foreign key is checked at each one's end.
REMOVE_CLUSTERS = "DELETE FROM clusters WHERE id = ANY(%(ids)s)"

AUDIT = """
INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, document)
SELECT %(at)s, %(by)s, 'force-delete', %(reason)s, gone.kind, gone.id, gone.document
FROM (
    SELECT 'Cluster' AS kind, id, document FROM clusters WHERE id = %(id)s
    UNION ALL
    SELECT 'NodePool', id, document FROM node_pools WHERE id = %(id)s OR owner_id = %(id)s
) AS gone
RETURNING resource_type, resource_id::text
"""


def reports_of(rows: Any) -> list[dict[str, Any]]:
    """The reports that the statement ``REPORTS`` found, as the fold takes them."""
    return [dict(zip(REPORT, row, strict=True)) for row in rows]


def remove(conn: Connection, *ids: str) -> None:
    """Removes resources for good, with all that belongs to them. The caller holds their locks."""
    conn.execute(LOCK_POOLS, {"ids": list(ids)})
    conn.execute(REMOVE, {"ids": list(ids)})
    conn.execute(REMOVE_CLUSTERS, {"ids": list(ids)})


def patch(kind: str, values: dict[str, Any], body: Mapping[str, Any]) -> flask.Response:
    """Changes labels and spec of a resource; a patch that changes nothing changes nothing.

    :param values: ``id``, and ``owner_id`` of a node pool
    :param body: members replace those of the resource, or are merged into them (RFC 7396) when they
        came as ``application/merge-patch+json``
    Raises Problem for a result that could not have been created.
    """
    shape = projection.asked(kind)
    with database.transaction() as conn:
        found = conn.execute(LOCK[kind], values)
        stored = conn.execute(REPORTS, {"kind": kind, **values})
        old = _found(kind, values, found)
        resource.require_match(old["version"])
        _refuse_other_names(kind, old, body)
        if old["deleted_time"]:
            raise Problem(
                WRONG_STATE, f"The {RESOURCES[kind].noun} is being deleted; it cannot be changed."
            )
        before = {"labels": old["labels"], "spec": old["spec"]}
        given = {name: body[name] for name in before if name in body}
        after = {**before, **given}
        if flask.request.mimetype == "application/merge-patch+json":
            after = {"labels": {}, **json_merge_patch.merge(copy.deepcopy(before), given)}
        if _same(before, after):
            return resource.shaped(shape, old["document"], ETag=resource.etag(old["version"]))
        # Labels of before their syntax was checked may stay as they are.
        labels = after["labels"] if after["labels"] != old["labels"] else {}
        resource.check(kind, {"name": old["name"], **after, "labels": labels})
        at = max(times.now(), old["updated_time"])
        state = {**old, "generation": old["generation"] + 1, "updated_time": at}
        status = aggregation.fold(
            state, reports_of(stored), old["status"], resource.required_adapters(kind), at
        )
        new = {"labels": Jsonb(after["labels"]), "spec": Jsonb(after["spec"]), "status": Jsonb(status)}
        changed = conn.execute(
            CHANGE[kind],
            {**values, **new, "created_time": old["created_time"], "at": at, "by": caller()},
        )
    return resource.shaped(shape, _document(changed), ETag=resource.etag(old["version"] + 1))


def delete(kind: str, values: dict[str, Any]) -> flask.Response:
    """Marks a resource as deleted, and with a cluster its node pools; removes at once what nobody has
    to finalize. Marking it again changes nothing.
    """
    required = resource.required_adapters(kind)
    shape = projection.asked(kind)
    with database.transaction() as conn:
        if kind == "NodePool":
            conn.execute(OWNER, values)
        found = conn.execute(LOCK[kind], values)
        stored = conn.execute(REPORTS, {"kind": kind, **values})
        conn.execute(LOCK_POOLS, {"ids": [values["id"]]})
        pools = conn.execute(POOLS, values)
        children = conn.execute(CHILDREN, values)
        old = _found(kind, values, found)
        resource.require_match(old["version"])
        if old["deleted_time"]:
            tag = resource.etag(old["version"])
            return resource.shaped(shape, old["document"], 202, ETag=tag)
        at, by = max(times.now(), old["updated_time"]), caller()
        left = _scalar(children)
        if kind == "Cluster":
            left -= _mark_pools(conn, pools.fetchall(), at, by)
        reports = reports_of(stored)
        generation = old["generation"] + 1
        state = {**old, "generation": generation, "deleted_time": at, "updated_time": at}
        status = aggregation.fold(state, reports, old["status"], required, at, left)
        marked = conn.execute(MARK[kind], {**values, "status": Jsonb(status), "at": at, "by": by})
        if not left and aggregation.all_finalized(state["generation"], reports, required):
            remove(conn, old["id"])
    return resource.shaped(shape, _document(marked), 202, ETag=resource.etag(old["version"] + 1))


def force_delete(kind: str, values: dict[str, Any], reason: str) -> flask.Response:
    """Removes a marked resource, its node pools and reports now, and records who did it and why."""
    at, by = times.now(), caller()
    with database.transaction() as conn:
        owner = conn.execute(OWNER, values) if kind == "NodePool" else None
        old = _found(kind, values, conn.execute(LOCK[kind], values))
        if not old["deleted_time"]:
            noun = RESOURCES[kind].noun
            raise Problem(
                WRONG_STATE,
                f"The {noun} is not being deleted. DELETE it first; only what is being deleted can be "
                "forced out.",
            )
        gone = conn.execute(AUDIT, {**values, "at": at, "by": by, "reason": reason})
        remove(conn, old["id"])
        if owner:
            settle(conn, _document(owner), at, resource.required_adapters("Cluster"))
    for gone_kind, gone_id in gone:
        logger.warning("%s %s removed by force by %s: %r", gone_kind, gone_id, by, reason)
    return resource.empty(204)


def settle(conn: Connection, cluster_id: str, at: str, required: Sequence[str]) -> None:
    """Folds a marked cluster once more after one of its node pools is gone, or removes it when that
    was the last thing to wait for. The caller holds the cluster's lock.
    """
    values = {"kind": "Cluster", "id": cluster_id}
    found = conn.execute(LOCK["Cluster"], values)
    stored = conn.execute(REPORTS, values)
    children = conn.execute(CHILDREN, values)
    row = found.fetchone()
    old = dict(zip(ROW, row, strict=True)) if row else None
    if not old or not old["deleted_time"]:
        return
    reports, left = reports_of(stored), _scalar(children)
    if not left and aggregation.all_finalized(old["generation"], reports, required):
        remove(conn, cluster_id)
        return
    status = aggregation.fold(old, reports, old["status"], required, at, left)
    if status != old["status"]:
        conn.execute(SET_STATUS["Cluster"], {**values, "status": Jsonb(status)})


def finish(conn: Connection, kind: str, id_: str, required: Callable[[str], Sequence[str]]) -> None:
    """Removes a marked resource for which nobody has to do anything any more, and then maybe the
    cluster that waits for it. Runs in the caller's transaction.

    :param required: gives the required adapters of a kind
    """
    at = times.now()
    if kind == "NodePool":
        owner = conn.execute("SELECT owner_id::text FROM node_pools WHERE id = %s", [id_]).fetchone()
        values = {"kind": kind, "id": id_, "owner_id": owner[0] if owner else id_}
        conn.execute(OWNER, values)
        row = conn.execute(LOCK[kind], values).fetchone()
        reports = reports_of(conn.execute(REPORTS, values))
        old = dict(zip(ROW, row, strict=True)) if row else None
        if (
            not old
            or not old["deleted_time"]
            or not aggregation.all_finalized(old["generation"], reports, required(kind))
        ):
            return
        remove(conn, id_)
        id_ = values["owner_id"]
    settle(conn, id_, at, required("Cluster"))


def _mark_pools(conn: Connection, pools: list[Any], at: str, by: str) -> int:
    """Marks node pools along with their cluster; returns how many were removed at once instead."""
    required = resource.required_adapters("NodePool")
    marked, gone = [], []
    for id_, generation, previous, created_time, updated_time, reports in pools:
        # A node pool of a moment ago may be newer than the clock of this replica says.
        moment = max(at, updated_time)
        state = {
            "generation": generation + 1,
            "created_time": created_time,
            "updated_time": moment,
            "deleted_time": moment,
        }
        if aggregation.all_finalized(state["generation"], reports, required):
            gone.append(id_)
        else:
            status = aggregation.fold(state, reports, previous, required, at)
            marked.append({"id": id_, "status": status})
    if marked:
        conn.execute(MARK_POOLS, {"pools": Jsonb(marked), "at": at, "by": by})
    if gone:
        remove(conn, *gone)
    return len(gone)


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal as PostgreSQL sees it: numbers by value, and none is a boolean,
    whereas Python holds 1 and true to be equal.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _found(kind: str, values: Mapping[str, Any], cursor: Any) -> dict[str, Any]:
    row = cursor.fetchone()
    if row is None:
        raise resource.not_found(kind, values["id"])
    return dict(zip(ROW, row, strict=True))


def _document(cursor: Any) -> str:
    """The one text that a statement returned."""
    return str(cursor.fetchone()[0])


def _scalar(cursor: Any) -> int:
    return int(cursor.fetchone()[0])


def _refuse_other_names(kind: str, old: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    is_ = {"kind": kind, "id": old["id"], "name": old["name"]}
    faults: list[Fault] = [
        with_value(
            {"field": name, "message": f"cannot be changed; it is {value}", "constraint": "immutable"},
            body[name],
        )
        for name, value in is_.items()
        if body.get(name) is not None and body[name] != value
    ]
    if faults:
        raise Problem(INVALID, faults=faults)
