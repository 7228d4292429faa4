"""Changing a resource, and marking it as deleted; what follows is in :mod:`hyperfleet.removal`.

The order of locks, which keeps two transactions from waiting for each other: whoever marks or
removes what belongs to others, or takes a report on what is marked and does, holds the locks on those
first, from the root on; whoever locks several of a kind locks them in the order of their ids, and
several kinds in the order of ``hyperfleet.kinds.RESOURCES``, where each comes after what it belongs to.
So does who makes a resource refer to others, and who removes by force what others refer to.
"""

import copy
import functools
import json
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, LiteralString, NamedTuple

import json_merge_patch
from psycopg.types.json import Jsonb

from hyperfleet import references, removal, resource, times
from hyperfleet.audit import CHANGED, Origin
from hyperfleet.database.connection import Connection
from hyperfleet.database.statements import transaction
from hyperfleet.errors import INVALID, WRONG_STATE, Fault, Problem, with_value
from hyperfleet.etag import Precondition
from hyperfleet.history import PAST, not_kept
from hyperfleet.kinds import RESOURCES, Kind, below, both, owned, quoted, referrers
from hyperfleet.resource import Hold
from hyperfleet.service import Service
from hyperfleet.status import State, is_reconciled

DOCUMENT: LiteralString = "SELECT document::bpchar FROM changed"
CHANGE: LiteralString = """/* {table}_change */
WITH dropped AS (
    DELETE FROM labels
    WHERE owner_type = '{kind}' AND owner_id = %(id)s AND NOT %(labels)s::jsonb ? key
), kept AS (
    INSERT INTO labels (owner_type, owner_id, key, value, created_time)
    SELECT '{kind}', %(id)s, label.key, label.value, %(created_time)s
    FROM jsonb_each_text(%(labels)s::jsonb) AS label
    WHERE NOT EXISTS (
        SELECT FROM labels AS same WHERE same.owner_type = '{kind}' AND same.owner_id = %(id)s
            AND same.key = label.key AND same.value = label.value)
    ON CONFLICT (owner_type, owner_id, key) DO UPDATE SET value = excluded.value
), changed AS (
    UPDATE {table} SET labels = %(labels)s, spec = %(spec)s, status = %(status)s,
        generation = generation + 1, version = version + 1,
        updated_time = %(at)s, updated_by = %(by)s, request = %(request)s
    WHERE id = %(id)s RETURNING id, name, generation, tenancy, {document} AS document
)
"""
CHANGES = both(CHANGE + CHANGED + DOCUMENT)

MARK: LiteralString = """/* {table}_mark */
WITH changed AS (
    UPDATE {table} SET status = %(status)s, generation = generation + 1, version = version + 1,
        deleted_time = %(at)s, deleted_by = %(by)s, updated_time = %(at)s, updated_by = %(by)s,
        request = %(request)s
    WHERE id = %(id)s RETURNING id, name, generation, tenancy, {document} AS document
)
"""
MARKS = both(MARK + CHANGED + DOCUMENT)

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
MARKS_ALL = both(MARK_ALL + CHANGED + DONE)


KEPT: LiteralString = """/* {table}_keeping */
SELECT count(*), count(deleted_time) FROM {table} WHERE {owned}
"""
IDS: LiteralString = "%(ids)s::uuid[]"

# Who keeps a resource, or what is below it, from being deleted by referring to it. One more than told.
REFERRING: LiteralString = """/* resource_references_keeping */
SELECT source.kind, source.name, source.id::text, reference.ref_type,
       reference.target_kind, reference.target_id::text
FROM resource_references AS reference JOIN all_resources AS source
    ON source.id = reference.source_id AND source.kind = reference.source_kind
WHERE reference.target_id IN ({tree}) AND source.kind IN ({kinds}) AND source.deleted_time IS NULL
    AND source.id NOT IN ({tree}) {seen}
LIMIT 4
"""
# A caller of a tenant is told of those that he sees, and how many others there are.
SEEN: LiteralString = "AND source.tenancy @> %(tenancy)s"
UNSEEN: LiteralString = "AND NOT source.tenancy @> %(tenancy)s"
HOW_MANY: LiteralString = """/* resource_references_unseen */
SELECT count(DISTINCT source.id)
""" + REFERRING[REFERRING.index("FROM") :].replace("LIMIT 4", "")
# Who is marked along with what it refers to does not keep it.
LET_GO: LiteralString = """/* resource_references_let_go */
UPDATE resource_references SET keeps = false WHERE source_id IN ({tree}) AND target_id IN ({tree})
"""


