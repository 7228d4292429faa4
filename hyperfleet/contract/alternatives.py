"""Converts OpenAPI discriminators to plain JSON Schema."""

import json
from collections.abc import Mapping
from typing import Any

from hyperfleet.contract import schema
from hyperfleet.contract.schema import PREFIX


def referring(one: Any) -> Any:
    """Returns a schema whose discriminators map to references, where documents may have mere names."""
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, _: referring(inner))
    discriminator = same.get("discriminator")
    targets = discriminator.get("mapping") if isinstance(discriminator, Mapping) else None
    if isinstance(targets, Mapping):
        refs = {value: str(ref) for value, ref in targets.items()}
        refs = {value: ref if "/" in ref or "#" in ref else PREFIX + ref for value, ref in refs.items()}
        same["discriminator"] = {**same["discriminator"], "mapping": refs}
    return same


def families(named: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns each parent, which has a discriminator but no alternatives, with its descendants: its
    children, whose allOf refers to it (OpenAPI 3.0.3, 4.7.25), before those that extend one of these.
    """
    children: dict[str, list[str]] = {}
    for name, one in named.items():
        for parent in _extended(one):
            children.setdefault(parent, []).append(name)
    found: dict[str, list[str]] = {}
    for name, one in named.items():
        if (
            isinstance(one, Mapping)
            and isinstance(one.get("discriminator"), Mapping)
            and not one.keys() & {"oneOf", "anyOf", "$ref"}
            and name in children
        ):
            found[name] = [*children[name]]
            for child in found[name]:
                more = [other for other in children.get(child, ()) if other not in found[name]]
                found[name] += [other for other in more if other != name]
    return found


def _extended(one: Any) -> list[str]:
    """Returns the names of the schemas that the parts of a schema's allOf refer to."""
    parts = _list(one.get("allOf")) if isinstance(one, Mapping) else []
    refs = [part.get("$ref") for part in parts if isinstance(part, Mapping)]
    found = (ref for ref in refs if isinstance(ref, str) and ref.startswith(PREFIX))
    return [ref.removeprefix(PREFIX) for ref in dict.fromkeys(found)]


def decided(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns plain schemas in which each usable discriminator selects the alternative to check.

    Checking only that one is faster than checking all, and its faults are the ones that help the caller.

    :return: the schemas, and for a reference to a parent that to the choice between its descendants;
        only those that extend the parent refer to its own rules
    """
    parents = families(named)
    # OpenAPI does not allow such names.
    choices = {PREFIX + name: f"{PREFIX}{name}!" for name in parents}
    found = {name: _decided(one, named, choices) for name, one in named.items()}
    for name, family in parents.items():
        own, ref = named[name], PREFIX + name
        discriminator = own["discriminator"]
        refs = [{"$ref": PREFIX + one} for one in family]
        if ref in (discriminator.get("mapping") or {}).values():
            refs.append({"$ref": ref})
        if "null" in _list(own.get("type")):
            refs.append({"type": "null"})
        children = sum(name in _extended(named[one]) for one in family)
        branches = _branches(refs, discriminator, named, children)
        rules = {"allOf": _choice(refs, branches, discriminator, named)} if branches else {"anyOf": refs}
        # OpenAPI 3.0 also allows null; 3.1 has no such keyword.
        found[name + "!"] = {**rules, "nullable": own.get("nullable", False)}
    return found, choices


def _decided(
    one: Any, named: Mapping[str, Any], choices: Mapping[str, str], at: schema.Path = ()
) -> Any:
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, more: _decided(inner, named, choices, (*at, *more)))
    extends = len(at) == 2 and at[0] == "allOf"
    if "$ref" in one and not extends:
        same["$ref"] = choices.get(one["$ref"], one["$ref"])
    keyword, discriminator = "oneOf" if "oneOf" in one else "anyOf", one.get("discriminator") or {}
    branches = _branches(one.get(keyword, []), discriminator, named) if discriminator else {}
    if branches:
        rules = _choice(same.pop(keyword), branches, discriminator, named)
        same["allOf"] = [*same.get("allOf", ()), *rules]
    return same


def _choice(
    alternatives: list[Any],
    branches: Mapping[Any, int],
    discriminator: Mapping[str, Any],
    named: Mapping[str, Any],
) -> list[Any]:
    """Returns rules by which the property of a discriminator selects one of the alternatives."""
    property_ = discriminator["propertyName"]

    def having(rule: Any) -> dict[str, Any]:
        return {"type": "object", "required": [property_], "properties": {property_: rule}}

    rules: list[Any] = [having({"enum": list(branches)})]
    for value, index in branches.items():
        rules.append({"if": having({"const": value}), "then": alternatives[index]})
    if any(_is_null(branch, named) for branch in alternatives):
        return [{"if": {"not": {"type": "null"}}, "then": {"allOf": rules}}]
    return rules


def _is_null(branch: Any, named: Mapping[str, Any]) -> bool:
    """Whether an alternative allows only null, by which OpenAPI 3.1 makes the others optional."""
    one = schema.followed(branch, named)
    if not isinstance(one, Mapping):
        return False
    return one.get("type") in ("null", ["null"]) or [None] in (one.get("enum"), [one.get("const", 0)])


def _branches(
    alternatives: list[Any],
    discriminator: Mapping[str, Any],
    named: Mapping[str, Any],
    children: int | None = None,
) -> dict[Any, int]:
    """Returns the values of a discriminator's property, each with the index of its alternative.

    The values come from the mapping; for an alternative that it lacks, from the property's own enum;
    otherwise from the alternative's name (OpenAPI 3.0.3, 4.7.25). Empty if an alternative has no values,
    or two share one: then all alternatives are checked.

    :param children: how many of the alternatives are the children of a parent; any that follow are left
        out if they inherit their values
    """
    property_, given = discriminator["propertyName"], discriminator.get("mapping") or {}
    refs = [one.get("$ref") if isinstance(one, Mapping) else None for one in alternatives]
    targets = {value: ref for value, ref in given.items() if ref in refs}
    found: dict[Any, int] = {}
    for index, (branch, ref) in enumerate(zip(alternatives, refs, strict=True)):
        if _is_null(branch, named):
            continue
        own = _values(branch, property_, named)
        # The keys of a mapping are always strings.
        meant = {json.dumps(value): value for value in own if not isinstance(value, str)}
        mapped = [meant.get(value, value) for value, target in targets.items() if target == ref]
        values = mapped or own or ([ref.rpartition("/")[2]] if ref else [])
        if children is not None:
            if index >= children and any(value in found for value in values):
                continue
            # What the parent allows may be meant for others.
            values = mapped or [
                value for value in values if targets.keys().isdisjoint((value, json.dumps(value)))
            ]
        if not values or any(value in found for value in values):
            return {}
        found |= dict.fromkeys(values, index)
    return found


def _values(branch: Any, property_: str, named: Mapping[str, Any], depth: int = 10) -> list[Any]:
    """Returns the strings, numbers and booleans to which a schema limits a property by an enum or a
    const; empty if it does not.
    """
    branch = schema.followed(branch, named)
    if not isinstance(branch, Mapping) or not depth:
        return []
    members, parts = branch.get("properties"), branch.get("allOf")
    own = schema.followed(members.get(property_), named) if isinstance(members, Mapping) else None
    if isinstance(own, Mapping) and ("enum" in own or "const" in own):
        values = own.get("enum", [own.get("const")])
        return [value for value in _list(values) if isinstance(value, str | int | float)]
    inner = (_values(part, property_, named, depth - 1) for part in _list(parts))
    return next(filter(None, inner), [])


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []
