"""The contract, read once: what Connexion routes by, and what /openapi shows."""

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from connexion import utils
from connexion.resolver import Resolver

from hyperfleet import schema
from hyperfleet.files import shipped
from hyperfleet.kinds import RESOURCES

NOTES = (
    *("x-openapi-router-controller", "x-bearerInfoFunc"),
    *("x-spec-of", "x-key-pattern", "x-key-max-length", "x-key-words", "x-null-removes"),
)
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def load() -> dict[str, Any]:
    """The OpenAPI document as it is written; each caller gets one to change as it likes."""
    return copy.deepcopy(_read())


@functools.cache
def _read() -> dict[str, Any]:
    text = shipped("openapi").joinpath("openapi.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    for path, _, operation in operations(document):
        # Connexion looks for the module at the operation; the contract names it once a path.
        operation["x-openapi-router-controller"] = document["paths"][path]["x-openapi-router-controller"]
    return document


def without_security(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every operation public."""
    public = copy.deepcopy(document)
    public.pop("security", None)
    public["components"].pop("securitySchemes", None)
    for _, _, operation in operations(public):
        operation.pop("security", None)
    return public


def published(document: Any) -> Any:
    """The document without its notes to this service."""
    if isinstance(document, dict):
        return {key: published(value) for key, value in document.items() if key not in NOTES}
    if isinstance(document, list):
        return [published(item) for item in document]
    return document


def creation_validators(document: dict[str, Any]) -> dict[str, Any]:
    """For each kind a validator of the body that creates a resource of it."""
    named = document["components"]["schemas"]
    return {kind: schema.compile_schema(named[f"{kind}CreateRequest"], named) for kind in RESOURCES}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method in lower case and operation of each operation in the document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


class Route(NamedTuple):
    """A path of the contract: its pattern, and for each method the media types of its body."""

    pattern: re.Pattern[str]
    methods: dict[str, list[str]]


def routes(document: dict[str, Any]) -> list[Route]:
    """The paths of the document; HEAD is where GET is."""
    table = []
    for path, item in document["paths"].items():
        methods = {name.upper(): _media_types(document, item[name]) for name in METHODS if name in item}
        if "GET" in methods:
            methods["HEAD"] = []
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))
        table.append(Route(re.compile(pattern), methods))
    return table


def _media_types(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    body = operation.get("requestBody", {})
    if "$ref" in body:
        body = document["components"]["requestBodies"][body["$ref"].rpartition("/")[2]]
    return list(body.get("content", {}))


def snake_case(name: str) -> str:
    """``getClusterById`` as ``get_cluster_by_id``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class HandlerResolver(Resolver):
    """Finds the function of an operation: its id in snake case, in the module that its path names."""

    def resolve_function_from_operation_id(self, operation_id: str) -> Any:
        """The function; raises ResolverError for an operation that nobody wrote."""
        module, _, name = operation_id.rpartition(".")
        return utils.get_function_from_name(f"{module}.{snake_case(name)}")