class Stored(NamedTuple):
    """A resource as it is stored: its finished JSON text, and the version that its entity tag names."""

    document: bytes
    version: int


class Change(NamedTuple):
    """What a patch asks for.

    :param body: members that replace those of the resource
    :param merge: whether they are merged into them instead (RFC 7396)
    :param precondition: which version it is meant for
    :param origin: who asks, and how
    :param checked: whether the provider's schema was asked already, where the body has a whole spec
    :param generation: the one whose labels and spec are to be back, instead of a body
    """

    body: Mapping[str, Any]
    merge: bool
    precondition: Precondition
    origin: Origin
    checked: bool = True
    generation: int | None = None


def patch(service: Service, kind: str, key: Mapping[str, Any], change: Change) -> Stored:
    """Changes labels and spec of a resource; a patch that changes nothing changes nothing.

    :param key: ``id``, and ``owner_id`` of a node pool
    Raises Problem for a result that could not have been created.
    """
    referring = change.body.get("references")
    with service.turns.of(resource.turn(key)), transaction(service.pool) as conn:
        targets = (
            references.Targets(conn, kind, referring, _scope(key), own=key["id"]) if referring else None
        )
        hold = Hold(conn, kind, key, service.foldings[kind], whole=True, children=False)
        back = change.generation
        past = back and conn.execute(PAST, {"id": key["id"], "generation": back})
        held = hold.found()
        old = held.state
        change.precondition.check(old["version"])
        _refuse_other_names(kind, old, change.body)
        if old["deleted_time"]:
            raise Problem(
                WRONG_STATE, f"The {RESOURCES[kind].noun} is being deleted; it cannot be changed."
            )
        before: dict[str, Any] = {"labels": old["labels"], "spec": old["spec"]}
        body = _wanted(kind, back, past.fetchone()) if back and past else change.body
        given = {name: body[name] for name in before if name in body}
        after = {**before, **given}
        if change.merge:
            after = {"labels": {}, **json_merge_patch.merge(copy.deepcopy(before), given)}
        known, wanted = _referred(old, change) if "references" in change.body else ({}, {})
        refers = not references.same(known, wanted)
        if _same(before, after) and not refers:
            return Stored(old["document"], old["version"])
        checked = change.checked and "spec" in given and not change.merge
        # Labels of before their syntax was checked may stay as they are.
        labels = after["labels"] if after["labels"] != old["labels"] else {}
        # So may a name of before it had to be longer or shorter.
        of = RESOURCES[kind]
        fits = of.shortest <= len(old["name"]) <= of.longest
        whole = {"name": old["name"] if fits else "x" * of.shortest, **after, "labels": labels}
        # And references of before there had to be more or fewer.
        if refs := wanted if refers else references.something(kind):
            whole["references"] = refs
        resource.check(service, kind, whole, replaced=checked)
        if refers:
            stored = targets.resolved(wanted, known) if targets else {}
            references.replace(conn, kind, old["id"], stored)
        at = max(times.now(), old["updated_time"])
        status = held.fold(at, **after, generation=old["generation"] + 1, updated_time=at)
        new = {name: Jsonb(value) for name, value in {**after, "status": status}.items()}
        values = {
            "id": old["id"],
            "created_time": old["created_time"],
            "at": at,
            "action": "rollback" if back else "patch",
        }
        changed = conn.execute(CHANGES[kind], {**values, **change.origin.values(), **new})
    if is_reconciled(old["status"]):
        service.events.started(kind, deleting=False)
    return Stored(_document(changed), old["version"] + 1)


