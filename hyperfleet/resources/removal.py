"""Removing resources: once no adapter has to finalize them any more, or by force.

For the order of locks, see :mod:`hyperfleet.resources.resource`.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes import audit
from hyperfleet.changes.audit import UNASKED, Origin
from hyperfleet.database.connection import Connection
from hyperfleet.database.statements import transaction
from hyperfleet.engine.greenlets import breathe
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.kinds import ONLY, RESOURCES, Key, Kind, PerKind, above, below, owned, quoted, referrers
from hyperfleet.resources.resource import SET_STATUS, Hold, not_found, queue
from hyperfleet.service import Service
from hyperfleet.status.conditions import Folding

logger = logging.getLogger(__name__)

# The reason of a removal that was not forced.
ENDED = "finalized"
# How many ids a statement gets, and how many lines are logged at a time; others are served in between.
PORTION = 100

# The owner of a resource, and the owner's owner; neither ever changes.
OWNER_OF = PerKind("SELECT owner_id FROM {table} WHERE id = %(id)s {under} {only} {scope}")
OWNERS_OWNER: LiteralString = "SELECT owner_id FROM {table} WHERE id = ({inner})"
LOCK_OWNER: LiteralString = """/* {table}_lock_owner */
SELECT id::text FROM {table} WHERE id = ({inner}) FOR NO KEY UPDATE
"""

# Everyone locks several rows in this order.
LOCK_BELOW: LiteralString = """/* {table}_lock_all */
SELECT id::text FROM {table} WHERE {owned} ORDER BY id FOR UPDATE
"""

# Labels and reports have no foreign key that would cascade.
REMOVE: LiteralString = """/* {table}_remove */
WITH gone AS (
    DELETE FROM {table} WHERE id = ANY(%(ids)s)
    RETURNING id, name, generation, tenancy, {document} AS document
), reports AS (
    DELETE FROM adapter_statuses USING gone
    WHERE owner_type = '{kind}' AND owner_id = gone.id
){recorded}
DELETE FROM labels USING gone WHERE owner_type = '{kind}' AND owner_id = gone.id
"""

# The same for kinds that others may refer to; it also removes the references to them.
REMOVE_REFERRED: LiteralString = REMOVE.replace(
    "), reports AS (",
    """), referring AS (
    DELETE FROM resource_references USING gone WHERE target_id = gone.id
), reports AS (""",
)
# Locks a resource, what is below it, its owners, and what refers to any of them. Updating a node pool
# twice in a transaction makes the foreign key lock its cluster's key; this lock does not block that.
LOCK_AROUND: LiteralString = """/* {table}_lock_around */
SELECT 1 FROM {table} WHERE id IN ({ids}) {only} ORDER BY {order} id FOR NO KEY UPDATE
"""
# Kinds in the same table are locked kind by kind, too.
KIND_BY_KIND: LiteralString = "array_position(ARRAY[{kinds}], kind),"
GIVEN: LiteralString = "SELECT unnest(%(ids)s::uuid[])"
OF_KIND: LiteralString = "SELECT id FROM {table} WHERE {which}"
SOURCES: LiteralString = "SELECT source_id FROM resource_references WHERE target_id IN ({tree})"
# Resources that refer to one removed by force are being deleted themselves. Their removal does not have
# to wait until adapters have seen this change, so the generation stays.
LET_GO: LiteralString = """/* {table}_let_go */
UPDATE {table} AS source SET version = version + 1, refs = (
    SELECT jsonb_object_agg(kept.type, kept.references) FROM (
        SELECT of.key AS type, jsonb_agg(one.value ORDER BY one.position) AS references
        FROM jsonb_each(source.refs) AS of,
             jsonb_array_elements(of.value) WITH ORDINALITY AS one (value, position)
        WHERE (one.value ->> 'id')::uuid NOT IN ({tree})
        GROUP BY of.key
    ) AS kept
) WHERE id IN ({sources}) {only}
"""
# Deletes the references of removed resources, and returns the targets that may have waited for that. A
# reference that is locked is skipped: whoever holds the lock is removing its target.
LEFT = """/* resource_references_left */
WITH free AS (
    SELECT source_id, ref_type, target_id FROM resource_references
    WHERE source_id = ANY(%(ids)s::uuid[]) FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM resource_references AS reference USING free
    WHERE reference.source_id = free.source_id AND reference.ref_type = free.ref_type
        AND reference.target_id = free.target_id
    RETURNING reference.target_kind, reference.target_id
)
SELECT DISTINCT target.kind, target.id::text FROM gone JOIN all_resources AS target
    ON target.id = gone.target_id AND target.kind = gone.target_kind
WHERE target.deleted_time IS NOT NULL AND target.kind = ANY(%(kinds)s)
"""

HEARD = "/* heard */ SELECT 1"

IDS: LiteralString = "%(ids)s::uuid[]"

THERE = PerKind("""/* {table}_seen */
SELECT 1 FROM {table} WHERE id = %(id)s {under} {only} {scope}
""")


@functools.cache
def _owners(kind: str, *, scoped: bool) -> list[tuple[str, LiteralString]]:
    """Returns the kinds above a kind, root first, each with the statement that locks the owner.

    :param scoped: whether the caller belongs to a tenant
    """
    return [
        (of, LOCK_OWNER.format(table=RESOURCES[of].table, inner=inner))
        for of, inner in _above(kind, scoped=scoped)
    ]


def _above(kind: str, *, scoped: bool) -> list[tuple[str, LiteralString]]:
    """Returns the kinds above a kind, root first, each with the query for the owner's id."""
    found: list[tuple[str, LiteralString]] = []
    inner = (OWNER_OF.scoped if scoped else OWNER_OF)[kind]
    for of in reversed(above(kind)):
        found.append((of.name, inner))
        inner = OWNERS_OWNER.format(table=of.table, inner=inner)
    return found[::-1]


def tree(kind: str, *, marked: bool = True) -> LiteralString:
    """Returns the query for the ids of resources and of everything below them.

    :param marked: whether to include those below that are being deleted
    """
    more: LiteralString = "" if marked else " AND deleted_time IS NULL"
    parts = [
        OF_KIND.format(table=of.table, which=owned(of.name, kind, IDS)) + more for of in below(kind)
    ]
    return " UNION ALL ".join([GIVEN, *parts])


@functools.cache
def _around(kind: str) -> tuple[list[LiteralString], list[LiteralString]]:
    """Returns the statements that lock everything that a removal changes, in the order of locks, and
    those that remove references to it. Both lists are empty if nothing can refer to the kind or below.
    """
    sources = referrers(kind, *(of.name for of in below(kind)))
    if not sources:
        return [], []
    whole = tree(kind)
    referring: LiteralString = SOURCES.format(tree=whole)
    ids: dict[str, list[LiteralString]] = {of: [inner] for of, inner in _above(kind, scoped=False)}
    ids[kind] = [GIVEN]
    for of in below(kind):
        ids[of.name] = [OF_KIND.format(table=of.table, which=owned(of.name, kind, IDS))]
    for of in sources:
        ids.setdefault(of.name, []).append(referring)
    # One statement per kind would take seconds where many refer to a resource with much below it.
    locks: list[LiteralString] = []
    for run in _runs(of for of in RESOURCES.values() if of.name in ids):
        inner = " UNION ALL ".join(dict.fromkeys(one for of in run for one in ids[of.name]))
        order = KIND_BY_KIND.format(kinds=quoted(of.name for of in run)) if run[0].shared else ""
        locks.append(LOCK_AROUND.format(table=run[0].table, ids=inner, only=_only(run), order=order))
    return locks, [
        LET_GO.format(table=run[0].table, tree=whole, sources=referring, only=_only(run))
        for run in _runs(sources)
    ]


def _runs(kinds: Iterable[Kind]) -> list[list[Kind]]:
    """Groups the kinds, in their order, into runs that share a table."""
    return [[*run] for _, run in itertools.groupby(kinds, key=lambda of: of.table)]


def _only(kinds: Sequence[Kind]) -> LiteralString:
    return ONLY.format(types=quoted(of.name for of in kinds)) if kinds[0].shared else ""


@functools.cache
def _locks(kind: str) -> dict[str, LiteralString]:
    """Returns the statements that lock what is below resources of a kind, by kind."""
    return {
        of.name: LOCK_BELOW.format(table=of.table, owned=owned(of.name, kind, IDS)) for of in below(kind)
    }


@functools.cache
def _record(kind: str) -> LiteralString:
    """Returns the statement that records resources of a kind before they are removed by force."""
    of = RESOURCES[kind]
    return audit.FORCED.format(kind=kind, table=of.table, document=of.document)


@functools.cache
def _removal(kind: str) -> LiteralString:
    """Returns the statement that removes resources of a kind that are already recorded. The foreign key
    of node pools is checked when it ends.
    """
    return _removing(RESOURCES[kind], "document", "")


@functools.cache
def _end(kind: str) -> LiteralString:
    of = RESOURCES[kind]
    return _removing(of, of.document, audit.GONE.format(kind=kind))


def _removing(of: Kind, document: LiteralString, recorded: LiteralString) -> LiteralString:
    """Returns the statement that removes resources; ``recorded``, if any, is the part to record them."""
    whole = REMOVE_REFERRED if referrers(of.name) else REMOVE
    return whole.format(table=of.table, kind=of.name, document=document, recorded=recorded)


def lock_above(conn: Connection, kind: str, key: Key) -> Callable[[], list[tuple[str, str]]]:
    """Locks the owner of a resource and everything above, from the root down.

    :returns: a function that returns kind and id of each owner that exists. There may be none: the kind
        may have had no parent or another one when the resource was created, or the owner may have been
        removed while the kind was not declared.
    """
    values = {"owner_id": None, **key}
    statements = _owners(kind, scoped="tenancy" in key)
    locked = [(of, conn.execute(statement, values)) for of, statement in statements]
    return lambda: [(of, row[0]) for of, found in locked if (row := found.fetchone())]


def remove(conn: Connection, kind: str, *ids: str, origin: Origin = UNASKED) -> None:
    """Removes resources for good and records their last state. Nothing may belong to them any more, and
    the caller holds their locks.

    :param origin: the request that led to the removal
    """
    values = {**origin.values(), "ids": list(ids), "at": times.now(), "reason": ENDED}
    conn.execute(_end(kind), values)


def log_removed(gone: Iterable[tuple[str, str]]) -> None:
    """Logs the removal of resources that no adapter had to finalize; takes kind and id of each."""
    for kind, id_ in _breathing(gone):
        more = {"kind": kind, "id": id_, "reason": ENDED}
        logger.info("%s %s removed: no adapter has to finalize it any more", kind, id_, extra=more)


def _breathing(gone: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yields what it is given, and lets others be served now and then."""
    for number, one in enumerate(gone, 1):
        if number % PORTION == 0:
            breathe()
        yield one


def finish_targets(service: Service, gone: Sequence[tuple[str, str]]) -> None:
    """Finishes targets of removed resources that have waited for the removal. Call it after the COMMIT:
    each target takes its own locks, in a transaction of its own.

    :param gone: kind and id of each removed resource
    """
    waiting: list[tuple[str, str]] = []
    while True:
        if any(RESOURCES[kind].references for kind, _ in gone):
            with transaction(service.pool) as conn:
                waiting += drop_references(conn, gone)
        if not waiting:
            break
        kind, id_ = waiting.pop()
        with service.turns.of(id_), transaction(service.pool) as conn:
            gone = finish(conn, kind, id_, service.foldings)
        log_removed(gone)


def drop_references(conn: Connection, gone: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Deletes the references of removed resources; returns kind and id of each of their targets that is
    being deleted, and so may have waited for that.
    """
    ids = [id_ for kind, id_ in gone if RESOURCES[kind].references]
    if not ids:
        return []
    return [(row[0], row[1]) for row in conn.execute(LEFT, {"ids": ids, "kinds": [*RESOURCES]})]


def settle(
    conn: Connection,
    owners: Sequence[tuple[str, str]],
    at: str,
    foldings: Mapping[str, Folding],
    origin: Origin = UNASKED,
) -> list[tuple[str, str]]:
    """Updates the status of a marked owner after a resource below it was removed; or removes the owner,
    if it waited for nothing else, and goes on to the one above. The caller holds the locks.

    :param owners: kind and id of each, root first
    :param foldings: how to compute the statuses of each kind
    :param origin: the request that led to the removal
    :returns: kind and id of each removed resource, to pass to :func:`log_removed` after the COMMIT
    """
    gone: list[tuple[str, str]] = []
    for kind, id_ in reversed(owners):
        held = Hold(conn, kind, {"id": id_}, foldings[kind]).one()
        if held is None or not held.state["deleted_time"]:
            break
        if not held.ended():
            status = held.fold(at)
            if status != held.state["status"]:
                conn.execute(SET_STATUS[kind], {"id": id_, "status": Jsonb(status)})
            break
        remove(conn, kind, id_, origin=origin)
        gone.append((kind, id_))
    return gone


def finish(
    conn: Connection, kind: str, id_: str, foldings: Mapping[str, Folding]
) -> list[tuple[str, str]]:
    """Removes a marked resource if nothing has to finalize it any more, and then possibly its owners.
    Runs in the caller's transaction; see :func:`settle` for ``foldings`` and the result.
    """
    owners = lock_above(conn, kind, {"id": id_})()
    return settle(conn, [*owners, (kind, id_)], times.now(), foldings)


def force(service: Service, kind: str, key: Key, origin: Origin) -> None:
    """Removes a marked resource, everything below it and their reports at once, and records who did it
    and why. Raises Problem if the resource does not exist or is not marked.
    """
    at, by, reason = times.now(), origin.by, origin.reason
    around, let_go = _around(kind)
    values = {"ids": [key["id"]], "at": at, **origin.values()}
    with service.turns.of(queue(key)), transaction(service.pool) as conn:
        if around and "tenancy" in key:
            # Tenants must not block others by naming resources that they cannot see.
            seen = conn.execute(THERE.of(kind, key), {"owner_id": None, **key}).fetchone()
            if seen is None:
                raise not_found(kind, key["id"])
        for statement in around:
            conn.execute(statement, {"owner_id": None, **key, **values})
        owners = lock_above(conn, kind, key)
        held = Hold(conn, kind, key, service.foldings[kind]).found()
        if not held.state["deleted_time"]:
            raise Problem(
                WRONG_STATE,
                f"The {RESOURCES[kind].noun} is not being deleted. DELETE it first; only what is being "
                "deleted can be force-deleted.",
            )
        locks = {of: conn.execute(statement, values) for of, statement in _locks(kind).items()}
        tree = {kind: [key["id"]], **{of: [row[0] for row in found] for of, found in locks.items()}}
        removed = [(of, id_) for of, ids in tree.items() for id_ in ids]
        _each(conn, tree, _record, values)
        for statement in let_go:
            conn.execute(statement, values)
        _each(conn, dict(reversed(tree.items())), _removal, values)
        settled = settle(conn, owners(), at, service.foldings, origin)
    for of, id_ in _breathing(removed):
        more = {"kind": of, "id": id_, "reason": reason}
        logger.warning("%s %s removed by force by %s: %r", of, id_, by, reason, extra=more)
    log_removed(settled)
    finish_targets(service, [*removed, *settled])


def _each(
    conn: Connection,
    tree: Mapping[str, Sequence[str]],
    statement: Callable[[str], LiteralString],
    values: Mapping[str, Any],
) -> None:
    """Runs each kind's statement for its ids, in batches: for thousands of ids, a single statement would
    exceed the statement timeout.
    """
    for kind, ids in tree.items():
        for start in range(0, len(ids), PORTION):
            conn.execute(statement(kind), {**values, "ids": ids[start : start + PORTION]})
            if len(ids) > PORTION:
                # Fetch a result now and then: the pool abandons a connection that is silent for long.
                conn.execute(HEARD).fetchone()
