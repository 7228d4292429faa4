"""Whose tenant a caller is of: what headers say that a trusted gateway sets.

Asked once for each request, after the caller has shown who they are. How a gateway has to be set up
for that is in docs/tenants.md.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from connexion.middleware.abstract import ROUTING_CONTEXT
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.settings.catalogue import Settings
from hyperfleet.settings.tenancy import WORD

SYSTEM_WRITES = "A system caller can read everything, but write only statuses."

# The tenancy of the caller of the request at hand. Of a system caller it is empty, and everything is
# seen; it is None where nobody has asked for it.
current: ContextVar[Mapping[str, str] | None] = ContextVar("tenancy", default=None)


class Tenants:
    """The layer that asks, before whatever is not public.

    :param operations: those that are not public, by their ids, and whether system callers may do them
    """

    def __init__(self, app: ASGIApp, settings: Settings, operations: Mapping[str, bool]) -> None:
        self.app = app
        self.system_header = settings.tenant_system_header
        self.dimensions = settings.tenant_dimensions
        self.operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on. Raises Problem, 403, for one that is of no tenant."""
        routing: Any = scope.get("extensions", {}).get(ROUTING_CONTEXT, {})
        # With the name of its module before it.
        operation = str(routing.get("operation_id")).rpartition(".")[2]
        if operation in self.operations:
            found = self.tenancy(Headers(scope=scope))
            if not found and not self.operations[operation]:
                raise Problem(errors.FORBIDDEN, SYSTEM_WRITES)
            current.set(found)
        await self.app(scope, receive, send)

    def tenancy(self, headers: Headers) -> dict[str, str]:
        """The tenancy that headers name; empty for a system caller. Raises Problem, 403."""
        if _one(headers, self.system_header).lower() == "true":
            return {}
        found = {}
        for one in self.dimensions:
            value = _one(headers, one.header)
            if value and not WORD.fullmatch(value):
                raise Problem(
                    errors.FORBIDDEN,
                    f"The header {one.header} must have at most 63 letters, digits, '.', '_' and '-'.",
                )
            if value:
                found[one.key] = value
            elif one.required:
                raise Problem(
                    errors.FORBIDDEN, f"The header {one.header}, which names the tenant, is missing."
                )
        if not found:
            # Nobody must come to see everything because a setting was wrong.
            raise Problem(errors.FORBIDDEN, "No header names the tenant.")
        return found


def _one(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    if len(values) > 1:
        # One is the client's own, and which is not known.
        raise Problem(errors.FORBIDDEN, f"There must be exactly one {name} header.")
    # Of white space HTTP knows these alone; what else looks like it is part of a value.
    return values[0].strip(" \t") if values else ""
