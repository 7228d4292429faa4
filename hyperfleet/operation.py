"""The operation that a request asks for, once Connexion has routed it."""

from connexion.middleware.abstract import ROUTING_CONTEXT
from starlette.types import Scope


def operation_of(scope: Scope) -> str:
    """Returns the ``operationId`` of a request, as in the contract; empty if it has no operation."""
    routed = scope.get("extensions", {}).get(ROUTING_CONTEXT, {})
    # Connexion prefixes it with the name of its module.
    return str(routed.get("operation_id") or "").rpartition(".")[2]
