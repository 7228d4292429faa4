"""Changing a resource."""

import copy
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, LiteralString, NamedTuple

import json_merge_patch
from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes.audit import CHANGED_EACH, Origin
from hyperfleet.changes.history import PAST, not_kept
from hyperfleet.database.statements import filled, transaction
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.errors import INVALID, WRONG_STATE, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES, both
from hyperfleet.resources import references, resource
from hyperfleet.resources.etag import Precondition
from hyperfleet.resources.resource import DOCUMENT, Held, Hold, Stored, stored
from hyperfleet.resources.snapshot import FREE, look
from hyperfleet.service import Service
from hyperfleet.status.fold import State, is_reconciled

# A label that is as it was is left alone, so that no index has to be written for it.
CHANGE: LiteralString = """/* {table}_change */
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s) AS given
        (id uuid, version bigint, labels jsonb, spec jsonb, status jsonb, at timestamptz, by text,
         action text, reason text, request text, method text, path text)
)"""
CHANGED: LiteralString = """, changed AS (
    UPDATE {table} SET labels = given.labels, spec = given.spec, status = given.status,
        generation = {table}.generation + 1, version = {table}.version + 1,
        updated_time = given.at, updated_by = given.by, request = given.request
    FROM given WHERE {table}.id = given.id AND {table}.id = ANY({held})
    RETURNING {table}.id, name, generation, tenancy, {table}.labels, created_time,
        {document} AS document
), dropped AS (
    DELETE FROM labels USING changed
    WHERE owner_type = '{kind}' AND owner_id = ANY(%(ids)s::uuid[]) AND owner_id = changed.id
        AND NOT changed.labels ? key
), kept AS (
    INSERT INTO labels (owner_type, owner_id, key, value, created_time)
    SELECT '{kind}', changed.id, label.key, label.value, created_time
    FROM changed, jsonb_each_text(labels) AS label
    WHERE NOT EXISTS (
        SELECT FROM labels AS same WHERE same.owner_type = '{kind}'
            AND same.owner_id = ANY(%(ids)s::uuid[]) AND same.owner_id = changed.id
            AND same.key = label.key AND same.value = label.value)
    ON CONFLICT (owner_type, owner_id, key) DO UPDATE SET value = excluded.value
)"""
FOUND: LiteralString = "SELECT id::text, document::bpchar FROM changed"
CHANGE_AT_ONCE = both(
    CHANGE + FREE + CHANGED.replace("{held}", "ARRAY(SELECT id FROM free)") + CHANGED_EACH + FOUND
)
CHANGE_LOCKED = both(
    CHANGE.replace("_change */", "_change_locked */")
    + CHANGED.replace("{held}", "%(ids)s::uuid[]")
    + CHANGED_EACH
    + DOCUMENT
)


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

    @property
    def spec_is_checked(self) -> bool:
        """Whether the provider's schema was asked already for the spec that it comes to."""
        return self.checked and "spec" in self.body and not self.merge


def patch(service: Service, kind: str, key: Mapping[str, Any], change: Change) -> Stored:
    """Changes labels and spec of a resource; a patch that changes nothing changes nothing.

    :param key: ``id``, and ``owner_id`` of a node pool
    Raises Problem for a result that could not have been created.
    """
    with service.turns.of(resource.turn(key)):
        done = None
        # Behind a pooler two transactions take more round trips than the statements of one.
        if not (service.pool.shared or change.generation or "references" in change.body):
            done = _at_once(service, kind, key, change)
        return done or _locked(service, kind, key, change)


def _at_once(service: Service, kind: str, key: Mapping[str, Any], change: Change) -> Stored | None:
    """Changes a resource with one statement, along with those that others change at the same moment.
    It does nothing where the resource is no longer as it was found, or locked; None then, and for a
    large one, and where there is nothing to change.
    """
    held = look(service, kind, key, whole=True)
    old = held.state
    if old["spec"] is None:
        return None
    _refuse(kind, old, change)
    after = _after(old, change.body, merge=change.merge)
    if _same(_before(old), after):
        return None
    whole = _as_created(kind, old, after, references.something(kind))
    resource.check(service, kind, whole, replaced=change.spec_is_checked)
    row = wait_for(
        service.together(CHANGE_AT_ONCE[kind]).get(old["id"], _row(held, after, change, "patch"))
    )
    if row is None:
        return None
    _tell(service, kind, old)
    return Stored(bytes(row[0]), old["version"] + 1)


def _locked(service: Service, kind: str, key: Mapping[str, Any], change: Change) -> Stored:
    """Changes a resource while it is locked."""
    referring = change.body.get("references")
    with transaction(service.pool) as conn:
        targets = (
            references.Targets(conn, kind, referring, _scope(key), own=key["id"]) if referring else None
        )
        hold = Hold(conn, kind, key, service.foldings[kind], whole=True, children=False)
        back = change.generation
        past = back and conn.execute(PAST, {"id": key["id"], "generation": back})
        held = hold.found()
        old = held.state
        _refuse(kind, old, change)
        body = _wanted(kind, back, past.fetchone()) if back and past else change.body
        after = _after(old, body, merge=change.merge)
        known, wanted = _referred(old, change) if "references" in change.body else ({}, {})
        # References that lead to the same may be said wrongly.
        said = wanted != known
        refers = said and not references.same(known, wanted)
        same = _same(_before(old), after) and not refers
        if same and not said:
            return Stored(old["document"], old["version"])
        whole = _as_created(kind, old, after, wanted if said else references.something(kind))
        resource.check(service, kind, whole, replaced=change.spec_is_checked or same)
        if same:
            return Stored(old["document"], old["version"])
        if refers:
            refs = targets.resolved(wanted, known) if targets else {}
            references.replace(conn, kind, old["id"], refs)
        row = _row(held, after, change, "rollback" if back else "patch")
        changed = conn.execute(CHANGE_LOCKED[kind], {"ids": filled([old["id"]]), "rows": Jsonb([row])})
    _tell(service, kind, old)
    return stored(changed, old["version"] + 1)


def _refuse(kind: str, old: State, change: Change) -> None:
    """Raises Problem where a resource is not to be changed, or not so."""
    change.precondition.check(old["version"])
    _refuse_other_names(kind, old, change.body)
    if old["deleted_time"]:
        raise Problem(WRONG_STATE, f"The {RESOURCES[kind].noun} is being deleted; it cannot be changed.")


def _before(old: State) -> dict[str, Any]:
    return {"labels": old["labels"], "spec": old["spec"]}


def _after(old: State, body: Mapping[str, Any], *, merge: bool) -> dict[str, Any]:
    """Labels and spec as they are to be."""
    before = _before(old)
    given = {name: body[name] for name in before if name in body}
    if merge:
        return {"labels": {}, **json_merge_patch.merge(copy.deepcopy(before), given)}
    return {**before, **given}


def _row(held: Held, after: Mapping[str, Any], change: Change, action: str) -> dict[str, Any]:
    """What is given for a resource to the statement that changes it."""
    old = held.state
    at = max(times.now(), old["updated_time"])
    status = held.fold(at, **after, generation=old["generation"] + 1, updated_time=at)
    own = {"id": old["id"], "version": old["version"], "at": at, "action": action, "status": status}
    return {**own, **after, **change.origin.values()}


def _tell(service: Service, kind: str, old: State) -> None:
    if is_reconciled(old["status"]):
        service.events.started(kind, deleting=False)


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
