"""What the handlers of all kinds answer to a patch and to a deletion."""

from typing import Any

import flask

from hyperfleet.engine.greenlets import to_the_end
from hyperfleet.handlers import request
from hyperfleet.handlers.response import empty, shown
from hyperfleet.resources import lifecycle, marking, removal
from hyperfleet.resources.lifecycle import Change


def patched(
    kind: str, key: dict[str, Any], body: dict[str, Any], *, checked: bool = True
) -> flask.Response:
    """The resource after its change.

    :param key: as :func:`hyperfleet.resources.resource.key_of` makes it
    :param checked: whether the body was held against the provider's schema already
    """
    shape = request.shape(kind)
    change = Change(body, request.merges(), request.precondition(), request.origin(), checked)
    return shown(shape, lifecycle.patch(request.service(), kind, request.scoped(key), change))


def deleted(kind: str, key: dict[str, Any]) -> flask.Response:
    """The resource with its mark."""
    shape = request.shape(kind)
    service, own = request.service(), request.scoped(key)
    # Much may be below it: who comes again after the end of his time finds it done.
    marked = to_the_end(marking.mark, service, kind, own, request.precondition(), request.origin())
    return shown(shape, marked, 202)


def forced_out(kind: str, key: dict[str, Any], reason: str) -> flask.Response:
    """Nothing, after the end of a marked resource."""
    to_the_end(removal.force, request.service(), kind, request.scoped(key), request.origin(reason))
    return empty(204)
