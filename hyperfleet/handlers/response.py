"""The responses of handlers."""

from collections.abc import Iterator, Mapping
from typing import Any, LiteralString

from xxhash import xxh3_128_hexdigest

from hyperfleet.database.statements import filled
from hyperfleet.engine.greenlets import run, wait_for
from hyperfleet.engine.response import Response
from hyperfleet.handlers import request
from hyperfleet.kinds import SCOPE, Key, PerKind
from hyperfleet.lists import body, page
from hyperfleet.lists.body import Long
from hyperfleet.lists.page import Within
from hyperfleet.lists.projection import Shape
from hyperfleet.resources.etag import etag, weak
from hyperfleet.resources.resource import Stored, not_found, sees
from hyperfleet.settings import tenancy

WHOLE = Within()
# All rows of a table without maintained counts.
UNCOUNTED = Within("true")

# The resources of an owner.
OWNED: LiteralString = "owner_id = %(owner_id)s"
OWNED_SEEN: LiteralString = f"{OWNED} {SCOPE}"
OWNER = PerKind("SELECT 1 FROM {table} WHERE id = %(owner_id)s {only} {scope}")
# The resource about which something is listed.
EXISTS = PerKind("SELECT 1 FROM {table} WHERE id = %(id)s {under} {only} {scope}")

READ = PerKind("""/* {table}_read */
SELECT id::text, {document}::bpchar, version, {owner}::text {tenancy} FROM {table}
WHERE id = ANY(%(ids)s::uuid[]) {only}
""")


def answer(
    document: bytes | Iterator[bytes], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a response whose body is finished JSON text, whole or in pieces."""
    return Response(status, {"Content-Type": "application/json", **(headers or {})}, document)


def empty(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a response without a body."""
    return Response(status, headers or {}, b"")


def shown(shape: Shape, stored: Stored, status: int = 200, location: str = "") -> Response:
    """Returns a response with a resource in a shape.

    :param location: the URL of a new resource
    """
    headers = {"ETag": etag(stored.version), **shape.headers}
    if location:
        headers["Location"] = location
    return answer(shape.text(stored.document), status, headers)


def read(kind: str, key: Key) -> Response:
    """Returns the response to a GET of a resource: 304 if the client has it (RFC 9110, 13.1.2).

    Raises Problem if there is no such resource.
    """
    shape, reader, key = request.shape(kind), request.reader(), request.scoped(key)
    statement = READ.of(kind, key)
    if reader.after:
        row = reader.one(statement, {"ids": filled([key["id"]])})
        found = row and row[1:]
    else:
        found = wait_for(request.service().read_together(statement).get(key["id"]))
    # One statement may read for several callers, so the owner and the tenancy are checked here.
    if found is None or key.get("owner_id") not in (None, found[2]) or not sees(key, found[3:]):
        raise not_found(kind, key["id"])
    stored = Stored(*found[:2])
    if request.knows(str(stored.version)):
        return empty(304, {"ETag": etag(stored.version), **shape.headers})
    return shown(shape, stored)


def owned_by(kind: str, owner_id: str) -> Within:
    """Returns the list of what a resource of this kind owns, if the caller may see that resource."""
    values = request.scoped({"owner_id": owner_id})
    where = OWNED_SEEN if "tenancy" in values else OWNED
    return Within(where, values, OWNER.of(kind, values), not_found(kind, owner_id))


def about(kind: str, key: Key, where: LiteralString, more: Mapping[str, Any] | None = None) -> Within:
    """Returns a list of what is stored about a resource, if the caller may see it.

    :param where: the condition for the list; ``more``: its values beyond the key
    """
    own = request.scoped(key)
    values = {"owner_id": None, **(more or {}), **own}
    return Within(where, values, EXISTS.of(kind, own), not_found(kind, key["id"]))


def listed(kind: str, query: Mapping[str, Any], within: Within = WHOLE) -> Response:
    """Returns the page of a list that a request asks for, or 304 if the client already has it.

    The entity tag is a hash of the page without its link to the changes. As long as nothing is written
    to the database, the page is not even queried.
    """
    service, shape, (path, given) = request.service(), request.shape(kind), request.address()
    reader, tenant = request.reader(), request.tenant()
    # The URL says all of what is wanted but for a client's default fields, the position that it names,
    # and its tenancy.
    key = (path, *given, shape.agent, reader.after, tenancy.text(tenant))
    tag = service.tags.last(key)
    if tag and request.knows(tag) and wait_for(service.tags.still(key)):
        return empty(304, {"ETag": weak(tag), **shape.headers})

    def read_page() -> tuple[bytes | Long, str]:
        renewed = service.pool.renewed
        if tenant and within in (WHOLE, UNCOUNTED):
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
        def read_documents() -> dict[str, bytes]:
            found = page.documents(reader, kind, identities, within)
            return {identity: shape.text(document) for identity, document in found.items()}

        return wait_for(service.lists.get((key, *identities), lambda: run(read_documents)))

    text, tag = wait_for(service.lists.get(key, lambda: run(read_page)))
    if isinstance(text, Long):
        return answer(body.stream(text, documents), 200, shape.headers)
    headers = {"ETag": weak(tag), **shape.headers}
    return empty(304, headers) if request.knows(tag) else answer(text, 200, headers)
