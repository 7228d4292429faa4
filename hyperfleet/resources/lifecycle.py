"""Changing a resource."""

import copy
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, LiteralString, NamedTuple

import json_merge_patch
from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes.audit import CHANGED, Origin
from hyperfleet.changes.history import PAST, not_kept
from hyperfleet.database.statements import transaction
from hyperfleet.errors import INVALID, WRONG_STATE, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES, both
from hyperfleet.resources import references, resource
from hyperfleet.resources.etag import Precondition
from hyperfleet.resources.resource import DOCUMENT, Hold, Stored, stored
from hyperfleet.service import Service
from hyperfleet.status.fold import State, is_reconciled

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
        # References that lead to the same may be said wrongly.
        said = wanted != known
        refers = said and not references.same(known, wanted)
        same = _same(before, after) and not refers
        if same and not said:
            return Stored(old["document"], old["version"])
        checked = change.checked and "spec" in given and not change.merge
        whole = _as_created(kind, old, after, wanted if said else references.something(kind))
        resource.check(service, kind, whole, replaced=checked or same)
        if same:
            return Stored(old["document"], old["version"])
        if refers:
            refs = targets.resolved(wanted, known) if targets else {}
            references.replace(conn, kind, old["id"], refs)
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
    return stored(changed, old["version"] + 1)


def _as_created(kind: str, old: State, after: Mapping[str, Any], refs: Any) -> dict[str, Any]:
    """A creation that would come to a resource as it is to be. What was there before it was against a
    rule may stay as it is.
    """
    # Labels may be from before their syntax was checked.
    labels = after["labels"] if after["labels"] != old["labels"] else {}
    # A name may be from before it had to be longer or shorter, and references from before there had to
    # be more or fewer.
    of = RESOURCES[kind]
    fits = of.shortest <= len(old["name"]) <= of.longest
    whole = {"name": old["name"] if fits else "x" * of.shortest, **after, "labels": labels}
    return whole | ({"references": refs} if refs else {})


def _scope(key: Mapping[str, Any]) -> dict[str, Any]:
    """What a key says of whose the resource must be."""
    return {"tenancy": key["tenancy"]} if "tenancy" in key else {}


def _referred(old: State, change: Change) -> tuple[Any, Any]:
    """What a resource refers to, and what it is to refer to."""
    known, given = json.loads(old["document"]).get("references", {}), change.body["references"]
    if change.merge and given is not None:
        return known, json_merge_patch.merge(copy.deepcopy(known), given)
    return known, given or {}


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
