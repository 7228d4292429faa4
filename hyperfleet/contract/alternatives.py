"""Discriminators of OpenAPI, in the words of JSON Schema."""

from collections.abc import Container, Mapping
from typing import Any

from hyperfleet.contract import schema
from hyperfleet.contract.schema import PREFIX


def mapping(one: Mapping[str, Any]) -> dict[str, str]:
    """The values of a discriminator's mapping and the references that they stand for; in a document a
    reference may be a schema's name alone.
    """
    discriminator = one.get("discriminator")
    given = discriminator.get("mapping") if isinstance(discriminator, Mapping) else None
    if not isinstance(given, Mapping):
        return {}
    whole = {value: str(ref) for value, ref in given.items()}
    return {value: ref if "/" in ref or "#" in ref else PREFIX + ref for value, ref in whole.items()}


def free(name: str, taken: Container[str]) -> str:
    """A name, made longer where it is taken."""
    while name in taken:
        name += "_"
    return name


def spread(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schemas with each parent that has a discriminator, but no alternatives, turned into the
    choice between its children: the schemas with an allOf that refers to it (OpenAPI 3.0.3, 4.7.25).
    What it says itself becomes a schema of its own, which its children refer to instead.
    """
    named = {name: _referring(one) for name, one in given.items()}
    for parent, own in [*named.items()]:
        if not isinstance(own, Mapping) or not isinstance(own.get("discriminator"), Mapping):
            continue
        itself = {"$ref": PREFIX + parent}
        children = [
            name
            for name, one in named.items()
            if isinstance(one, Mapping) and itself in (one.get("allOf") or ())
        ]
        if not children or own.keys() & {"oneOf", "anyOf", "$ref"}:
            continue
        base = free(parent + "Base", named)
        named[base] = {key: value for key, value in own.items() if key != "discriminator"}
        alternatives = [{"$ref": PREFIX + name} for name in children]
        named[parent] = {"anyOf": alternatives, "discriminator": own["discriminator"]}
        for name in children:
            parts = [
                {"$ref": PREFIX + base} if part == itself else part for part in named[name]["allOf"]
            ]
            named[name] = {**named[name], "allOf": parts}
    return named


def _referring(one: Any) -> Any:
    """A schema whose discriminators map to references, where the document may have names alone."""
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, _: _referring(inner))
    if targets := mapping(same):
        same["discriminator"] = {**same["discriminator"], "mapping": targets}
    return same


def decided(one: Any, named: Mapping[str, Any]) -> Any:
    """A schema in which each discriminator that can be told decides which alternative counts.

    Checking that one alone is faster than all of them, and its faults are the ones that the caller
    wants to hear of.
    """
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, _: decided(inner, named))
    keyword = "oneOf" if "oneOf" in same else "anyOf"
    branches = _branches(same, keyword, named)
    if not branches:
        return same
    alternatives, property_ = same.pop(keyword), same["discriminator"]["propertyName"]
    tag = {"enum": list(branches)}
    rules: list[Any] = [{"type": "object", "required": [property_], "properties": {property_: tag}}]
    for value, index in branches.items():
        chosen = {"required": [property_], "properties": {property_: {"const": value}}}
        rules.append({"if": chosen, "then": alternatives[index]})
    return {**same, "allOf": [*same.get("allOf", ()), *rules]}


def _branches(one: Mapping[str, Any], keyword: str, named: Mapping[str, Any]) -> dict[Any, int]:
    """What a discriminator chooses from: for each value of its property the index of an alternative.

    The values come from the mapping; for an alternative that it leaves out from the property's own
    enum; at last they are the alternative's name (OpenAPI 3.0.3, 4.7.25). Nothing where there is no
    discriminator, or an alternative without values, or one value for two: all of them count then.
    """
    if "discriminator" not in one:
        return {}
    property_, targets = one["discriminator"]["propertyName"], mapping(one)
    found: dict[Any, int] = {}
    for index, branch in enumerate(one.get(keyword, ())):
        ref = branch.get("$ref") if isinstance(branch, Mapping) else None
        values: list[Any] = [value for value, target in targets.items() if target == ref]
        values = values or _values(branch, property_, named) or ([schema.name_of(ref)] if ref else [])
        if not values or any(value in found for value in values):
            return {}
        found |= dict.fromkeys(values, index)
    return found


def _values(branch: Any, property_: str, named: Mapping[str, Any], depth: int = 10) -> list[Any]:
    """The texts that a schema lets a property have, as far as an enum or a const says so."""
    branch = schema.followed(branch, named)
    if not isinstance(branch, Mapping) or not depth:
        return []
    own = schema.followed(branch.get("properties", {}).get(property_), named)
    if isinstance(own, Mapping) and ("enum" in own or "const" in own):
        return [value for value in own.get("enum", [own.get("const")]) if isinstance(value, str)]
    parts = (_values(inner, property_, named, depth - 1) for inner in branch.get("allOf", ()))
    return next(filter(None, parts), [])
