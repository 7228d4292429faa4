"""The operations on resources of a kind, which is each function's first argument.

For declared kinds the contract binds it; for clusters and node pools, the modules of these names do.
"""

from typing import Any, LiteralString

from hyperfleet.changes.history import ONE, TWO, not_kept
from hyperfleet.engine.greenlets import to_the_end, wait_for
from hyperfleet.engine.response import Response
from hyperfleet.errors import INVALID, Problem
from hyperfleet.handlers import request
from hyperfleet.handlers.creation import created
from hyperfleet.handlers.response import about, answer, empty, listed, owned_by, read, shown
from hyperfleet.handlers.statuses import report
from hyperfleet.kinds import BASE, RESOURCES, Key, Kind
from hyperfleet.resources import lifecycle, marking, removal, resource
from hyperfleet.resources.lifecycle import Change

# Conditions for what is stored about a resource.
OF: LiteralString = "owner_id = %(id)s"
OF_TYPE: LiteralString = f"{OF} AND type = %(type)s"
REPORTS: LiteralString = "owner_type = %(kind)s AND owner_id = %(id)s"


def key(kind: str, path: dict[str, Any]) -> Key:
    """Removes the ids from a path's parameters and returns the key of the resource that they name."""
    of = RESOURCES[kind]
    named: Key = {"id": resource.id_in_path(kind, path.pop(of.parameter))}
    if of.parent:
        named["owner_id"] = _owner(of, path)
    return named


def _owner(of: Kind, path: dict[str, Any]) -> str | None:
    """Returns the owner's id from a path, or None. Raises Problem if no resource can have that id."""
    if of.parent is None:
        return None
    given = path.pop(RESOURCES[of.parent].parameter, None)
    return None if given is None else resource.id_in_path(of.parent, given)


def get_resources(kind: str, **given: Any) -> Response:
    """Returns one page of the resources of a kind, or of those of the owner named in the path."""
    of = RESOURCES[kind]
    owner_id = _owner(of, given)
    if owner_id is None or of.parent is None:
        return listed(kind, given)
    return listed(kind, given, owned_by(of.parent, owner_id))


def post_resource(kind: str, body: dict[str, Any], **path: Any) -> Response:
    """Creates a resource. Raises Problem if the name is taken or the owner is being deleted."""
    of = RESOURCES[kind]
    parent_id = path.get(RESOURCES[of.parent].parameter, "") if of.parent else ""
    if of.parent and not parent_id:
        raise owner_missing(of)
    return created(kind, body, parent_id)


def owner_missing(of: Kind) -> Problem:
    """Returns the error for a creation that does not name the owner of the new resource."""
    assert of.parent
    parent = RESOURCES[of.parent]
    path = f"{BASE}/{parent.segment}/{{{parent.parameter}}}/{of.segment}"
    message = f"must be in the path, since a {of.noun} belongs to a {parent.noun}: POST {path}"
    return Problem(
        INVALID, faults=[{"field": parent.parameter, "message": message, "constraint": "required"}]
    )


def get_resource_by_id(kind: str, **path: Any) -> Response:
    """Returns a resource; if the path names its owner, it is found only under that one."""
    return read(kind, key(kind, path))


def patch_resource_by_id(
    kind: str, body: dict[str, Any], *, checked: bool = True, **path: Any
) -> Response:
    """Changes a resource's labels or spec, and returns it.

    :param checked: whether the body has been validated against the provider's schema
    """
    own, shape = key(kind, path), request.shape(kind)
    change = Change(body, request.merges(), request.precondition(), request.origin(), checked)
    return shown(shape, lifecycle.patch(request.service(), kind, request.scoped(own), change))


def delete_resource_by_id(kind: str, **path: Any) -> Response:
    """Marks a resource and all that it owns as deleted, and returns it."""
    own, shape = request.scoped(key(kind, path)), request.shape(kind)
    # It may own a lot: a client that retries after a timeout finds the work done.
    marked = to_the_end(
        marking.mark, request.service(), kind, own, request.precondition(), request.origin()
    )
    return shown(shape, marked, 202)


def force_delete_resource(kind: str, body: dict[str, Any], **path: Any) -> Response:
    """Removes a marked resource, and all that it owns, now."""
    own, origin = request.scoped(key(kind, path)), request.origin(body["reason"])
    to_the_end(removal.force, request.service(), kind, own, origin)
    return empty(204)


def get_resource_statuses(kind: str, **given: Any) -> Response:
    """Returns one page of the reports on a resource."""
    within = about(kind, key(kind, given), REPORTS, {"kind": kind})
    return listed("AdapterStatus", given, within)


def put_resource_statuses(kind: str, body: dict[str, Any], **path: Any) -> Response:
    """Stores or discards a report on a resource."""
    return report(kind, key(kind, path), body)


def get_resource_history(kind: str, **given: Any) -> Response:
    """Returns one page of the generations of a resource, newest first."""
    return listed("ResourceGeneration", given, about(kind, key(kind, given), OF))


def get_resource_generation(kind: str, generation: int, **path: Any) -> Response:
    """Returns a generation of a resource. Raises Problem if it is not kept."""
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
) -> Response:
    """Returns the difference between two generations. Raises Problem if one of them is not kept."""
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


def rollback_resource(kind: str, body: dict[str, Any], **path: Any) -> Response:
    """Restores the labels and the spec of a past generation, and returns the resource."""
    own, shape = key(kind, path), request.shape(kind)
    number, why = body["generation"], body.get("reason")
    said = f"back to generation {number}" + (f": {why}" if why else "")
    change = Change(
        body={},
        merge=False,
        precondition=request.precondition(),
        origin=request.origin(said),
        checked=False,
        generation=number,
    )
    return shown(shape, lifecycle.patch(request.service(), kind, request.scoped(own), change))


def get_resource_transitions(kind: str, **given: Any) -> Response:
    """Returns one page of the transitions of a resource's conditions, newest first."""
    own, type_ = key(kind, given), given.pop("type_", None)
    return listed("Transition", given, about(kind, own, OF_TYPE if type_ else OF, {"type": type_}))
