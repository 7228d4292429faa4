"""The operations on resources of a kind, which each is given first: those of declared kinds are bound to
it by the contract, those of clusters and node pools by the modules of these names.
"""

from typing import Any, LiteralString

import flask

from hyperfleet.changes.history import ONE, TWO, not_kept
from hyperfleet.engine.greenlets import to_the_end, wait_for
from hyperfleet.errors import INVALID, Problem
from hyperfleet.handlers import request
from hyperfleet.handlers.creation import created
from hyperfleet.handlers.response import about, answer, below, empty, listed, read, shown
from hyperfleet.handlers.statuses import report
from hyperfleet.kinds import BASE, RESOURCES, Kind
from hyperfleet.resources import lifecycle, marking, removal, resource
from hyperfleet.resources.lifecycle import Change

# What there is about a resource.
OF: LiteralString = "owner_id = %(id)s"
OF_TYPE: LiteralString = f"{OF} AND type = %(type)s"
REPORTS: LiteralString = "owner_type = %(kind)s AND owner_id = %(id)s"


def key(kind: str, path: dict[str, Any]) -> dict[str, Any]:
    """What finds the resource that a path names, which takes the ids away from what the path has:
    ``id``, and ``owner_id`` of what belongs to another, which is None where the path does not name that.
    """
    of = RESOURCES[kind]
    owner = {"owner_id": _owner(of, path)} if of.parent else {}
    return {"id": resource.key(kind, path.pop(of.key)), **owner}


def _owner(of: Kind, path: dict[str, Any]) -> str | None:
    """The id of the owner that a path names. Raises Problem where none can have it."""
    given = path.pop(RESOURCES[of.parent].key, None) if of.parent else None
    return resource.key(of.parent, given) if of.parent and given is not None else None


def get_resources(kind: str, **given: Any) -> flask.Response:
    """One page of the resources of a kind, or of those that belong to the one which the path names."""
    of = RESOURCES[kind]
    owner_id = _owner(of, given)
    if owner_id is None or of.parent is None:
        return listed(kind, given)
    return listed(kind, given, below(of.parent, owner_id))


def post_resource(kind: str, body: dict[str, Any], **path: Any) -> flask.Response:
    """Creates a resource. A name that another of its kind has, where it belongs, is a conflict, and so
    is an owner that is being deleted.
    """
    of = RESOURCES[kind]
    parent_id = path.get(RESOURCES[of.parent].key) if of.parent else None
    if of.parent and parent_id is None:
        raise elsewhere(of)
    return created(kind, body, parent_id)


def elsewhere(of: Kind) -> Problem:
    """The error of a creation that does not say what the new resource is to belong to."""
    assert of.parent
    parent = RESOURCES[of.parent]
    path = f"{BASE}/{parent.segment}/{{{parent.key}}}/{of.segment}"
    message = f"must be in the path, since a {of.noun} belongs to a {parent.noun}: POST {path}"
    return Problem(INVALID, faults=[{"field": parent.key, "message": message, "constraint": "required"}])


def get_resource_by_id(kind: str, **path: Any) -> flask.Response:
    """A resource; where the path names what it belongs to, found under that one alone."""
    return read(kind, key(kind, path))


def patch_resource_by_id(
    kind: str, body: dict[str, Any], *, checked: bool = True, **path: Any
) -> flask.Response:
    """Changes a resource's labels or spec.

    :param checked: whether the body was held against the provider's schema already
    """
    own, shape = key(kind, path), request.shape(kind)
    change = Change(body, request.merges(), request.precondition(), request.origin(), checked)
    return shown(shape, lifecycle.patch(request.service(), kind, request.scoped(own), change))


def delete_resource_by_id(kind: str, **path: Any) -> flask.Response:
    """Marks a resource, and what belongs to it, as deleted."""
    own, shape = request.scoped(key(kind, path)), request.shape(kind)
    # Much may be below it: who comes again after the end of his time finds it done.
    marked = to_the_end(
        marking.mark, request.service(), kind, own, request.precondition(), request.origin()
    )
    return shown(shape, marked, 202)


def force_delete_resource(kind: str, body: dict[str, Any], **path: Any) -> flask.Response:
    """Removes a marked resource, and what belongs to it, now."""
    own, origin = request.scoped(key(kind, path)), request.origin(body["reason"])
    to_the_end(removal.force, request.service(), kind, own, origin)
    return empty(204)


def get_resource_statuses(kind: str, **given: Any) -> flask.Response:
    """One page of the reports on a resource."""
    within = about(kind, key(kind, given), REPORTS, {"kind": kind})
    return listed("AdapterStatus", given, within)


def put_resource_statuses(kind: str, body: dict[str, Any], **path: Any) -> flask.Response:
    """Takes a report on a resource."""
    return report(kind, key(kind, path), body)


def get_resource_history(kind: str, **given: Any) -> flask.Response:
    """One page of the generations of a resource, the newest first."""
    return listed("ResourceGeneration", given, about(kind, key(kind, given), OF))


def get_resource_generation(kind: str, generation: int, **path: Any) -> flask.Response:
    """A generation of a resource. Raises Problem where it is not kept."""
    own = request.scoped(key(kind, path))
    shape = request.shape("ResourceGeneration")
    values = {"owner_id": None, **own, "generation": generation}
    found = request.reader().rows(ONE.of(kind, own), values)
    if not found:
        raise resource.not_found(kind, own["id"])
    [(kept, document)] = found
    if document is None:
        raise not_kept(kind, generation, kept)
    return answer(shape.text(document), 200, shape.headers)


def get_resource_generation_diff(
    kind: str, generation: int, to: int | None = None, **path: Any
) -> flask.Response:
    """What makes one generation of another. Raises Problem where one of them is not kept."""
    own = request.scoped(key(kind, path))
    values = {"owner_id": None, **own, "generation": generation, "to": to}
    rows = request.reader().rows(TWO.of(kind, own), values)
    if not rows:
        raise resource.not_found(kind, own["id"])
    [(kept, other, before, after)] = rows
    for one, found in ((generation, before), (other, after)):
        if found is None:
            raise not_kept(kind, one, kept)
    members = [dict(zip(("labels", "spec"), one, strict=True)) for one in (before, after)]
    operations = wait_for(request.service().differences.text(*members))
    return answer(b'{"from":%d,"to":%d,"operations":%b}' % (generation, other, operations))


def rollback_resource(kind: str, body: dict[str, Any], **path: Any) -> flask.Response:
    """Wants of a resource the labels and the spec of a past generation again."""
    own, shape = key(kind, path), request.shape(kind)
    number, why = body["generation"], body.get("reason")
    said = f"back to generation {number}" + (f": {why}" if why else "")
    change = Change({}, False, request.precondition(), request.origin(said), False, number)
    return shown(shape, lifecycle.patch(request.service(), kind, request.scoped(own), change))


def get_resource_transitions(kind: str, **given: Any) -> flask.Response:
    """One page of what became of the conditions of a resource, the newest first."""
    own, type_ = key(kind, given), given.pop("type_", None)
    return listed("Transition", given, about(kind, own, OF_TYPE if type_ else OF, {"type": type_}))
