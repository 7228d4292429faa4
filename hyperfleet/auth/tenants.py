"""The tenant of a caller, from headers that a trusted gateway sets.

They are read once for each request, after authentication. docs/tenants.md describes how the gateway must
be configured.
"""

from collections.abc import Mapping
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.operation import operation_of
from hyperfleet.settings.catalogue import Settings
from hyperfleet.settings.tenancy import WORD

SYSTEM_WRITES = "A system caller can read everything, but write only statuses."

# The tenancy of the current request's caller. Empty for a system caller, who sees everything; None if it
# has not been read.
current: ContextVar[Mapping[str, str] | None] = ContextVar("tenancy", default=None)


class Tenants:
    """The layer that reads the tenancy of requests for operations that are not public.

    :param operations: these operations by id, and whether system callers may call them
    """

    def __init__(self, app: ASGIApp, settings: Settings, operations: Mapping[str, bool]) -> None:
        self.app = app
        self.system_header = settings.tenant_system_header
        self.dimensions = settings.tenant_dimensions
        self.operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on. Raises Problem (403) if it has no tenant."""
        operation = operation_of(scope)
        if operation in self.operations:
            found = self.tenancy(Headers(scope=scope))
            if not found and not self.operations[operation]:
                raise Problem(errors.FORBIDDEN, SYSTEM_WRITES)
            current.set(found)
        await self.app(scope, receive, send)

    def tenancy(self, headers: Headers) -> dict[str, str]:
        """Returns the tenancy in headers; empty for a system caller. Raises Problem (403)."""
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
            # A wrong setting must not let anyone see everything.
            raise Problem(errors.FORBIDDEN, "No header names the tenant.")
        return found


def _one(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    if len(values) > 1:
        # One may be the client's own, and it is not known which.
        raise Problem(errors.FORBIDDEN, f"There must be exactly one {name} header.")
    # HTTP's only white space; anything else that looks like it is part of the value.
    return values[0].strip(" \t") if values else ""