def _scope(key: Mapping[str, Any]) -> dict[str, Any]:
    """What a key says of whose the resource must be."""
    return {"tenancy": key["tenancy"]} if "tenancy" in key else {}


def mark(
    service: Service, kind: str, key: Mapping[str, Any], precondition: Precondition, origin: Origin
) -> Stored:
    """Marks a resource as deleted, and all that is below it; removes at once what nobody has to
    finalize. Marking it again changes nothing. Raises Problem where something below restricts it.
    """
    with service.turns.of(resource.turn(key)), transaction(service.pool) as conn:
        owners = removal.lock_above(conn, kind, key)
        hold = Hold(conn, kind, key, service.foldings[kind], whole=True)
        under = {**key, "root": kind, "owner_id": None}
        holds = [Hold(conn, of.name, under, service.foldings[of.name]) for of in below(kind)]
        kept = {of: conn.execute(one, {"ids": [key["id"]]}) for of, one in _restricting(kind).items()}
        referring = [
            conn.execute(one, {"ids": [key["id"]], **_scope(key)})
            for one in _referring(kind, scoped="tenancy" in key)
        ]
        held = hold.found()
        old = held.state
        precondition.check(old["version"])
        if old["deleted_time"]:
            if referrers(kind) and held.ended():
                # Who was to look again when the last that referred to it was gone did not come to it.
                lines = [*(owners.all() or ()), (kind, old["id"])]
                removal.settle(conn, lines, times.now(), service.foldings)
            return Stored(old["document"], old["version"])
        for restricting, found in kept.items():
            _refuse_while_left(kind, restricting, found.fetchone())
        if referring:
            rows, *others = [found.fetchall() for found in referring]
            _refuse_while_referred(kind, old, rows, others[0][0][0] if others else 0)
        for statement in _letting_go(kind):
            conn.execute(statement, {"ids": [key["id"]]})
        at = max(times.now(), old["updated_time"])
        marked, gone, fewer = _mark_below(conn, holds, at, origin)
        held = held._replace(children=held.children - fewer[old["id"]])
        generation = old["generation"] + 1
        status = held.fold(at, generation=generation, deleted_time=at, updated_time=at)
        values = {"id": old["id"], "status": Jsonb(status), "at": at, "action": "delete"}
        document = conn.execute(MARKS[kind], {**values, **origin.values()})
        if removed := held.ended(generation):
            removal.remove(conn, kind, old["id"], origin=origin)
    service.events.started(kind, deleting=True)
    for below_kind in marked:
        service.events.started(below_kind, deleting=True)
    gone += [(kind, old["id"])] * removed
    for one in gone:
        removal.tell(*one)
    removal.after(service, gone)
    return Stored(_document(document), old["version"] + 1)


def _referred(old: State, change: Change) -> tuple[Any, Any]:
    """What a resource refers to, and what it is to refer to."""
    known, given = json.loads(old["document"]).get("references", {}), change.body["references"]
    if change.merge and given is not None:
        return known, json_merge_patch.merge(copy.deepcopy(known), given)
    return known, given or {}


@functools.cache
def _restricting(kind: str) -> dict[Kind, LiteralString]:
    """The kinds below a kind that keep what they belong to, and the statements that count them."""
    return {
        of: KEPT.format(table=of.table, owned=owned(of.name, kind, IDS))
        for of in below(kind)
        if of.restrict
    }


def _refuse_while_left(kind: str, restricting: Kind, row: Any) -> None:
    """Raises Problem where there is what keeps a resource from being deleted."""
    count, marked = row
    if not count:
        return
    are = "is 1" if count == 1 else f"are {count}"
    which = f", {marked} of them being deleted already" if marked else ""
    raise Problem(
        WRONG_STATE,
        f"The {RESOURCES[kind].noun} cannot be deleted: there {are} of its {restricting.segment} "
        f"left{which}, which must be gone first.",
    )


