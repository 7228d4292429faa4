"""What clusters and node pools have in common: ids, a first row, answers."""

import json
import re
from collections.abc import Mapping
from typing import Any, LiteralString

import flask
import uuid_utils
from psycopg.types.json import Jsonb

from hyperfleet import aggregation, schema
from hyperfleet.errors import CHANGED_SINCE, INVALID, NOT_FOUND, UNCONDITIONAL, Problem
from hyperfleet.identity import caller
from hyperfleet.settings import Settings

BASE = "/api/hyperfleet/v1"
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)

NOUNS = {"Cluster": "cluster", "NodePool": "node pool"}


def both(statement: LiteralString) -> dict[str, LiteralString]:
    """A statement for each of the two kinds: ``{table}`` and ``{kind}`` are its names, ``{under}`` is
    the condition that a node pool belongs to the cluster that the path names.
    """
    return {
        "Cluster": statement.format(table="clusters", kind="Cluster", under=""),
        "NodePool": statement.format(
            table="node_pools", kind="NodePool", under="AND owner_id = %(owner_id)s"
        ),
    }


def key_of(cluster_id: str, nodepool_id: str | None = None) -> dict[str, Any]:
    """What finds the resource that a path names: ``id``, and ``owner_id`` of a node pool."""
    if nodepool_id is None:
        return {"id": key("Cluster", cluster_id)}
    return {"id": key("NodePool", nodepool_id), "owner_id": key("Cluster", cluster_id)}


def not_found(kind: str, id_: str) -> Problem:
    """The error of a resource that is not there, or not where it was looked for."""
    return Problem(NOT_FOUND, f"There is no {NOUNS[kind]} with the id '{id_[:100]}' here.")


def key(kind: str, id_: str) -> str:
    """An id from a path. Raises Problem, not found, for what no resource can have as its id."""
    if not UUID.fullmatch(id_):
        raise not_found(kind, id_)
    return id_.lower()


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
    at = aggregation.now()
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


def show(document: str, version: int) -> flask.Response:
    """The answer to a GET: the document, or 304 for who has it already (RFC 9110, 13.1.2)."""
    tag = etag(version)
    known = flask.request.if_none_match
    if known.star_tag or known.contains_weak(str(version)):
        return empty(304, ETag=tag)
    return answer(document, ETag=tag)


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
