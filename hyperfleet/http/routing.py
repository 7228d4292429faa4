"""How Connexion finds the operation of a request, and the function of an operation."""

import functools
import re
from typing import Any, NamedTuple

from connexion import utils
from connexion.middleware.abstract import ROUTING_CONTEXT
from connexion.middleware.routing import RoutingMiddleware
from connexion.middleware.swagger_ui import SwaggerUIMiddleware
from connexion.operations import AbstractOperation
from connexion.resolver import Resolution, Resolver
from connexion.spec import OpenAPISpecification, Specification
from starlette.types import ASGIApp, Receive, Scope, Send

# The path of the Swagger UI.
UI = "/openapi-ui"
# The scope's key for a request's route, for outer layers: its path, with - for each parameter.
ROUTE = "hyperfleet.route"


def snake_case(name: str) -> str:
    """Converts ``getClusterById`` to ``get_cluster_by_id``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Shipped(OpenAPISpecification):
    """The contract as Connexion's specification, without validating it against OpenAPI.

    Tests do that. At each start it would take longer than everything else done with the contract.
    """

    @classmethod
    def _validate_spec(cls, spec: Any) -> None:
        pass


# The module with the operations of all kinds; their first argument is the kind.
OF_KIND = "hyperfleet.handlers.operations"


class HandlerResolver(Resolver):
    """Finds an operation's function: its id in snake case, in the module that its path names."""

    def resolve(self, operation: AbstractOperation) -> Resolution:
        """Returns what Connexion binds; for a declared kind, the operation that its own derives from."""
        of = operation._operation.get("x-kind", {})
        if "kind" not in of:
            return super().resolve(operation)
        function = self.resolve_function_from_operation_id(f"{OF_KIND}.{of['operation']}")
        return Resolution(functools.partial(function, of["kind"]), self.resolve_operation_id(operation))

    def resolve_function_from_operation_id(self, operation_id: str) -> Any:
        """Returns the function. Raises ResolverError if nobody has written it."""
        module, _, name = operation_id.rpartition(".")
        return utils.get_function_from_name(f"{module}.{snake_case(name)}")


class Found(NamedTuple):
    """An operation in the table: Connexion's context, parameters by segment, path with - for them."""

    context: dict[str, str]
    names: dict[int, str]
    route: str


class TableRouting(RoutingMiddleware):
    """Connexion's routing, by a table instead of a scan of all routes.

    Operations are found by their method and the segments of their path, with a mark for parameters.
    Paths and methods that the table lacks are left to Connexion.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self.table: dict[tuple[str, ...], Found] = {}
        # For each number of segments, the sets of positions that parameters may have, smallest first.
        self.shapes: dict[int, list[tuple[int, ...]]] = {}

    def add_api(self, specification: Specification, **options: Any) -> None:
        """Adds the routes of a contract."""
        super().add_api(specification, **options)
        for mount in self.router.routes:
            for route in mount.app.routes:
                self._add(mount.path, route)

    def _add(self, base: str, route: Any) -> None:
        segments = (base + route.path).split("/")
        # Starlette writes {generation:int}. The values of parameters are validated by the contract.
        names = {
            at: text[1:-1].partition(":")[0] for at, text in enumerate(segments) if text.startswith("{")
        }
        shape = tuple(names)
        shapes = self.shapes.setdefault(len(segments), [])
        if shape not in shapes:
            shapes.append(shape)
            shapes.sort(key=len)
        context = {"api_base_path": base, "operation_id": route.endpoint.operation_id}
        plain = "/".join("-" if at in names else text for at, text in enumerate(segments))
        found = Found(context, names, plain)
        for method in route.methods:
            self.table[method, *("{}" if at in names else text for at, text in enumerate(segments))] = (
                found
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a request together with its operation."""
        segments = scope["path"].split("/")
        for shape in self.shapes.get(len(segments), ()):
            key = list(segments)
            for at in shape:
                key[at] = "{}"
            found = self.table.get((scope["method"], *key))
            if found:
                scope[ROUTE].append(found.route)
                params = {name: segments[at] for at, name in found.names.items()}
                extensions = {**scope.get("extensions", {}), ROUTING_CONTEXT: found.context}
                scope = {**scope, "path_params": params, "extensions": extensions}
                await self.app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class BrowserPages(SwaggerUIMiddleware):
    """Connexion's pages for browsers, which only handles requests for them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["path"].startswith(UI):
            scope[ROUTE].append(UI)
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)
