"""The contract, read once: what Connexion routes by, and what /openapi shows."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from connexion import utils
from connexion.json_schema import resolve_refs
from connexion.resolver import Resolver

from hyperfleet.files import shipped

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def load() -> dict[str, Any]:
    """The OpenAPI document as it is written."""
    text = shipped("openapi").joinpath("openapi.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    for path, _, operation in operations(document):
        # Connexion looks for the module at the operation; the contract names it once a path.
        operation["x-openapi-router-controller"] = document["paths"][path]["x-openapi-router-controller"]
    return document


def resolved(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every reference replaced by what it refers to, as clients may want it."""
    whole: dict[str, Any] = resolve_refs(document)
    return whole


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
