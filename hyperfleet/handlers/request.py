"""What a handler asks of the request at hand: the only place below the edge that knows Flask's."""

from collections.abc import Mapping
from typing import Any

import flask
from psycopg.types.json import Jsonb

from hyperfleet.auth import tenants
from hyperfleet.auth.identity import caller, request_id
from hyperfleet.changes.audit import Origin
from hyperfleet.database.reads import Reader
from hyperfleet.kinds import ALL, BASE, RESOURCES
from hyperfleet.lists import projection
from hyperfleet.lists.projection import Shape
from hyperfleet.resources.etag import Precondition
from hyperfleet.resources.idempotency import Once
from hyperfleet.service import Service
from hyperfleet.settings import tenancy

SERVICE = "hyperfleet"

# Where resources of all kinds are.
OF_ANY = f"{BASE}/resources/"

# How far the primary was when it had written what the answer acknowledged.
POSITION = "Hyperfleet-Position"


def service() -> Service:
    """What handlers work with."""
    found: Service = flask.current_app.extensions[SERVICE]
    return found


def tenant() -> Mapping[str, str]:
    """The tenancy of the caller; empty for who sees everything, as all do where tenants are not kept
    apart.

    Raises LookupError where nobody has asked whose the request is: it fails, and sees nothing.
    """
    if not service().settings.tenant_enabled:
        return {}
    found = tenants.current.get()
    if found is None:
        raise LookupError("it is not known whose the request is")
    return found


def scoped(key: Mapping[str, Any]) -> dict[str, Any]:
    """What finds a resource for the caller: none of another tenant.

    :param key: as :func:`hyperfleet.handlers.operations.key` makes it
    """
    own = tenant()
    return {**key, "tenancy": Jsonb(own)} if own else dict(key)


def shape(kind: str) -> Shape:
    """What the answer is to show of a resource. Raises Problem; call it before anything is changed."""
    if kind in RESOURCES and f"{flask.request.path}/".startswith(OF_ANY):
        # The contract says there what any resource may have, whatever kind it turns out to be of.
        kind = ALL
    names = flask.request.args.get("fields", "")
    agent = flask.request.headers.get("User-Agent", "")
    return projection.shape(names, agent, kind, service().default_fields)


def precondition() -> Precondition:
    """Which version a change is meant for."""
    tags = flask.request.if_match if "If-Match" in flask.request.headers else None
    return Precondition(tags, service().settings.require_if_match)


def origin(reason: str | None = None) -> Origin:
    """Who asks for a change, and how; ``reason`` is what the request says of it."""
    return Origin(caller(), request_id.get(), flask.request.method, flask.request.path, reason)


def knows(tag: str) -> bool:
    """Whether the client has what has this entity tag already (RFC 9110, 13.1.2)."""
    known = flask.request.if_none_match
    return known.star_tag or known.contains_weak(tag)


def merges() -> bool:
    """Whether the body is a merge patch (RFC 7396)."""
    return flask.request.mimetype == "application/merge-patch+json"


def reader() -> Reader:
    """What reads for the request: whatever the write that it comes after has left."""
    return Reader(service().reads, flask.request.headers.get(POSITION, ""))


def once(body: Any) -> Once:
    """What makes the request one that is carried out once only."""
    key = flask.request.headers.get("Idempotency-Key")
    return Once(key, flask.request.path, body, tenancy.text(tenant()))


def preferred(name: str) -> str | None:
    """The value of a preference (RFC 7240), if the client has that."""
    for one in flask.request.headers.get("Prefer", "").split(","):
        said, _, value = one.partition(";")[0].partition("=")
        if said.strip().lower() == name:
            return value.strip().strip('"')
    return None


def streams() -> bool:
    """Whether the client wants events rather than a JSON text."""
    types = ("application/json", "text/event-stream")
    return flask.request.accept_mimetypes.best_match(types) == types[1]


def last_event() -> str:
    """The id of the last event that a client of a stream has had; empty for one that begins."""
    return flask.request.headers.get("Last-Event-ID", "")


def address() -> tuple[str, list[tuple[str, str]]]:
    """The path of the request, and its query."""
    return flask.request.path, list(flask.request.args.items(multi=True))
