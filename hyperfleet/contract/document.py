"""The contract, read once for the kinds that are declared: Connexion routes by it, and /openapi shows
it.
"""

import functools
import pickle
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from hyperfleet.contract.declared import with_kinds
from hyperfleet.files import shipped
from hyperfleet.kinds import RESOURCES, Kind

NOTES = (
    *("x-openapi-router-controller", "x-access-review"),
    *("x-spec-of", "x-key-pattern", "x-key-max-length", "x-key-words", "x-null-removes", "x-kind"),
)
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def load() -> dict[str, Any]:
    """Returns the OpenAPI document, including declared kinds; callers may modify their copy."""
    return _copied(_read())


def _read() -> dict[str, Any]:
    return _made(tuple(RESOURCES.values()))


def _copied(document: dict[str, Any]) -> dict[str, Any]:
    # Like copy.deepcopy in a third of its time; each start needs several copies.
    same: dict[str, Any] = pickle.loads(pickle.dumps(document))  # noqa: S301 (its own)
    return same


@functools.cache
def _made(_kinds: tuple[Kind, ...]) -> dict[str, Any]:
    text = shipped("openapi").joinpath("openapi.yaml").read_text(encoding="utf-8")
    # Like yaml.safe_load in a tenth of its time, for which each start would wait.
    document: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    with_kinds(document)
    for path, _, operation in operations(document):
        # Connexion expects the module in each operation; the contract names it once per path.
        operation["x-openapi-router-controller"] = document["paths"][path]["x-openapi-router-controller"]
    return document


def without_security(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document with all operations public."""
    public = _copied(document)
    public.pop("security", None)
    public["components"].pop("securitySchemes", None)
    for _, _, operation in operations(public):
        operation.pop("security", None)
    return public


def published(document: Any) -> Any:
    """Returns the document without the extensions that are only meant for this service."""
    if isinstance(document, dict):
        return {key: published(value) for key, value in document.items() if key not in NOTES}
    if isinstance(document, list):
        return [published(item) for item in document]
    return document


def members(name: str) -> dict[str, dict[str, Any]]:
    """Returns the members of an object in the contract, each with its schema, references followed.

    :param name: the name of the object's schema
    """
    return {key: followed(member) for key, member in _named(name)["properties"].items()}


def required(name: str) -> set[str]:
    """Returns the required members of an object; ``name`` is that of its schema."""
    return set(_named(name)["required"])


def followed(part: dict[str, Any], document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns a part of an OpenAPI document; if it is a reference, returns what that leads to.

    :param document: the document; None means the contract
    """
    while "$ref" in part:
        target: Any = document or _read()
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        part = target
    return part


def _named(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = _read()["components"]["schemas"][name]
    return schema


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields path, method in lower case and operation of each operation in the document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def reviews(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns, by operation id, the action and resource type that OCM's access review is asked about."""
    return {
        operation["operationId"]: (asked["action"], asked["resource_type"])
        for _, _, operation in operations(document)
        if (asked := operation.get("x-access-review"))
    }


def closed(document: dict[str, Any]) -> dict[str, bool]:
    """Returns, by id of each non-public operation, whether it only reads or reports a status."""
    return {
        operation["operationId"]: method == "get" or path.endswith("/statuses")
        for path, method, operation in operations(document)
        if operation.get("security") != []
    }


class Route(NamedTuple):
    """A path of the contract: its pattern, and for each method the media types of the body."""

    pattern: re.Pattern[str]
    methods: dict[str, list[str]]


def routes(document: dict[str, Any]) -> list[Route]:
    """Returns the paths of the document; those with GET also have HEAD."""
    table = []
    for path, item in document["paths"].items():
        methods = {name.upper(): _media_types(document, item[name]) for name in METHODS if name in item}
        if "GET" in methods:
            methods["HEAD"] = []
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))
        table.append(Route(re.compile(pattern), methods))
    return table


def headers(document: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Returns the names of the headers that requests and responses may have, as far as it names them."""
    components = document["components"]
    sent = {one["name"] for one in components["parameters"].values() if one["in"] == "header"}
    answers = [*components["responses"].values()]
    answers += [one for *_, operation in operations(document) for one in operation["responses"].values()]
    return sent, {name for one in answers for name in one.get("headers", ())}


def _media_types(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    return list(followed(operation.get("requestBody", {}), document).get("content", {}))
