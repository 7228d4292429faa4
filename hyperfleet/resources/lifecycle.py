"""Patching resources, and rolling them back to a past generation."""

import copy
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, LiteralString, NamedTuple

import json_merge_patch
from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes import audit
from hyperfleet.changes.audit import Origin
from hyperfleet.changes.history import PAST, not_kept
from hyperfleet.database.statements import filled, transaction
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.errors import INVALID, WRONG_STATE, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES, Key, PerKind
from hyperfleet.resources import references, resource
from hyperfleet.resources.etag import Precondition
from hyperfleet.resources.resource import DOCUMENT, Held, Hold, Stored, stored
from hyperfleet.resources.snapshot import FREE, look
from hyperfleet.service import Service
from hyperfleet.status.fold import State, is_reconciled

# Unchanged labels are left alone, so that no index entries are written for them.
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
CHANGE_AT_ONCE = PerKind(
    CHANGE + FREE + CHANGED.replace("{held}", "ARRAY(SELECT id FROM free)") + audit.CHANGED_EACH + FOUND
)
CHANGE_LOCKED = PerKind(
    CHANGE.replace("_change */", "_change_locked */")
    + CHANGED.replace("{held}", "%(ids)s::uuid[]")
    + audit.CHANGED_EACH
    + DOCUMENT
)


class Change(NamedTuple):
    """A patch, or a rollback to a past generation.

    :param body: the members to replace
    :param merge: whether the body is merged into the resource instead (RFC 7396)
    :param precondition: the version that it is meant for
    :param origin: who asks for it, and how
    :param checked: whether a whole spec in the body was already validated by the provider's schema
    :param generation: the generation whose labels and spec to restore; if set, the body is ignored
    """

    body: Mapping[str, Any]
    merge: bool
    precondition: Precondition
    origin: Origin
    checked: bool = True
    generation: int | None = None

    @property
    def spec_is_checked(self) -> bool:
        """Whether the resulting spec was already validated by the provider's schema."""
        return self.checked and "spec" in self.body and not self.merge


def patch(service: Service, kind: str, key: Key, change: Change) -> Stored:
    """Changes the labels, spec or references of a resource; does nothing if they stay the same.

    Raises Problem if a resource could not have been created with the result.
    """
    with service.turns.of(resource.queue(key)):
        done = None
        # Behind a pooler, two transactions take more round trips than the statements of one.
        if not (service.pool.shared or change.generation or "references" in change.body):
            done = _at_once(service, kind, key, change)
        return done or _locked(service, kind, key, change)


def _at_once(service: Service, kind: str, key: Key, change: Change) -> Stored | None:
    """Changes a resource with one statement, which it shares with concurrent patches of others. Returns
    None if it did nothing: the resource has changed since it was read, is locked or large, the patch
    changes nothing, or it is for another version: a standby may have shown that before the primary does,
    and the transaction that makes it still holds the lock.
    """
    held = look(service, kind, key, whole=True)
    old = held.state
    if old["spec"] is None or not change.precondition.allows(old["version"]):
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
    _count_start(service, kind, old)
    return Stored(bytes(row[0]), old["version"] + 1)


def _locked(service: Service, kind: str, key: Key, change: Change) -> Stored:
    """Changes a resource under a lock."""
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
        # New references may have the same targets as the present ones and still be invalid.
        references_differ = wanted != known
        targets_differ = references_differ and not references.same(known, wanted)
        same = _same(_before(old), after) and not targets_differ
        if same and not references_differ:
            return Stored(old["document"], old["version"])
        refs = wanted if references_differ else references.something(kind)
        whole = _as_created(kind, old, after, refs)
        resource.check(service, kind, whole, replaced=change.spec_is_checked or same)
        if same:
            return Stored(old["document"], old["version"])
        if targets_differ:
            refs = targets.resolved(wanted, known) if targets else {}
            references.replace(conn, kind, old["id"], refs)
        row = _row(held, after, change, "rollback" if back else "patch")
        changed = conn.execute(CHANGE_LOCKED[kind], {"ids": filled([old["id"]]), "rows": Jsonb([row])})
    _count_start(service, kind, old)
    return stored(changed, old["version"] + 1)


def _refuse(kind: str, old: State, change: Change) -> None:
    """Raises Problem if the resource must not be changed, or not in this way."""
    change.precondition.check(old["version"])
    _refuse_other_names(kind, old, change.body)
    if old["deleted_time"]:
        raise Problem(WRONG_STATE, f"The {RESOURCES[kind].noun} is being deleted; it cannot be changed.")


def _before(old: State) -> dict[str, Any]:
    return {"labels": old["labels"], "spec": old["spec"]}


def _after(old: State, body: Mapping[str, Any], *, merge: bool) -> dict[str, Any]:
    """Returns the labels and the spec after the change."""
    before = _before(old)
    given = {name: body[name] for name in before if name in body}
    if merge:
        return {"labels": {}, **json_merge_patch.merge(copy.deepcopy(before), given)}
    return {**before, **given}


def _row(held: Held, after: Mapping[str, Any], change: Change, action: str) -> dict[str, Any]:
    """Returns the resource's row for the statement that changes it."""
    old = held.state
    at = max(times.now(), old["updated_time"])
    status = held.fold(at, **after, generation=old["generation"] + 1, updated_time=at)
    own = {"id": old["id"], "version": old["version"], "at": at, "action": action, "status": status}
    return {**own, **after, **change.origin.values()}


def _count_start(service: Service, kind: str, old: State) -> None:
    if is_reconciled(old["status"]):
        service.events.started(kind, deleting=False)


def _as_created(kind: str, old: State, after: Mapping[str, Any], refs: Any) -> dict[str, Any]:
    """Returns the body of a creation that would result in the changed resource. What already broke a
    rule before the change is left out or replaced by something valid.
    """
    # Labels may be older than the check of their syntax.
    labels = after["labels"] if after["labels"] != old["labels"] else {}
    # A name may be older than the present limits of its length, and references older than those of
    # their number.
    of = RESOURCES[kind]
    fits = of.shortest <= len(old["name"]) <= of.longest
    whole = {"name": old["name"] if fits else "x" * of.shortest, **after, "labels": labels}
    return whole | ({"references": refs} if refs else {})


def _scope(key: Key) -> Key:
    """Returns the part of a key that says whose the resource must be: its tenancy, if there is one."""
    return {"tenancy": key["tenancy"]} if "tenancy" in key else {}


def _referred(old: State, change: Change) -> tuple[Any, Any]:
    """Returns the references of a resource before and after the change."""
    known, given = json.loads(old["document"]).get("references", {}), change.body["references"]
    if change.merge and given is not None:
        return known, json_merge_patch.merge(copy.deepcopy(known), given)
    return known, given or {}


def _wanted(kind: str, generation: int, row: Any) -> dict[str, Any]:
    """Returns the labels and the spec of a past generation. Raises Problem if it is not kept."""
    kept, labels, spec = row
    if generation not in kept:
        raise not_kept(kind, generation, kept)
    return {"labels": labels, "spec": spec}


def _same(one: Any, other: Any) -> bool:
    """Whether PostgreSQL considers two JSON values equal: it compares numbers by value, and never
    equates a number with a boolean, while in Python 1 == True.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(_exact(one) == _exact(other))


def _exact(value: Any) -> Any:
    """Returns a number with the value that its text has; the float 1e23 is not exactly 10 ** 23."""
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