@functools.cache
def _referring(kind: str, *, scoped: bool) -> list[LiteralString]:
    """The statements that find who refers to a resource or to what is below it; none: nobody can.

    :param scoped: for a caller of a tenant; then the second finds how many refer to it whom he does not
        see
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
def _letting_go(kind: str) -> list[LiteralString]:
    """The statements after which those that are deleted together do not keep each other."""
    names = [kind, *(of.name for of in below(kind))]
    together = any(of.name in names for of in referrers(*names))
    return [LET_GO.format(tree=removal.tree(kind, marked=False))] if together else []


def _refuse_while_referred(kind: str, old: State, rows: list[Any], unseen: int) -> None:
    """Raises Problem where others refer to a resource, or to what is below it.

    :param rows: those that the caller sees, and ``unseen``, how many he does not see
    """
    if not rows and not unseen:
        return
    told = []
    for source, name, id_, type_, target, target_id in rows[:3]:
        what = "it" if target_id == old["id"] else f"its {RESOURCES[target].noun} {target_id}"
        told.append(f"the {RESOURCES[source].noun} {name} ({id_}) refers to {what} as {type_}")
    more = ", and there are others" if len(rows) > len(told) else ""
    if unseen:
        refer = "1 resource refers" if unseen == 1 else f"{unseen} resources refer"
        told.append(f"{refer} to it or to what is below it that cannot be seen from here")
    raise Problem(
        WRONG_STATE,
        f"The {RESOURCES[kind].noun} cannot be deleted: {', '.join(told)}{more}. Who refers "
        "to it must be changed or deleted first.",
    )


def _mark_below(
    conn: Connection, holds: list[Hold], at: str, origin: Origin
) -> tuple[list[str], list[tuple[str, str]], Counter[str]]:
    """Marks what is below a resource along with it, from the lowest on.

    :param holds: of each kind, after that of its parent
    :returns: the kind of each that was marked; kind and id of each that was removed at once instead;
        and by the ids of owners how many of theirs were
    """
    marked: list[str] = []
    gone: list[tuple[str, str]] = []
    fewer = Counter[str]()
    for hold in reversed(holds):
        statuses: list[dict[str, Any]] = []
        ended: list[str] = []
        for held in hold.all():
            state: Any = held.state
            left = held._replace(children=held.children - fewer[state["id"]])
            # A resource of a moment ago may be newer than the clock of this replica says.
            moment = max(at, state["updated_time"])
            generation = state["generation"] + 1
            if left.ended(generation):
                ended.append(state["id"])
                fewer[state["owner_id"]] += 1
                continue
            status = left.fold(at, generation=generation, updated_time=moment, deleted_time=moment)
            statuses.append({"id": state["id"], "status": status})
        if statuses:
            values = {"marked": Jsonb(statuses), "at": at, "action": "delete", **origin.values()}
            conn.execute(MARKS_ALL[hold.kind], values)
        if ended:
            removal.remove(conn, hold.kind, *ended, origin=origin)
        marked += [hold.kind] * len(statuses)
        gone += [(hold.kind, id_) for id_ in ended]
    return marked, gone, fewer


def _wanted(kind: str, generation: int, row: Any) -> dict[str, Any]:
    """Labels and spec of a generation. Raises Problem where it is not kept."""
    kept, labels, spec = row
    if generation not in kept:
        raise not_kept(kind, generation, kept)
    return {"labels": labels, "spec": spec}


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal as PostgreSQL sees it: numbers by value, and none is a boolean,
    whereas Python holds 1 and true to be equal.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(_exact(one) == _exact(other))


def _exact(value: Any) -> Any:
    """A number as its text says: 1e23 is no power of two."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def _document(cursor: Any) -> bytes:
    """The one text that a statement returned."""
    return bytes(cursor.fetchone()[0])


def _refuse_other_names(kind: str, old: State, body: Mapping[str, Any]) -> None:
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
