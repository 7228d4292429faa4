"""What the handlers of all kinds answer to a creation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, LiteralString, TypeAlias

import flask
from psycopg.types.json import Jsonb

from hyperfleet.database.statements import fetch_one
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.handlers import request
from hyperfleet.handlers.response import shown
from hyperfleet.kinds import BASE, RESOURCES
from hyperfleet.resources import idempotency, references, resource
from hyperfleet.resources.resource import Stored
from hyperfleet.service import Service

# How a statement goes on that has ``created`` a resource, and what of it where that is to belong to an
# ``owner``.
LABELLED: LiteralString = """, labelled AS (
    INSERT INTO labels (owner_type, owner_id, key, value, created_time)
    SELECT '{kind}', created.id, label.key, label.value, created.created_time
    FROM created, jsonb_each_text(created.labels) AS label
)
"""
FOUND: LiteralString = """
SELECT created.id::text, created.document::bpchar, owner.deleted_time IS NOT NULL
FROM owner LEFT JOIN created ON true
"""
# What a statement that creates returns, but for the id.
Row: TypeAlias = Sequence[Any] | None


def alone(service: Service, statement: LiteralString, values: Mapping[str, Any]) -> Row:
    """Creates a resource with a statement of its own."""
    row = fetch_one(service.pool, statement, {"rows": Jsonb([values])})
    return row and row[1:]


def created(
    kind: str,
    body: dict[str, Any],
    statement: LiteralString,
    parent_id: str | None = None,
    run: Callable[[Service, LiteralString, Mapping[str, Any]], Row] = alone,
) -> flask.Response:
    """The new resource, or the one of the request that this one repeats.

    :param statement: creates it, and returns its id and its document, which is None where the name is
        taken or what it is to belong to is being deleted, and whether that is so; no row where that is
        not there
    :param parent_id: of what it is to belong to
    :param run: runs the statement where nothing else must happen with it
    """
    of = RESOURCES[kind]
    service, shape = request.service(), request.shape(kind)
    values = resource.first_row(body, service.foldings[kind], request.origin(), request.tenant())
    owner_id = resource.key(of.parent, parent_id) if of.parent and parent_id else None
    within = f"{RESOURCES[of.parent].segment}/{owner_id}/" if of.parent else ""
    location = f"{BASE}/{within}{of.segment}/{values['id']}"
    values |= {"owner_id": owner_id, "href": location}
    once, wanted = request.once(body), body.get("references")
    insert = partial(references.insert, kind=kind, statement=statement, values=values, wanted=wanted)
    # Of those who want the same name, or the same place for it, one at a time has a connection.
    with service.turns.of((owner_id or f"name {kind} {values['name']} ") + once.tenant):
        if once.key is None and not wanted:
            row = run(service, statement, values)
        else:
            row, location = idempotency.create(service.pool, once, values["by"], insert, location)
    if row is None and of.parent and parent_id:
        raise resource.not_found(of.parent, parent_id)
    document, *marked = row or (None,)
    if document is None and marked == [True] and of.parent:
        above = RESOURCES[of.parent].noun
        raise Problem(WRONG_STATE, f"The {above} is being deleted; no {of.noun} can be added to it.")
    if document is None:
        raise resource.name_taken(service, kind, values)
    if location.endswith(values["id"]):
        # Not the answer to a repetition.
        service.events.started(kind, deleting=False)
    return shown(shape, Stored(document, 1), 201, location)
