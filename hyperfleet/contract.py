"""The contract, read once: what Connexion routes by, and what /openapi shows."""

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import yaml
from connexion import utils
from connexion.resolver import Resolver

from hyperfleet import schema
from hyperfleet.files import shipped

NOTES = ("x-openapi-router-controller", "x-bearerInfoFunc", "x-spec-of", "x-key-max-length")
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
    for _, _, operation in operations(public):
        operation.pop("security", None)
    return public


def resolved(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every reference replaced by what it refers to, as clients may want it.

    References to what refers to itself, directly or not, stay: such a tree has no end.
    """
    direct: dict[str, set[str]] = {}
    waiting = set(_references(document))
    while waiting:
        reference = waiting.pop()
        direct[reference] = set(_references(_target(document, reference)))
        waiting |= direct[reference] - direct.keys()
    endless = {reference for reference in direct if reference in _reachable(reference, direct)}

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(inner) for inner in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            return node if reference in endless else resolve(_target(document, reference))
        return {key: resolve(inner) for key, inner in node.items()}

    whole: dict[str, Any] = resolve(document)
    return whole


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and str(node.get("$ref")).startswith("#/"):
        yield node["$ref"]
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _references(inner)


def _reachable(start: str, direct: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = set(direct[start])
    while waiting:
        found |= waiting
        waiting = {further for reference in waiting for further in direct[reference]} - found
    return found


def _target(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def published(document: Any) -> Any:
    """The document without its notes to this service."""
    if isinstance(document, dict):
        return {key: published(value) for key, value in document.items() if key not in NOTES}
    if isinstance(document, list):
        return [published(item) for item in document]
    return document


def creation_validators(document: dict[str, Any]) -> dict[str, Any]:
    """For each kind a validator of the body that creates a resource of it."""
    schemas = resolved(document)["components"]["schemas"]
    return {
        kind: schema.compile_schema(schemas[f"{kind}CreateRequest"]) for kind in ("Cluster", "NodePool")
    }


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method in lower case and operation of each operation in the document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def methods(document: dict[str, Any]) -> list[tuple[re.Pattern[str], str]]:
    """For each path of the document a pattern, and the methods it has as ``Allow`` names them."""
    table = []
    for path, item in document["paths"].items():
        names = {method.upper() for method in METHODS if method in item}
        if "GET" in names:
            names.add("HEAD")
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))
        table.append((re.compile(pattern), ", ".join(sorted(names))))
    return table


def snake_case(name: str) -> str:
    """``getClusterById`` as ``get_cluster_by_id``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class HandlerResolver(Resolver):
    """Finds the function of an operation: its id in snake case, in the module that its path names."""

    def resolve_function_from_operation_id(self, operation_id: str) -> Any:
        """The function; raises ResolverError for an operation that nobody wrote."""
        module, _, name = operation_id.rpartition(".")
        return utils.get_function_from_name(f"{module}.{snake_case(name)}")
