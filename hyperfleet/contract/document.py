"""The contract, read once, with the kinds that there are by then: what Connexion routes by, and what
/openapi shows.
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
    """The OpenAPI document as it is written; each caller gets one to change as it likes."""
    return _copied(_read())


def _read() -> dict[str, Any]:
    return _made(tuple(RESOURCES.values()))


def _copied(document: dict[str, Any]) -> dict[str, Any]:
    # As copy.deepcopy does it, in a third of the time, which each start would wait for several times.
    same: dict[str, Any] = pickle.loads(pickle.dumps(document))  # noqa: S301 (its own)
    return same


@functools.cache
def _made(_kinds: tuple[Kind, ...]) -> dict[str, Any]:
    text = shipped("openapi").joinpath("openapi.yaml").read_text(encoding="utf-8")
    # The same as yaml.safe_load in a tenth of its time, which each start would wait for.
    document: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    with_kinds(document)
    for path, _, operation in operations(document):
        # Connexion looks for the module at the operation; the contract names it once a path.
        operation["x-openapi-router-controller"] = document["paths"][path]["x-openapi-router-controller"]
    flatten_parameters(document)
    return document


def flatten_parameters(document: dict[str, Any]) -> None:
    """Puts together what parameters have under ``allOf``, for those that look at their schema's own type
    alone, as Connexion does.
    """
    lists = [
        *(item.get("parameters", ()) for item in document["paths"].values()),
        *(operation.get("parameters", ()) for _, _, operation in operations(document)),
        document["components"]["parameters"].values(),
    ]
    for parameter in (one for some in lists for one in some):
        schema = parameter.get("schema", {})
        for part in schema.pop("allOf", ()):
            parameter["schema"] = schema = {**followed(part, document), **schema}


def without_security(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every operation public."""
    public = _copied(document)
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


def members(name: str) -> dict[str, dict[str, Any]]:
    """The members of an object that the contract describes, and the schema of each.

    :param name: of the object's schema; references of its members are followed
    """
    return {key: followed(member) for key, member in _named(name)["properties"].items()}


def required(name: str) -> set[str]:
    """The members that an object has always. ``name`` is its schema's."""
    return set(_named(name)["required"])


def followed(part: dict[str, Any], document: dict[str, Any] | None = None) -> dict[str, Any]:
    """A part of a document of OpenAPI's, or what it refers to there.

    :param document: this service's contract where it is left out
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
    """Path, method in lower case and operation of each operation in the document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def reviews(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """By operation id what OCM's access review is asked: the action and the type of resource."""
    return {
        operation["operationId"]: (asked["action"], asked["resource_type"])
        for _, _, operation in operations(document)
        if (asked := operation.get("x-access-review"))
    }


def closed(document: dict[str, Any]) -> dict[str, bool]:
    """By operation id, of those that are not public: whether it only reads, or reports a status."""
    return {
        operation["operationId"]: method == "get" or path.endswith("/statuses")
        for path, method, operation in operations(document)
        if operation.get("security") != []
    }


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
    return list(followed(operation.get("requestBody", {}), document).get("content", {}))
