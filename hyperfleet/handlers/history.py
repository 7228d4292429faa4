"""What was wanted of a resource before, and what became of its conditions."""

from typing import Any, LiteralString

import flask

from hyperfleet.changes.history import ONE, TWO, not_kept
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.handlers import request
from hyperfleet.handlers.response import about, answer, listed, shown
from hyperfleet.resources import lifecycle, resource
from hyperfleet.resources.lifecycle import Change

OF: LiteralString = "owner_id = %(id)s"
OF_TYPE: LiteralString = "owner_id = %(id)s AND type = %(type)s"


def generations(kind: str, key: dict[str, Any], query: dict[str, Any]) -> flask.Response:
    """One page of the generations of a resource, the newest first.

    :param key: finds it, as :func:`hyperfleet.handlers.operations.key` has it
    """
    return listed("ResourceGeneration", query, about(kind, key, OF))


def one_generation(kind: str, key: dict[str, Any], number: int) -> flask.Response:
    """One generation. Raises Problem where it is not kept."""
    shape, key = request.shape("ResourceGeneration"), request.scoped(key)
    values = {"owner_id": None, **key, "generation": number}
    found = request.reader().rows(ONE.of(kind, key), values)
    if not found:
        raise resource.not_found(kind, key["id"])
    [(kept, document)] = found
    if document is None:
        raise not_kept(kind, number, kept)
    return answer(shape.text(document), 200, shape.headers)


def difference(kind: str, key: dict[str, Any], number: int, to: int | None) -> flask.Response:
    """What makes one generation of another. Raises Problem where one of them is not kept."""
    key = request.scoped(key)
    values = {"owner_id": None, **key, "generation": number, "to": to}
    rows = request.reader().rows(TWO.of(kind, key), values)
    if not rows:
        raise resource.not_found(kind, key["id"])
    [(kept, other, before, after)] = rows
    for one, found in ((number, before), (other, after)):
        if found is None:
            raise not_kept(kind, one, kept)
    members = [dict(zip(("labels", "spec"), one, strict=True)) for one in (before, after)]
    operations = wait_for(request.service().differences.text(*members))
    return answer(b'{"from":%d,"to":%d,"operations":%b}' % (number, other, operations))


def rolled_back(kind: str, key: dict[str, Any], body: dict[str, Any]) -> flask.Response:
    """The resource after labels and spec of a past generation are wanted of it again."""
    shape = request.shape(kind)
    number, why = body["generation"], body.get("reason")
    said = f"back to generation {number}" + (f": {why}" if why else "")
    change = Change({}, False, request.precondition(), request.origin(said), False, number)
    return shown(shape, lifecycle.patch(request.service(), kind, request.scoped(key), change))


def transitions(kind: str, key: dict[str, Any], query: dict[str, Any]) -> flask.Response:
    """One page of what became of the conditions of a resource, the newest first."""
    type_ = query.pop("type_", None)
    return listed("Transition", query, about(kind, key, OF_TYPE if type_ else OF, {"type": type_}))
