"""Creating a resource of any kind."""

import functools
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from hyperfleet.changes import audit
from hyperfleet.database.statements import fetch_one, transaction
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.engine.response import Response
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.handlers import request
from hyperfleet.handlers.response import shown
from hyperfleet.kinds import BASE, RESOURCES
from hyperfleet.resources import idempotency, references, resource
from hyperfleet.resources.resource import Stored
from hyperfleet.settings import tenancy

# For kinds without a parent, several at a time. The fixed order keeps two such statements from
# deadlocking; ``lock_timeout`` keeps a name that is just being taken from holding up the other rows.
ALONE: LiteralString = """
, lock_timeout AS MATERIALIZED (
    SELECT set_config('lock_timeout', coalesce(%(lock_timeout)s, current_setting('lock_timeout')), true)
), created AS (
    INSERT INTO {table}
        ({columns} id, name, labels, spec, status, created_time, updated_time, created_by, updated_by,
         request, tenancy)
    SELECT {values} id, name, labels, spec, status, at, at, by, by, request, tenancy
    FROM given, lock_timeout ORDER BY name, tenancy
    ON CONFLICT {name} DO NOTHING
    RETURNING id, created_time, labels, document, tenancy
)"""
FOUND_ALONE: LiteralString = "SELECT id::text, document::bpchar FROM created"
# The lock keeps the owner from being marked or removed until the new resource is visible.
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
    """Returns the statement that creates a resource and yields its id and document.

    With a parent, it also yields whether the owner is being deleted; then, and if the name is taken, the
    document is null; there is no row if the owner is missing, or without a parent, if the name is taken.
    """
    of = RESOURCES[kind]
    parent = RESOURCES[of.parent] if of.parent else of
    columns, values, name = "", "", f"ON CONSTRAINT {of.table}_name"
    if of.shared:
        # Rows of shared tables state their kind and href, and those of their owner.
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


def created(kind: str, body: dict[str, Any], parent_id: str) -> Response:
    """Creates a resource, unless this request repeats an earlier one, and returns it. Raises Problem.

    :param parent_id: the id of its owner; empty for a kind without a parent
    """
    of = RESOURCES[kind]
    parent = RESOURCES[of.parent] if of.parent else None
    service, shape, tenant = request.service(), request.shape(kind), request.tenant()
    statement = _statement(kind)
    values = resource.first_row(body, service.foldings[kind], request.origin(), tenant)
    owner_id = resource.id_in_path(parent.name, parent_id) if parent else None
    within = f"{parent.segment}/{owner_id}/" if parent else ""
    location = f"{BASE}/{within}{of.segment}/{values['id']}"
    values |= {"owner_id": owner_id, "href": location}
    once, wanted = request.once(body), body.get("references")
    insert = functools.partial(
        references.insert, kind=kind, statement=statement, values=values, wanted=wanted
    )
    # Of the requests for one name, or for one owner, only one at a time holds a connection.
    with service.turns.of((owner_id or f"name {kind} {values['name']} ") + tenancy.text(tenant)):
        if once is not None:
            row, location = idempotency.create(service.pool, once, values["by"], insert, location)
        elif wanted:
            with transaction(service.pool) as conn:
                found = insert(conn)
            row = found and found[1:]
        elif parent:
            found = fetch_one(service.pool, statement, {"rows": Jsonb([values])})
            row = found and found[1:]
        else:
            row = wait_for(service.together(statement).get(values["id"], values))
    if row is None and parent:
        raise resource.not_found(parent.name, parent_id)
    document, *marked = row or (None,)
    if document is None and marked == [True] and parent:
        detail = f"The {parent.noun} is being deleted; no {of.noun} can be added to it."
        raise Problem(WRONG_STATE, detail)
    if document is None:
        raise resource.name_taken(service, kind, values)
    if location.endswith(values["id"]):
        # A repetition would have the location of the first request.
        service.events.started(kind, deleting=False)
    return shown(shape, Stored(document, 1), 201, location)
