"""The operations on resources of all kinds.

Each finds a resource by its id alone, and continues with the same operation of its kind.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, LiteralString

from hyperfleet.database.statements import fetch_one
from hyperfleet.engine.response import Response
from hyperfleet.handlers import operations, request
from hyperfleet.handlers.response import listed
from hyperfleet.kinds import ALL, RESOURCES, SCOPE
from hyperfleet.resources import resource

KIND: LiteralString = (
    "/* all_resources_kind */ SELECT kind FROM all_resources WHERE id = %(id)s AND kind = ANY(%(kinds)s)"
)
KIND_SCOPED: LiteralString = f"{KIND} {SCOPE}"


def get_resources(**query: Any) -> Response:
    """Returns one page of resources of all kinds."""
    return listed(ALL, query)


def post_resource(body: dict[str, Any]) -> Response:
    """Creates a resource of the kind named in the body, unless that kind has a parent."""
    kind = body["kind"]
    if RESOURCES[kind].parent:
        raise operations.owner_missing(RESOURCES[kind])
    resource.check(request.service(), kind, body, replaced=False)
    return operations.post_resource(kind, body)


def _found(
    operation: Callable[..., Response], resource_id: str, *, reading: bool = False, **given: Any
) -> Response:
    """Runs an operation of a kind on the resource with this id. Raises Problem if there is none.

    :param reading: whether it only reads, so that a standby may be asked for the kind
    """
    id_ = resource.id_in_path(ALL, resource_id)
    key = request.scoped({"id": id_})
    statement, values = KIND_SCOPED if "tenancy" in key else KIND, {**key, "kinds": [*RESOURCES]}
    if reading:
        row = next(iter(request.reader().rows(statement, values)), None)
    else:
        row = fetch_one(request.service().pool, statement, values)
    if row is None:
        raise resource.not_found(ALL, resource_id)
    return operation(row[0], **{RESOURCES[row[0]].parameter: id_}, **given)


get_resource_by_id = partial(_found, operations.get_resource_by_id, reading=True)
patch_resource_by_id = partial(_found, operations.patch_resource_by_id, checked=False)
delete_resource_by_id = partial(_found, operations.delete_resource_by_id)
force_delete_resource = partial(_found, operations.force_delete_resource)
get_resource_statuses = partial(_found, operations.get_resource_statuses, reading=True)
put_resource_statuses = partial(_found, operations.put_resource_statuses)
get_resource_history = partial(_found, operations.get_resource_history, reading=True)
get_resource_generation = partial(_found, operations.get_resource_generation, reading=True)
get_resource_generation_diff = partial(_found, operations.get_resource_generation_diff, reading=True)
rollback_resource = partial(_found, operations.rollback_resource)
get_resource_transitions = partial(_found, operations.get_resource_transitions, reading=True)
