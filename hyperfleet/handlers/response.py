"""The answers of the handlers."""

from collections.abc import Iterator, Mapping
from typing import Any, LiteralString

import flask
from xxhash import xxh3_128_hexdigest

from hyperfleet.database.statements import filled
from hyperfleet.engine.greenlets import run, wait_for
from hyperfleet.handlers import request
from hyperfleet.kinds import SCOPE, both
from hyperfleet.lists import body, page
from hyperfleet.lists.body import Long
from hyperfleet.lists.page import Within
from hyperfleet.lists.projection import Shape
from hyperfleet.resources.etag import etag, weak
from hyperfleet.resources.resource import Stored, not_found, sees
from hyperfleet.settings import tenancy

ALL = Within()
# Everything, where nobody keeps count of the rows.
UNCOUNTED = Within("true")

# Of what belongs to another.
OWNED: LiteralString = "owner_id = %(owner_id)s"
OWNED_SEEN: LiteralString = f"{OWNED} {SCOPE}"
OWNER = both("SELECT 1 FROM {table} WHERE id = %(owner_id)s {only} {scope}")
# One of which something is listed.
EXISTS = both("SELECT 1 FROM {table} WHERE id = %(id)s {under} {only} {scope}")

READ = both("""/* {table}_read */
SELECT id::text, {document}::bpchar, version, {owner}::text {tenancy} FROM {table}
WHERE id = ANY(%(ids)s::uuid[]) {only}
""")


def answer(
    document: bytes | str | Iterator[bytes], status: int = 200, headers: Mapping[str, str] | None = None
) -> flask.Response:
    """A response whose body is JSON text that is finished already, or comes in pieces."""
    response = flask.Response(document, status, mimetype="application/json")
    response.headers.update(headers or {})
    return response


def empty(status: int, headers: Mapping[str, str] | None = None) -> flask.Response:
    """A response without a body."""
    response = answer("", status, headers)
    del response.headers["Content-Type"]
    return response


def shown(shape: Shape, stored: Stored, status: int = 200, location: str = "") -> flask.Response:
    """A resource, in a shape.

    :param location: where it is, when it is new
    """
    headers = {"ETag": etag(stored.version), **shape.headers}
    if location:
        headers["Location"] = location
    return answer(shape.text(stored.document), status, headers)


def read(kind: str, key: Mapping[str, Any]) -> flask.Response:
    """The answer to a GET of a resource: 304 for who has it already (RFC 9110, 13.1.2).

    :param key: as :func:`hyperfleet.handlers.operations.key` makes it
    Raises Problem where it is not.
    """
    shape, reader, key = request.shape(kind), request.reader(), request.scoped(key)
    statement = READ.of(kind, key)
    if reader.after:
        row = reader.one(statement, {"ids": filled([key["id"]])})
        found = row and row[1:]
    else:
        found = wait_for(request.service().read(statement).get(key["id"]))
    # What several ask for at once is read for all of them.
    if found is None or key.get("owner_id") not in (None, found[2]) or not sees(key, found[3:]):
        raise not_found(kind, key["id"])
    stored = Stored(*found[:2])
    if request.knows(str(stored.version)):
        return empty(304, {"ETag": etag(stored.version), **shape.headers})
    return shown(shape, stored)


def below(kind: str, owner_id: str) -> Within:
    """What belongs to a resource, whose kind this is, if the caller sees that."""
    values = request.scoped({"owner_id": owner_id})
    where = OWNED_SEEN if "tenancy" in values else OWNED
    return Within(where, values, OWNER.of(kind, values), not_found(kind, owner_id))


def about(
    kind: str, key: Mapping[str, Any], where: LiteralString, more: Mapping[str, Any] | None = None
) -> Within:
    """What there is about a resource, if the caller sees that.

    :param key: finds the resource, as :func:`hyperfleet.handlers.operations.key` makes it
    :param where: the condition that makes the list, and ``more`` values for it than the key has
    """
    own = request.scoped(key)
    values = {"owner_id": None, **(more or {}), **own}
    return Within(where, values, EXISTS.of(kind, own), not_found(kind, key["id"]))


def listed(kind: str, query: Mapping[str, Any], within: Within = ALL) -> flask.Response:
    """The page of a list that a request asks for: 304 for who has it already.

    Its entity tag stands for what it has, and so changes with that and with nothing else. As long as
    nothing is written to the database, the page is not even looked for.
    """
    service, shape, (path, given) = request.service(), request.shape(kind), request.address()
    reader, tenant = request.reader(), request.tenant()
    # The address says all of what is wanted, but for what a client is shown that does not say it, and
    # whose it is.
    key = (path, *given, shape.agent, reader.after, tenancy.text(tenant))
    tag = service.tags.last(key)
    if tag and request.knows(tag) and wait_for(service.tags.still(key)):
        return empty(304, {"ETag": weak(tag), **shape.headers})

    def made() -> tuple[bytes | Long, str]:
        renewed = service.pool.renewed
        if tenant and within in (ALL, UNCOUNTED):
            wanted, found = service.tenants.page(reader, kind, query, tenant)
        else:
            wanted, found = page.page(reader, kind, query, within)
        text = body.text(kind, wanted, found, shape, path, given)
        changes = body.changes(kind, found, shape, given, within)
        if isinstance(text, Long):
            return text._replace(changes=changes), ""
        tag = xxh3_128_hexdigest(text)
        service.tags.keep(key, tag, found.moment, renewed)
        return body.linked(text, changes), tag

    def documents(identities: list[str]) -> dict[str, bytes]:
        def read() -> dict[str, bytes]:
            found = page.documents(reader, kind, identities, within)
            return {identity: shape.text(document) for identity, document in found.items()}

        return wait_for(service.lists.get((key, *identities), lambda: run(read)))

    text, tag = wait_for(service.lists.get(key, lambda: run(made)))
    if isinstance(text, Long):
        return answer(body.stream(text, documents), 200, shape.headers)
    headers = {"ETag": weak(tag), **shape.headers}
    return empty(304, headers) if request.knows(tag) else answer(text, 200, headers)
