"""What the handlers of all kinds answer to a creation."""

import functools
from typing import Any, LiteralString

import flask
from psycopg.types.json import Jsonb

from hyperfleet.changes import audit
from hyperfleet.database.statements import fetch_one
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.handlers import request
from hyperfleet.handlers.response import shown
from hyperfleet.kinds import BASE, RESOURCES
from hyperfleet.resources import idempotency, references, resource
from hyperfleet.resources.resource import Stored

# What belongs to nothing, several at a time: in one order, so that no two who create several wait for
# each other; and one whose name somebody else is about to give does not keep the others waiting.
ALONE: LiteralString = """
, patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', coalesce(%(patience)s, current_setting('lock_timeout')), true)
), created AS (
    INSERT INTO {table}
        ({columns} id, name, labels, spec, status, created_time, updated_time, created_by, updated_by,
         request, tenancy)
    SELECT {values} id, name, labels, spec, status, at, at, by, by, request, tenancy
    FROM given, patience ORDER BY name, tenancy
    ON CONFLICT {name} DO NOTHING
    RETURNING id, created_time, labels, document, tenancy
)"""
FOUND_ALONE: LiteralString = "SELECT id::text, document::bpchar FROM created"
# The lock keeps the owner from being marked or removed until what belongs to it is there to be seen.
OWNED: LiteralString = """
, owner AS (
    SELECT id, deleted_time, '{parent}' AS kind, {address} AS href, tenancy FROM {parents}
    WHERE id = (SELECT owner_id FROM given) AND tenancy @> (SELECT tenancy FROM given) {only} FOR SHARE
), created AS (
    INSERT INTO {table}
        ({columns} id, owner_id, name, labels, spec, status, created_time, updated_time, created_by,
         updated_by, request, tenancy)
    SELECT {values} given.id, owner.id, name, labels, spec, status, at, at, by, by, request,
           owner.tenancy
    FROM given, owner WHERE owner.deleted_time IS NULL
    ON CONFLICT {name} DO NOTHING
    RETURNING id, created_time, labels, document, tenancy
)"""
FOUND_OWNED: LiteralString = """
SELECT created.id::text, created.document::bpchar, owner.deleted_time IS NOT NULL
FROM owner LEFT JOIN created ON true
"""
LABELLED: LiteralString = """, labelled AS (
    INSERT INTO labels (owner_type, owner_id, key, value, created_time)
    SELECT '{kind}', created.id, label.key, label.value, created.created_time
    FROM created, jsonb_each_text(created.labels) AS label
)
"""


@functools.cache
def _statement(kind: str) -> LiteralString:
    """The statement that creates a resource, and returns its id and its document, which is None where
    the name is taken or what it is to belong to is being deleted, and whether that is so; no row where
    that is not there. Of what belongs to nothing, there is no row either where the name is taken.
    """
    of = RESOURCES[kind]
    parent = RESOURCES[of.parent] if of.parent else of
    columns, values, name = "", "", f"ON CONSTRAINT {of.table}_name"
    if of.shared:
        # Such rows say of what kind they are, and where, and the same of what they belong to.
        columns, values, name = "kind, href,", f"'{kind}', given.href,", ""
        if of.parent:
            columns, values = f"{columns} owner_kind, owner_href,", f"{values} owner.kind, owner.href,"
    rest = OWNED + LABELLED + audit.CREATED + FOUND_OWNED
    if not of.parent:
        rest = ALONE + LABELLED + audit.CREATED + FOUND_ALONE
    whole: LiteralString = "/* {table}_create */" + resource.GIVEN + rest
    return whole.format(
        table=of.table,
        kind=kind,
        columns=columns,
        values=values,
        name=name,
        parent=parent.name,
        parents=parent.table,
        address=parent.address,
        only=parent.only,
    )


def created(kind: str, body: dict[str, Any], parent_id: str | None = None) -> flask.Response:
    """The new resource, or the one of the request that this one repeats.

    :param parent_id: of what it is to belong to
    """
    of = RESOURCES[kind]
    service, shape, statement = request.service(), request.shape(kind), _statement(kind)
    values = resource.first_row(body, service.foldings[kind], request.origin(), request.tenant())
    owner_id = resource.key(of.parent, parent_id) if of.parent and parent_id else None
    within = f"{RESOURCES[of.parent].segment}/{owner_id}/" if of.parent else ""
    location = f"{BASE}/{within}{of.segment}/{values['id']}"
    values |= {"owner_id": owner_id, "href": location}
    once, wanted = request.once(body), body.get("references")
    insert = functools.partial(
        references.insert, kind=kind, statement=statement, values=values, wanted=wanted
    )
    # Of those who want the same name, or the same place for it, one at a time has a connection.
    with service.turns.of((owner_id or f"name {kind} {values['name']} ") + once.tenant):
        if once.key is not None or wanted:
            row, location = idempotency.create(service.pool, once, values["by"], insert, location)
        elif of.parent:
            found = fetch_one(service.pool, statement, {"rows": Jsonb([values])})
            row = found and found[1:]
        else:
            row = wait_for(service.together(statement).get(values["id"], values))
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
