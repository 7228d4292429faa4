"""What clusters and node pools have in common: ids, a first row, answers."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString

import flask
import uuid_utils
from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from hyperfleet import aggregation, database, projection, schema, times
from hyperfleet.errors import (
    CHANGED_SINCE,
    INVALID,
    NAME_TAKEN,
    NOT_FOUND,
    UNCONDITIONAL,
    Fault,
    Problem,
    with_value,
)
from hyperfleet.identity import caller
from hyperfleet.kinds import RESOURCES
from hyperfleet.projection import Shape
from hyperfleet.settings import Settings

BASE = "/api/hyperfleet/v1"
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def both(statement: LiteralString) -> dict[str, LiteralString]:
    """A statement for each kind of resource: ``{table}`` and ``{kind}`` are its names, ``{under}`` is
    the condition that it belongs to the owner that the path names, if it has and names one.
    """
    under = "AND (%(owner_id)s::uuid IS NULL OR owner_id = %(owner_id)s)"
    return {
        kind.name: statement.format(table=kind.table, kind=kind.name, under=under if kind.parent else "")
        for kind in RESOURCES.values()
    }


# Who has a name, and the constraints that keep it from a second one.
HOLDER = both("SELECT id::text, deleted_time IS NOT NULL FROM {table} WHERE name = %(name)s {under}")
NAMES = ("clusters_name", "node_pools_name")


def key_of(cluster_id: str | None, nodepool_id: str | None = None) -> dict[str, Any]:
    """What finds the resource that a path names: ``id``, and ``owner_id`` of a node pool, which is None
    where the path names no cluster.
    """
    owner = None if cluster_id is None else key("Cluster", cluster_id)
    if nodepool_id is None:
        return {"id": owner}
    return {"id": key("NodePool", nodepool_id), "owner_id": owner}


def not_found(kind: str, id_: str) -> Problem:
    """The error of a resource that is not there, or not where it was looked for."""
    return Problem(NOT_FOUND, f"There is no {RESOURCES[kind].noun} with the id '{id_[:100]}' here.")


def key(kind: str, id_: str) -> str:
    """An id from a path. Raises Problem, not found, for what no resource can have as its id."""
    if not UUID.fullmatch(id_):
        raise not_found(kind, id_)
    return id_.lower()


@contextmanager
def unique_name(kind: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Runs the block that creates a resource.

    :param values: its ``name``, and ``owner_id`` of a node pool
    Raises Problem when another has the name, which says which one and whether it is being deleted.
    """
    try:
        yield
    except UniqueViolation as error:
        if error.diag.constraint_name not in NAMES:
            raise
        holder = database.fetch_one(HOLDER[kind], dict(values))
        message = f"is the name of another {RESOURCES[kind].noun}"
        if holder:
            message += f", {holder[0]}" + (", which is being deleted" if holder[1] else "")
        fault: Fault = {"field": "name", "message": message, "constraint": "unique"}
        raise Problem(NAME_TAKEN, faults=[with_value(fault, values["name"])]) from None


def required_adapters(kind: str) -> tuple[str, ...]:
    """The adapters that count in the status of a resource; empty: all that have reported."""
    settings: Settings = flask.current_app.config["HYPERFLEET"]
    return settings.required_adapters(kind)


def check(kind: str, body: Mapping[str, Any]) -> None:
    """Raises Problem for what could not be the body of a creation: the result of a patch."""
    settings: Settings = flask.current_app.config["HYPERFLEET"]
    found = list(schema.faults(flask.current_app.extensions["creation"][kind], body))
    found += flask.current_app.extensions["provider"].faults(kind, body.get("spec"))
    # As short as a client could have written it.
    whole = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    if not found and len(whole) > settings.max_body_size:
        message = f"must have at most {settings.max_body_size} bytes as a whole"
        found = [{"field": "body", "message": message, "constraint": "size"}]
    if found:
        raise Problem(INVALID, faults=found)


def first_row(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a new row, from the body of a request that was validated."""
    at = times.now()
    born = {"generation": 1, "created_time": at, "updated_time": at}
    return {
        "id": str(uuid_utils.uuid7()),
        "name": body["name"],
        "labels": Jsonb(body.get("labels", {})),
        "spec": Jsonb(body["spec"]),
        "status": Jsonb(aggregation.fold(born, (), None, required_adapters(kind), at)),
        "at": at,
        "by": caller(),
    }


def answer(document: str, status: int = 200, **headers: str) -> flask.Response:
    """A response whose body is JSON text that is finished already."""
    response = flask.Response(document, status, mimetype="application/json")
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


def empty(status: int, **headers: str) -> flask.Response:
    """A response without a body."""
    response = answer("", status, **headers)
    del response.headers["Content-Type"]
    return response


def etag(version: int) -> str:
    """The entity tag of a resource: strong, since each write raises the version (RFC 9110, 8.8.3)."""
    return f'"{version}"'


def show(kind: str, document: str, version: int) -> flask.Response:
    """The answer to a GET: the document, or 304 for who has it already (RFC 9110, 13.1.2)."""
    shape = projection.asked(kind)
    tag = etag(version)
    known = flask.request.if_none_match
    if known.star_tag or known.contains_weak(str(version)):
        return empty(304, ETag=tag)
    return shaped(shape, document, ETag=tag)


def shaped(shape: Shape, document: str, status: int = 200, **headers: str) -> flask.Response:
    """As :func:`answer`, with a resource's document in a shape."""
    return answer(shape.text(document), status, **headers, **shape.headers)


def require_match(version: int) -> None:
    """Lets a change pass that was meant for this version (RFC 9110, 13.1.1).

    Raises Problem for another version, and, where the setting asks for it, for a change that does
    not say which version it is meant for.
    """
    settings: Settings = flask.current_app.config["HYPERFLEET"]
    if "If-Match" not in flask.request.headers:
        if settings.require_if_match:
            raise Problem(UNCONDITIONAL)
        return
    # Weak tags never match here: a weak comparison could overwrite a change that it overlooks.
    if not flask.request.if_match.contains(str(version)):
        raise Problem(CHANGED_SINCE, headers={"ETag": etag(version)})
