"""Resources of all kinds, found by their ids alone."""

from typing import Any, LiteralString

import flask

from hyperfleet.database.statements import fetch_one
from hyperfleet.handlers import clusters, declared, history, request, statuses
from hyperfleet.handlers.changes import deleted, forced_out, patched
from hyperfleet.handlers.response import listed, read
from hyperfleet.kinds import ALL, RESOURCES, SCOPE
from hyperfleet.resources import resource

KIND: LiteralString = (
    "/* all_resources_kind */ SELECT kind FROM all_resources WHERE id = %(id)s AND kind = ANY(%(kinds)s)"
)
KIND_SCOPED: LiteralString = f"{KIND} {SCOPE}"


def _found(resource_id: str, *, reading: bool = False) -> tuple[str, dict[str, Any]]:
    """The kind of a resource, and what finds it. Raises Problem where there is none of this id.

    :param reading: whether nothing is to be changed, so that a standby may be asked
    """
    id_ = resource.key(ALL, resource_id)
    values = request.scoped({"id": id_, "kinds": [*RESOURCES]})
    statement = KIND_SCOPED if "tenancy" in values else KIND
    if reading:
        row = next(iter(request.reader().rows(statement, values)), None)
    else:
        row = fetch_one(request.service().pool, statement, values)
    if row is None:
        raise resource.not_found(ALL, resource_id)
    return row[0], {"id": id_}


def get_resources(**query: Any) -> flask.Response:
    """One page of resources of all kinds."""
    return listed(ALL, query)


def post_resource(body: dict[str, Any]) -> flask.Response:
    """Creates a resource of the kind that the body names, if that belongs to none."""
    kind = body["kind"]
    if RESOURCES[kind].parent:
        raise declared.elsewhere(RESOURCES[kind])
    resource.check(request.service(), kind, body, replaced=False)
    if RESOURCES[kind].shared:
        return declared.post_resource(kind, body)
    return clusters.post_cluster(body)


def get_resource_by_id(resource_id: str) -> flask.Response:
    """A resource."""
    return read(*_found(resource_id, reading=True))


def patch_resource_by_id(resource_id: str, body: dict[str, Any]) -> flask.Response:
    """Changes a resource's labels or spec."""
    return patched(*_found(resource_id), body, checked=False)


def delete_resource_by_id(resource_id: str) -> flask.Response:
    """Marks a resource, and what belongs to it, as deleted."""
    return deleted(*_found(resource_id))


def force_delete_resource(resource_id: str, body: dict[str, Any]) -> flask.Response:
    """Removes a marked resource, and what belongs to it, now."""
    return forced_out(*_found(resource_id), body["reason"])


def get_resource_statuses(resource_id: str, **query: Any) -> flask.Response:
    """One page of the reports on a resource."""
    return statuses.reports(*_found(resource_id, reading=True), query)


def put_resource_statuses(resource_id: str, body: dict[str, Any]) -> flask.Response:
    """Takes a report on a resource."""
    return statuses.report(*_found(resource_id), body)


def get_resource_history(resource_id: str, **query: Any) -> flask.Response:
    """One page of the generations of a resource."""
    return history.generations(*_found(resource_id, reading=True), query)


def get_resource_generation(resource_id: str, generation: int) -> flask.Response:
    """A generation of a resource."""
    return history.one_generation(*_found(resource_id, reading=True), generation)


def get_resource_generation_diff(
    resource_id: str, generation: int, to: int | None = None
) -> flask.Response:
    """What two generations of a resource differ in."""
    return history.difference(*_found(resource_id, reading=True), generation, to)


def rollback_resource(resource_id: str, body: dict[str, Any]) -> flask.Response:
    """Wants of a resource what was wanted of it before."""
    return history.rolled_back(*_found(resource_id), body)


def get_resource_transitions(resource_id: str, **query: Any) -> flask.Response:
    """One page of the transitions of a resource."""
    return history.transitions(*_found(resource_id, reading=True), query)
