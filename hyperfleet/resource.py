"""What clusters and node pools have in common: ids, a first row, answers."""

import re
from collections.abc import Mapping
from typing import Any

import flask
import uuid_utils
from psycopg.types.json import Jsonb

from hyperfleet import aggregation
from hyperfleet.errors import NOT_FOUND, Problem
from hyperfleet.identity import caller
from hyperfleet.settings import Settings

BASE = "/api/hyperfleet/v1"
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)

NOUNS = {"Cluster": "cluster", "NodePool": "node pool"}


def not_found(kind: str, id_: str) -> Problem:
    """The error of a resource that is not there, or not where it was looked for."""
    return Problem(NOT_FOUND, f"There is no {NOUNS[kind]} with the id '{id_[:100]}' here.")


def key(kind: str, id_: str) -> str:
    """An id from a path. Raises Problem, not found, for what no resource can have as its id."""
    if not UUID.fullmatch(id_):
        raise not_found(kind, id_)
    return id_


def required_adapters(kind: str) -> tuple[str, ...]:
    """The adapters that count in the status of a resource; empty: all that have reported."""
    settings: Settings = flask.current_app.config["HYPERFLEET"]
    return settings.required_adapters(kind)


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
