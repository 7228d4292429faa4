"""The end of a resource: for good once nobody has to do anything for it, or by force.

The order of locks is that of :mod:`hyperfleet.resources.resource`.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes import audit
from hyperfleet.changes.audit import SERVICE, Origin
from hyperfleet.database.connection import Connection
from hyperfleet.database.statements import transaction
from hyperfleet.engine.greenlets import breathe
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.kinds import ONLY, RESOURCES, Kind, above, below, both, owned, quoted, referrers
from hyperfleet.resources.resource import BATCH, SET_STATUS, Hold, not_found, turn
from hyperfleet.service import Service
from hyperfleet.status.conditions import Folding

logger = logging.getLogger(__name__)

# Why a resource goes that nobody has forced out.
ENDED = "finalized"

# What one belongs to, and what that belongs to: neither ever changes.
OWNER_OF = both("SELECT owner_id FROM {table} WHERE id = %(id)s {under} {only} {scope}")
OWNERS_OWNER: LiteralString = "SELECT owner_id FROM {table} WHERE id = ({inner})"
LOCK_OWNER: LiteralString = """/* {table}_lock_owner */
SELECT id::text FROM {table} WHERE id = ({inner}) FOR NO KEY UPDATE
"""

# Whoever locks several locks them in this order.
LOCK_BELOW: LiteralString = """/* {table}_lock_all */
SELECT id::text FROM {table} WHERE {owned} ORDER BY id FOR UPDATE
"""

# Labels and reports have no foreign key to follow.
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

# The same of what others may refer to: they no longer do.
REMOVE_REFERRED: LiteralString = REMOVE.replace(
    "), reports AS (",
    """), referring AS (
    DELETE FROM resource_references USING gone WHERE target_id = gone.id
), reports AS (""",
)
# A resource, what is below it, what it belongs to and who refers to any of them. Who changes a node pool
# twice in a transaction looks for its cluster, as the foreign key has it; this lock lets it.
LOCK_AROUND: LiteralString = """/* {table}_lock_around */
SELECT 1 FROM {table} WHERE id IN ({ids}) {only} ORDER BY {order} id FOR NO KEY UPDATE
"""
# Of kinds that share a table: theirs is the order of locks, too.
KIND_BY_KIND: LiteralString = "array_position(ARRAY[{kinds}], kind),"
GIVEN: LiteralString = "SELECT unnest(%(ids)s::uuid[])"
OF_KIND: LiteralString = "SELECT id FROM {table} WHERE {which}"
SOURCES: LiteralString = "SELECT source_id FROM resource_references WHERE target_id IN ({tree})"
# What refers to what is removed by force is being deleted too; its end does not wait for adapters to see
# that it has changed, so its generation stays.
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
# What resources that are gone referred to, and what of it may have waited for that. Who has locked such
# a reference removes what it leads to.
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

THERE = both("""/* {table}_seen */
SELECT 1 FROM {table} WHERE id = %(id)s {under} {only} {scope}
""")


@functools.cache
def _owners(kind: str, *, scoped: bool) -> list[tuple[str, LiteralString]]:
    """The kinds that a kind belongs to, the root first, and the statement that locks each one's.

    :param scoped: for a caller of a tenant
    """
    return [
        (of, LOCK_OWNER.format(table=RESOURCES[of].table, inner=inner))
        for of, inner in _above(kind, scoped=scoped)
    ]


def _above(kind: str, *, scoped: bool) -> list[tuple[str, LiteralString]]:
    """The kinds that a kind belongs to, the root first, and the query for the id of each one's."""
    found: list[tuple[str, LiteralString]] = []
    inner = (OWNER_OF.scoped if scoped else OWNER_OF)[kind]
    for of in reversed(above(kind)):
        found.append((of.name, inner))
        inner = OWNERS_OWNER.format(table=of.table, inner=inner)
    return found[::-1]


def tree(kind: str, *, marked: bool = True) -> LiteralString:
    """The query that finds the ids of a resource and of all that is below it.

    :param marked: also of what is being deleted; it is below alone
    """
    more: LiteralString = "" if marked else " AND deleted_time IS NULL"
    parts = [
        OF_KIND.format(table=of.table, which=owned(of.name, kind, IDS)) + more for of in below(kind)
    ]
    return " UNION ALL ".join([GIVEN, *parts])


@functools.cache
def _around(kind: str) -> tuple[list[LiteralString], list[LiteralString]]:
    """Where resources of a kind, or what is below them, may be referred to: the statements that lock all
    that their end changes, in the order of locks, and those that let go who refers to them.
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
    # A statement for each kind would take seconds where many refer to what has much below it.
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
    """The kinds in their order, those together that follow each other in the same table."""
    return [[*run] for _, run in itertools.groupby(kinds, key=lambda of: of.table)]


def _only(kinds: Sequence[Kind]) -> LiteralString:
    return ONLY.format(types=quoted(of.name for of in kinds)) if kinds[0].shared else ""


@functools.cache
def _locks(kind: str) -> dict[str, LiteralString]:
    """The statements that lock what is below resources of a kind, by its kind."""
    return {
        of.name: LOCK_BELOW.format(table=of.table, owned=owned(of.name, kind, IDS)) for of in below(kind)
    }


@functools.cache
def _record(kind: str) -> LiteralString:
    """The statement that records some of a kind that go by force."""
    of = RESOURCES[kind]
    return audit.FORCED.format(kind=kind, table=of.table, document=of.document)


@functools.cache
def _removal(kind: str) -> LiteralString:
    """The statement that removes some of a kind that are recorded. The foreign key of node pools is
    checked at its end.
    """
    return _removing(RESOURCES[kind], "document", "")


@functools.cache
def _end(kind: str) -> LiteralString:
    of = RESOURCES[kind]
    return _removing(of, of.document, audit.GONE.format(kind=kind))


def _removing(of: Kind, document: LiteralString, recorded: LiteralString) -> LiteralString:
    """The statement that removes some of a kind; ``recorded``, what records it, if that is not done."""
    whole = REMOVE_REFERRED if referrers(of.name) else REMOVE
    return whole.format(table=of.table, kind=of.name, document=document, recorded=recorded)


def lock_above(
    conn: Connection, kind: str, key: Mapping[str, Any]
) -> Callable[[], list[tuple[str, str]]]:
    """Locks what a resource belongs to, and what that belongs to, from the root on.

    :returns: what tells kind and id of each that there is, once it is asked: a kind may have belonged to
        none, or to another one, when a resource was created, or its owner may have gone while the kind
        was off the list
    """
    values = {"owner_id": None, **key}
    statements = _owners(kind, scoped="tenancy" in key)
    locked = [(of, conn.execute(statement, values)) for of, statement in statements]
    return lambda: [(of, row[0]) for of, found in locked if (row := found.fetchone())]


def remove(conn: Connection, kind: str, *ids: str, origin: Origin = SERVICE) -> None:
    """Removes resources that nothing belongs to for good, and records it with what they were last. The
    caller holds their locks.

    :param origin: who has asked for what ends them
    """
    values = {**origin.values(), "ids": list(ids), "at": times.now(), "reason": ENDED}
    conn.execute(_end(kind), values)


def tell(gone: Iterable[tuple[str, str]]) -> None:
    """Logs the removal of resources that nobody has to do anything for any more: kind and id of each."""
    for number, (kind, id_) in enumerate(gone):
        if number % BATCH == BATCH - 1:
            breathe()
        more = {"kind": kind, "id": id_, "reason": ENDED}
        logger.info("%s %s removed: no adapter has to finalize it any more", kind, id_, extra=more)


def after(service: Service, gone: Sequence[tuple[str, str]]) -> None:
    """Looks again at what resources that are gone referred to, after their COMMIT: it may have waited
    for that. It has locks of its own to take, so that each is a transaction of its own.

    :param gone: kind and id of each
    """
    waiting: list[tuple[str, str]] = []
    while True:
        if any(RESOURCES[kind].references for kind, _ in gone):
            with transaction(service.pool) as conn:
                waiting += left(conn, gone)
        if not waiting:
            break
        kind, id_ = waiting.pop()
        with service.turns.of(id_), transaction(service.pool) as conn:
            gone = finish(conn, kind, id_, service.foldings)
        tell(gone)


def left(conn: Connection, gone: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Kind and id of what is being deleted, and was referred to by resources that are gone."""
    ids = [id_ for kind, id_ in gone if RESOURCES[kind].references]
    if not ids:
        return []
    return [(row[0], row[1]) for row in conn.execute(LEFT, {"ids": ids, "kinds": [*RESOURCES]})]


def settle(
    conn: Connection,
    owners: Sequence[tuple[str, str]],
    at: str,
    foldings: Mapping[str, Folding],
    origin: Origin = SERVICE,
) -> list[tuple[str, str]]:
    """Folds a marked resource once more after one of those that belong to it is gone, or removes it when
    that was the last thing to wait for; and then so what it belongs to. The caller holds the locks.

    :param owners: kind and id of each, the root first
    :param foldings: what the statuses of each kind are folded by
    :param origin: who has asked for what ended the one
    :returns: kind and id of what was removed, for the caller to :func:`tell` after its COMMIT
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
    """Removes a marked resource for which nobody has to do anything any more, and then maybe what waits
    for it. Runs in the caller's transaction; parameters and result are those of :func:`settle`.
    """
    owners = lock_above(conn, kind, {"id": id_})()
    return settle(conn, [*owners, (kind, id_)], times.now(), foldings)


def force(service: Service, kind: str, key: Mapping[str, Any], origin: Origin) -> None:
    """Removes a marked resource, what is below it and their reports now, and records who did it and
    why. Raises Problem for a resource that is not marked.
    """
    at, by, reason = times.now(), origin.by, origin.reason
    around, let_go = _around(kind)
    values = {"ids": [key["id"]], "at": at, **origin.values()}
    with service.turns.of(turn(key)), transaction(service.pool) as conn:
        if around and "tenancy" in key:
            # Nobody holds up others by naming what is theirs.
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
    for number, (gone_kind, gone_id) in enumerate(removed):
        if number % BATCH == 0:
            breathe()
        more = {"kind": gone_kind, "id": gone_id, "reason": reason}
        said = (gone_kind, gone_id, by, reason)
        logger.warning("%s %s removed by force by %s: %r", *said, extra=more)
    tell(settled)
    after(service, [*removed, *settled])


def _each(
    conn: Connection,
    tree: Mapping[str, Sequence[str]],
    statement: Callable[[str], LiteralString],
    values: Mapping[str, Any],
) -> None:
    """Runs the statement of each kind for its ids, some at a time: one for thousands would not end in
    the time that a statement has.
    """
    for kind, ids in tree.items():
        for start in range(0, len(ids), BATCH):
            conn.execute(statement(kind), {**values, "ids": ids[start : start + BATCH]})
            if len(ids) > BATCH:
                # Not all of them travel together: who hears nothing for long hangs up.
                conn.execute(HEARD).fetchone()
