"""Marking resources for deletion; :mod:`hyperfleet.resources.removal` does the rest."""

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes import audit
from hyperfleet.changes.audit import Origin
from hyperfleet.database.connection import Connection, Cursor
from hyperfleet.database.statements import transaction
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.kinds import RESOURCES, Key, Kind, PerKind, below, owned, quoted, referrers
from hyperfleet.resources import removal, resource
from hyperfleet.resources.etag import Precondition
from hyperfleet.resources.removal import IDS
from hyperfleet.resources.resource import BATCH, DOCUMENT, Held, Hold, Stored, stored
from hyperfleet.service import Service
from hyperfleet.status.fold import State

MARK: LiteralString = """/* {table}_mark */
WITH changed AS (
    UPDATE {table} SET status = %(status)s, generation = generation + 1, version = version + 1,
        deleted_time = %(at)s, deleted_by = %(by)s, updated_time = %(at)s, updated_by = %(by)s,
        request = %(request)s
    WHERE id = %(id)s RETURNING id, name, generation, tenancy, {document} AS document
)
"""
MARKS = PerKind(MARK + audit.CHANGED + DOCUMENT)

MARK_ALL: LiteralString = """/* {table}_mark_all */
WITH changed AS (
    UPDATE {table} AS resource SET status = marked.status, generation = generation + 1,
        version = version + 1, deleted_by = %(by)s, updated_by = %(by)s, request = %(request)s,
        deleted_time = greatest(updated_time, %(at)s), updated_time = greatest(updated_time, %(at)s)
    FROM jsonb_to_recordset(%(marked)s) AS marked (id uuid, status jsonb)
    WHERE resource.id = marked.id
    RETURNING resource.id, resource.name, resource.generation, resource.tenancy
)
"""
DONE: LiteralString = "SELECT"
MARKS_ALL = PerKind(MARK_ALL + audit.CHANGED + DONE)


# How many resources below one are left, and how many of them are being deleted.
LEFT: LiteralString = """/* {table}_keeping */
SELECT count(*), count(deleted_time) FROM {table} WHERE {owned}
"""

# The resources that prevent a deletion by referring to the resource or to anything below it; the limit
# is one more than the message names. The OFFSETs make it find the references first, then their
# sources: without statistics, the planner would search the references of every possible source.
REFERRING: LiteralString = """/* resource_references_keeping */
SELECT source.kind, source.name, source.id::text, reference.ref_type,
       reference.target_kind, reference.target_id::text
FROM (
    SELECT * FROM resource_references WHERE target_id IN ({tree}) AND source_kind IN ({kinds}) OFFSET 0
) AS reference CROSS JOIN LATERAL (
    SELECT * FROM all_resources WHERE id = reference.source_id OFFSET 0
) AS source
WHERE source.kind = reference.source_kind AND source.deleted_time IS NULL
    AND source.id NOT IN ({tree}) {seen}
LIMIT 4
"""
# Tenants are told which of the referring resources they can see, and how many others there are.
SEEN: LiteralString = "AND source.tenancy @> %(tenancy)s"
UNSEEN: LiteralString = "AND NOT source.tenancy @> %(tenancy)s"
HOW_MANY: LiteralString = """/* resource_references_unseen */
SELECT count(DISTINCT source.id)
""" + REFERRING[REFERRING.index("FROM") :].replace("LIMIT 4", "")
# A resource that is marked together with the target of its reference does not keep that target.
STOP_KEEPING: LiteralString = """/* resource_references_let_go */
UPDATE resource_references SET keeps = false WHERE source_id IN ({tree}) AND target_id IN ({tree})
"""


def mark(service: Service, kind: str, key: Key, precondition: Precondition, origin: Origin) -> Stored:
    """Marks a resource and everything below it for deletion. What no adapter has to finalize is removed
    at once. Repeating it changes nothing. Raises Problem if something below or a reference prevents it.
    """
    with service.turns.of(resource.queue(key)), transaction(service.pool) as conn:
        owners = removal.lock_above(conn, kind, key)
        hold = Hold(conn, kind, key, service.foldings[kind], whole=True)
        under: Key = {**key, "root": kind, "owner_id": None}
        locks = {of.name: resource.lock_below(conn, of.name, under) for of in below(kind)}
        holds = [Hold(conn, of, under, service.foldings[of]) for of in locks]
        left = {of: conn.execute(one, {"ids": [key["id"]]}) for of, one in _restricting(kind).items()}
        referring = [
            conn.execute(one, {**key, "ids": [key["id"]]})
            for one in _referring(kind, scoped="tenancy" in key)
        ]
        held = hold.found()
        old = held.state
        precondition.check(old["version"])
        if old["deleted_time"]:
            if referrers(kind) and held.ended():
                # The request that removed the last referring resource did not get to look again.
                lines = [*owners(), (kind, old["id"])]
                removal.settle(conn, lines, times.now(), service.foldings)
            return Stored(old["document"], old["version"])
        for restricting, found in left.items():
            _refuse_while_left(kind, restricting, found.fetchone())
        if referring:
            rows, *others = [found.fetchall() for found in referring]
            _refuse_while_referred(kind, old, rows, others[0][0][0] if others else 0)
        for statement in _no_longer_keeping(kind):
            conn.execute(statement, {"ids": [key["id"]]})
        at = max(times.now(), old["updated_time"])
        marked, gone, fewer = _mark_below(conn, locks, holds, at, origin)
        held = held._replace(children=held.children - fewer[old["id"]])
        generation = old["generation"] + 1
        status = held.fold(at, generation=generation, deleted_time=at, updated_time=at)
        values = {"id": old["id"], "status": Jsonb(status), "at": at, "action": "delete"}
        changed = conn.execute(MARKS[kind], {**values, **origin.values()})
        if held.ended(generation):
            removal.remove(conn, kind, old["id"], origin=origin)
            gone.append((kind, old["id"]))
    service.events.started(kind, deleting=True)
    for below_kind in marked:
        service.events.started(below_kind, deleting=True)
    removal.log_removed(gone)
    removal.finish_targets(service, gone)
    return stored(changed, old["version"] + 1)


