"""What a handler needs of the current request; no other module below the edge reads Flask's."""

from collections.abc import Mapping
from typing import Any

import flask
from psycopg.types.json import Jsonb

from hyperfleet.auth import tenants
from hyperfleet.auth.identity import caller, request_id
from hyperfleet.changes.audit import Origin
from hyperfleet.database.reads import Reader
from hyperfleet.kinds import ALL, BASE, RESOURCES, Key
from hyperfleet.lists import projection
from hyperfleet.lists.projection import Shape
from hyperfleet.resources.etag import Precondition
from hyperfleet.resources.idempotency import Once
from hyperfleet.service import Service
from hyperfleet.settings import tenancy

SERVICE = "hyperfleet"

# The path of resources of all kinds.
OF_ANY = f"{BASE}/resources/"

# A header with the primary's WAL position after the write that the response acknowledges.
POSITION = "Hyperfleet-Position"


def service() -> Service:
    """Returns the objects that handlers work with."""
    found: Service = flask.current_app.extensions[SERVICE]
    return found


def tenant() -> Mapping[str, str]:
    """Returns the tenancy of the caller; empty if the caller sees everything, as all do without tenants.

    Raises LookupError if the tenancy was never determined: such a request fails and sees nothing.
    """
    if not service().settings.tenant_enabled:
        return {}
    found = tenants.current.get()
    if found is None:
        raise LookupError("it is not known whose the request is")
    return found


def scoped(key: Key) -> Key:
    """Returns a key that finds a resource only if the caller's tenant may see it."""
    own = tenant()
    return {**key, "tenancy": Jsonb(own)} if own else key


def shape(kind: str) -> Shape:
    """Returns the shape of the response. Raises Problem, so call it before changing anything."""
    if kind in RESOURCES and f"{flask.request.path}/".startswith(OF_ANY):
        # There the contract describes the members of all kinds, whatever the resource's own kind.
        kind = ALL
    # Parsing an empty query takes longer than all else here.
    names = flask.request.args.get("fields", "") if flask.request.query_string else ""
    agent = flask.request.headers.get("User-Agent", "")
    return projection.shape(names, agent, kind, service().default_fields)


def precondition() -> Precondition:
    """Returns the condition on the version to change, from ``If-Match`` (RFC 9110, 13.1.1)."""
    tags = flask.request.if_match if "If-Match" in flask.request.headers else None
    return Precondition(tags, service().settings.require_if_match)


def origin(reason: str | None = None) -> Origin:
    """Returns who asks for a change, and how; ``reason`` is the one given in the request."""
    return Origin(caller(), request_id.get(), flask.request.method, flask.request.path, reason)


def knows(tag: str) -> bool:
    """Returns whether the client already has the version of this entity tag (RFC 9110, 13.1.2)."""
    return flask.request.if_none_match.contains_weak(tag)


def merges() -> bool:
    """Returns whether the body is a merge patch (RFC 7396)."""
    return flask.request.mimetype == "application/merge-patch+json"


def reader() -> Reader:
    """Returns a reader for the request, which sees at least the write that the client names."""
    return Reader(service().reads, flask.request.headers.get(POSITION, ""))


def once(body: Any) -> Once | None:
    """Returns what identifies a request that must be carried out only once; None for any other."""
    key = flask.request.headers.get("Idempotency-Key")
    return None if key is None else Once(key, flask.request.path, body, tenancy.text(tenant()))


def preferred(name: str) -> str | None:
    """Returns the value of a preference (RFC 7240), or None if the client does not state it."""
    for one in flask.request.headers.get("Prefer", "").split(","):
        said, _, value = one.partition(";")[0].partition("=")
        if said.strip().lower() == name:
            return value.strip().strip('"')
    return None


def streams() -> bool:
    """Returns whether the client prefers a stream of events to JSON."""
    types = ("application/json", "text/event-stream")
    return flask.request.accept_mimetypes.best_match(types) == types[1]


def last_event() -> str:
    """Returns the id of the last event that a reconnecting client has received, or an empty string."""
    return flask.request.headers.get("Last-Event-ID", "")


def address() -> tuple[str, list[tuple[str, str]]]:
    """Returns the path and the query of the request."""
    return flask.request.path, list(flask.request.args.items(multi=True))
