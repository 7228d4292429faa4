"""Derives the contract of declared kinds from that of ``/resources``."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from hyperfleet.errors import ConfigurationError
from hyperfleet.kinds import BASE, NATIVE, RESOURCES, Kind, Reference

TEMPLATE = f"{BASE}/resources"
SCHEMAS, RESPONSES = "#/components/schemas/", "#/components/responses/"
# A parameter that only the paths of all kinds have.
KIND = "#/components/parameters/kind"
# The schemas and responses that each kind gets versions of, besides the schema of its spec.
OWN = ("Resource", "ResourceList")
REQUESTS = ("ResourceCreateRequest", "ResourcePatchRequest", "ResourceMergePatchRequest")
ANSWERS = ("ResourceResponse", "ResourceListResponse")


def with_kinds(document: dict[str, Any]) -> None:
    """Adds the kinds' part of the contract to the document: the bounds of their names, and the paths and
    schemas of declared ones.

    Raises ConfigurationError if the name of a kind is already used for something else.
    """
    request = document["components"]["schemas"]["ResourceCreateRequest"]
    request["properties"]["kind"]["enum"] = [*RESOURCES]
    for kind in RESOURCES.values():
        if kind.name not in NATIVE:
            _add(document, kind)
            continue
        named = document["components"]["schemas"]
        if (kind.shortest, kind.longest) != (1, 63):
            named[f"{kind.name}CreateRequest"]["properties"]["name"] = _name(document, kind)
        for name in ("Resource", *REQUESTS):
            _refer(named[_called(name, kind)], name, kind)


def _add(document: dict[str, Any], kind: Kind) -> None:
    components = document["components"]
    named, answers = components["schemas"], components["responses"]
    # The access review knows kinds by their names: permission for one must not cover anything else.
    reviewed = (
        one.get("x-access-review") for item in document["paths"].values() for one in _operations(item)
    )
    if kind.name in {review["resource_type"] for review in reviewed if review}:
        raise _taken(kind, kind.name)
    for name in (*OWN, *REQUESTS):
        _put(named, _called(name, kind), _schema(document, name, kind), kind)
    earlier = itertools.takewhile(lambda one: one is not kind, RESOURCES.values())
    # Several kinds may share the schema of their spec, also with native ones.
    if kind.spec not in (one.spec for one in (*NATIVE.values(), *earlier)):
        _put(named, kind.spec, copy.deepcopy(named["ResourceSpec"]), kind)
    for name in ANSWERS:
        _put(answers, _called(name, kind), _of_kind(answers[name], kind), kind)
    components["parameters"][kind.parameter] = {
        **components["parameters"]["resource_id"],
        "name": kind.parameter,
        "description": f"The id of a {kind.noun}; 404 if it is not a UUID.",
    }
    of = f" Each belongs to a {RESOURCES[kind.parent].noun}." if kind.parent else ""
    document["tags"].append({"name": kind.segment, "description": f"Resources of a declared kind.{of}"})
    known = {one["operationId"] for item in document["paths"].values() for one in _operations(item)}
    for path, item in [*document["paths"].items()]:
        if not path.startswith(TEMPLATE):
            continue
        rest = path.removeprefix(TEMPLATE).replace("resource_id", kind.parameter)
        places: list[tuple[str, Kind | None]] = [(f"{BASE}/{kind.segment}{rest}", None)]
        if kind.parent:
            parent = RESOURCES[kind.parent]
            places.append(
                (f"{BASE}/{parent.segment}/{{{parent.parameter}}}/{kind.segment}{rest}", parent)
            )
        for place, owner in places:
            made = _item(item, kind, owner)
            document["paths"][place] = made
            for operation in _operations(made):
                if operation["operationId"] in known:
                    raise ConfigurationError(
                        f"entities: {kind.name} and its plural make the operation "
                        f"{operation['operationId']}, which already exists."
                    )
                known.add(operation["operationId"])


def _put(where: dict[str, Any], name: str, what: Any, kind: Kind) -> None:
    if name in where:
        raise _taken(kind, name)
    where[name] = what


def _taken(kind: Kind, name: str) -> ConfigurationError:
    return ConfigurationError(
        f"entities: a kind cannot be called {kind.name}: {name} already stands for something else."
    )


def _operations(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (one for one in item.values() if isinstance(one, dict) and "operationId" in one)


def _called(name: str, kind: Kind) -> str:
    return name.replace("Resource", kind.name, 1)


def _name(document: dict[str, Any], kind: Kind) -> dict[str, Any]:
    rule: dict[str, Any] = document["components"]["schemas"]["Name"]
    return {**rule, "minLength": kind.shortest, "maxLength": kind.longest}


def _schema(document: dict[str, Any], name: str, kind: Kind) -> dict[str, Any]:
    """Returns a schema of a kind, derived from that of all kinds."""
    made: dict[str, Any] = _of_kind(document["components"]["schemas"][name], kind)
    members = made["properties"]
    if name == "ResourceList":
        members["kind"] = {"type": "string", "enum": [f"{kind.name}List"]}
        return made
    if not kind.parent:
        del members["owner_references"]
    members.pop("references", None)
    if name in REQUESTS[:2]:
        made["x-spec-of"] = kind.name
    if name == "ResourceCreateRequest":
        members["kind"] = {"type": "string", "nullable": True, "enum": [kind.name]}
        members["name"] = _name(document, kind)
        made["required"] = ["name", "spec"]
    if name == "Resource":
        members["kind"] = {"type": "string", "enum": [kind.name]}
        if kind.parent:
            made["required"] = ["owner_references", *made["required"]]
    _refer(made, name, kind)
    return made


def _refer(schema: dict[str, Any], name: str, kind: Kind) -> None:
    """Adds the references of a kind, if it has any, to one of its schemas.

    :param name: the name of the corresponding schema of all kinds
    """
    if not kind.references:
        return
    members = schema["properties"]
    if name == "Resource":
        members["references"] = {"$ref": SCHEMAS + "References"}
    elif name == "ResourceMergePatchRequest":
        members["references"] = {"type": "object", "nullable": True, "additionalProperties": True}
    else:
        needed = [ref.type for ref in kind.references if ref.least]
        must = bool(needed) and name == "ResourceCreateRequest"
        members["references"] = {
            "type": "object",
            **({"required": needed} if needed else {}),
            **({} if must else {"nullable": True}),
            "additionalProperties": False,
            "properties": {ref.type: _references(ref) for ref in kind.references},
        }
        if must:
            schema["required"] = [*schema["required"], "references"]


def _references(ref: Reference) -> dict[str, Any]:
    noun = RESOURCES[ref.target].noun
    bounds = {"minItems": ref.least} if ref.least else {"nullable": True}
    return {
        "type": "array",
        "description": f"The {noun} referred to." if ref.most == 1 else f"Each a {noun}.",
        **bounds,
        "maxItems": ref.most,
        "items": {
            "type": "object",
            "required": ["id"],
            "additionalProperties": False,
            "properties": {
                "id": {"type": "string"},
                "kind": {"type": "string", "nullable": True, "enum": [ref.target]},
                "href": {"readOnly": True, "description": "Set by the service; ignored here."},
            },
        },
    }


def _item(item: dict[str, Any], kind: Kind, owner: Kind | None) -> dict[str, Any]:
    """Returns a path item of a kind, derived from one of all kinds.

    :param owner: the kind of the owner that the path begins with; None if there is none
    """
    made: dict[str, Any] = _of_kind(item, kind)
    plural = "".join(part.capitalize() for part in kind.segment.split("-"))
    words = {"Kind": kind.name, "Plural": plural, "noun": kind.noun, "plural": kind.segment}
    suffix = f"Of{owner.name}" if owner else ""
    for method, operation in made.items():
        if not isinstance(operation, dict):
            continue
        template = operation["x-kind"]
        operation["x-kind"] = {"kind": kind.name, "operation": item[method]["operationId"]}
        operation["operationId"] = template["operationId"].format(**words) + suffix
        operation["summary"] = template["summary"].format(**words)
        operation["tags"] = [kind.segment]
        # The path implies the kind.
        given = operation["parameters"]
        operation["parameters"] = [one for one in given if one != {"$ref": KIND}]
        asked = operation["x-access-review"]
        if asked["resource_type"] == "Resource":
            asked["resource_type"] = kind.name
        if owner:
            key = {"$ref": f"#/components/parameters/{owner.parameter}"}
            operation["parameters"] = [key, *operation["parameters"]]
    return made


def _of_kind(part: Any, kind: Kind) -> Any:
    """Returns a copy of a part of the document with references to a kind's schemas, without examples."""
    renamed: dict[str, str] = {
        **{SCHEMAS + name: SCHEMAS + _called(name, kind) for name in (*OWN, *REQUESTS)},
        **{RESPONSES + name: RESPONSES + _called(name, kind) for name in ANSWERS},
        SCHEMAS + "ResourceSpec": SCHEMAS + kind.spec,
        "#/components/parameters/resource_id": f"#/components/parameters/{kind.parameter}",
    }
    return _changed(part, lambda ref: renamed.get(ref, ref))


def _changed(part: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(part, dict):
        return {
            key: rename(value) if key == "$ref" else _changed(value, rename)
            for key, value in part.items()
            if key not in ("example", "examples")
        }
    return [_changed(one, rename) for one in part] if isinstance(part, list) else part