@functools.cache
def _restricting(kind: str) -> dict[Kind, LiteralString]:
    """Returns the kinds below a kind that prevent its deletion, and the statements that count them."""
    return {
        of: LEFT.format(table=of.table, owned=owned(of.name, kind, IDS))
        for of in below(kind)
        if of.restrict
    }


def _refuse_while_left(kind: str, restricting: Kind, row: Any) -> None:
    """Raises Problem if resources are left that prevent the deletion."""
    count, marked = row
    if not count:
        return
    are = "is" if count == 1 else "are"
    which = f", {marked} of them already being deleted" if marked else ""
    raise Problem(
        WRONG_STATE,
        f"The {RESOURCES[kind].noun} cannot be deleted while {count} of its {restricting.segment} {are} "
        f"left{which}. Delete its {restricting.segment} first.",
    )


@functools.cache
def _referring(kind: str, *, scoped: bool) -> list[LiteralString]:
    """Returns the statements that find what refers to a resource or below it; empty if no kind can.

    :param scoped: whether the caller belongs to a tenant; a second statement then counts the referring
        resources that the caller cannot see
    """
    sources = referrers(kind, *(of.name for of in below(kind)))
    if not sources:
        return []
    tree, kinds = removal.tree(kind), quoted(of.name for of in sources)
    if not scoped:
        return [REFERRING.format(tree=tree, kinds=kinds, seen="")]
    return [
        REFERRING.format(tree=tree, kinds=kinds, seen=SEEN),
        HOW_MANY.format(tree=tree, kinds=kinds, seen=UNSEEN),
    ]


@functools.cache
def _no_longer_keeping(kind: str) -> list[LiteralString]:
    """Returns the statements that keep resources deleted together from waiting for each other."""
    names = [kind, *(of.name for of in below(kind))]
    together = any(of.name in names for of in referrers(*names))
    return [STOP_KEEPING.format(tree=removal.tree(kind, marked=False))] if together else []


def _refuse_while_referred(kind: str, old: State, rows: list[Any], unseen: int) -> None:
    """Raises Problem if other resources refer to a resource or to anything below it.

    :param rows: the referring resources that the caller can see
    :param unseen: how many others there are
    """
    if not rows and not unseen:
        return
    told = []
    for source, name, id_, type_, target, target_id in rows[:3]:
        what = "it" if target_id == old["id"] else f"its {RESOURCES[target].noun} {target_id}"
        told.append(f"the {RESOURCES[source].noun} {name} ({id_}) refers to {what} as {type_}")
    more = ", and there are others" if len(rows) > len(told) else ""
    if unseen:
        refer = "1 resource that you cannot see refers"
        if unseen > 1:
            refer = f"{unseen} resources that you cannot see refer"
        told.append(f"{refer} to it or to resources below it")
    raise Problem(
        WRONG_STATE,
        f"The {RESOURCES[kind].noun} cannot be deleted: {', '.join(told)}{more}. Change or "
        "delete what refers to it first.",
    )


def _mark_below(
    conn: Connection, locks: Mapping[str, Cursor], holds: list[Hold], at: str, origin: Origin
) -> tuple[list[str], list[tuple[str, str]], Counter[str]]:
    """Marks everything below a resource along with it, in batches from the bottom up.

    :param locks: by kind, parents first, the ids of the locked resources
    :param holds: for each kind, its first batch
    :returns: the kind of each marked resource; the kind and id of each that was removed at once instead;
        and, by the id of the owner, how many of its resources were removed
    """
    marked: list[str] = []
    gone: list[tuple[str, str]] = []
    fewer = Counter[str]()
    for hold in reversed(holds):
        ids = [id_ for (id_,) in locks[hold.kind]]
        # They were read before the resources below them were removed.
        batch = [held._replace(children=held.children - fewer[held.state["id"]]) for held in hold.all()]
        for start in range(0, len(ids), BATCH):
            if start:
                some: Key = {"ids": ids[start : start + BATCH]}
                batch = Hold(conn, hold.kind, some, hold.folding).all()
            ended = _mark_some(conn, hold.kind, batch, at, origin)
            for state in ended:
                fewer[state["owner_id"]] += 1
                gone.append((hold.kind, state["id"]))
            marked += [hold.kind] * (len(batch) - len(ended))
    return marked, gone, fewer


def _mark_some(conn: Connection, kind: str, batch: list[Held], at: str, origin: Origin) -> list[Any]:
    """Marks a batch of a kind, or removes them at once; returns the states of those removed."""
    statuses: list[dict[str, Any]] = []
    ended: list[Any] = []
    for held in batch:
        state: Any = held.state
        # A recent change by another replica may be ahead of this replica's clock.
        moment = max(at, state["updated_time"])
        generation = state["generation"] + 1
        if held.ended(generation):
            ended.append(state)
            continue
        status = held.fold(at, generation=generation, updated_time=moment, deleted_time=moment)
        statuses.append({"id": state["id"], "status": status})
    if statuses:
        values = {"marked": Jsonb(statuses), "at": at, "action": "delete", **origin.values()}
        conn.execute(MARKS_ALL[kind], values)
    if ended:
        removal.remove(conn, kind, *(state["id"] for state in ended), origin=origin)
    return ended
