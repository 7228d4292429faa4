"""Converts OpenAPI discriminators to plain JSON Schema."""

import json
from collections.abc import Container, Mapping
from typing import Any

from hyperfleet.contract import schema
from hyperfleet.contract.schema import PREFIX

NULL = {"type": "null"}


def mapping(one: Mapping[str, Any]) -> dict[str, str]:
    """Returns the mapping of a schema's discriminator, from values to references; mere names of schemas,
    which a document may have, become references.
    """
    discriminator = one.get("discriminator")
    given = discriminator.get("mapping") if isinstance(discriminator, Mapping) else None
    if not isinstance(given, Mapping):
        return {}
    whole = {value: str(ref) for value, ref in given.items()}
    return {value: ref if "/" in ref or "#" in ref else PREFIX + ref for value, ref in whole.items()}


def free(name: str, taken: Container[str]) -> str:
    """Returns the name, extended until it is not taken."""
    while name in taken:
        name += "_"
    return name


def spread(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Turns each parent that has a discriminator but no alternatives into a choice between its
    descendants: the schemas whose allOf refers to it (OpenAPI 3.0.3, 4.7.25), and those that extend one
    of these. The parent's own rules become a schema of their own, to which its children refer instead,
    as do references to parts of the parent.

    :return: the schemas, and for each parent the name of the schema with its own rules
    """
    extending: dict[str, list[str]] = {}
    for name, one in named.items():
        for parent in dict.fromkeys(map(_extended, _parts(one))):
            extending.setdefault(parent, []).append(name)
    bases: dict[str, str] = {}
    for name, one in named.items():
        if (
            isinstance(one, Mapping)
            and isinstance(one.get("discriminator"), Mapping)
            and not one.keys() & {"oneOf", "anyOf", "$ref"}
            and name in extending
        ):
            bases[name] = free(name + "Base", {*named, *bases.values()})
    found = {name: _into(_on(one, bases), bases) for name, one in named.items()}
    for parent, base in bases.items():
        own = {**found[parent]}
        del own["discriminator"]
        found |= {base: own, parent: _choice(parent, bases, extending, named)}
    return found, bases


def _parts(one: Any) -> list[Any]:
    return _list(one.get("allOf")) if isinstance(one, Mapping) else []


def _extended(part: Any) -> str:
    """Returns the name of the schema that a part of an allOf refers to, if it does."""
    ref = part.get("$ref") if isinstance(part, Mapping) else None
    return ref.removeprefix(PREFIX) if isinstance(ref, str) and ref.startswith(PREFIX) else ""


def _on(one: Any, bases: Mapping[str, str]) -> Any:
    """Makes a schema extend its parent's own rules, if it extends a parent."""
    parts = [
        {**part, "$ref": PREFIX + bases[name]} if (name := _extended(part)) in bases else part
        for part in _parts(one)
    ]
    return {**one, "allOf": parts} if parts else one


def _into(one: Any, bases: Mapping[str, str]) -> Any:
    """Redirects references to parts of parents to the schemas that have these parts now."""
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, _: _into(inner, bases))
    name, slash, rest = str(same.get("$ref")).removeprefix(PREFIX).partition("/")
    if slash and name in bases:
        same["$ref"] = f"{PREFIX}{bases[name]}/{rest}"
    return same


def _choice(
    parent: str, bases: Mapping[str, str], extending: Mapping[str, list[str]], named: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the choice between a parent's descendants; it includes the parent if its mapping does.

    An indirect descendant without a value of its own can never be selected, and is left out.
    """
    discriminator, targets = named[parent]["discriminator"], mapping(named[parent])
    names = _descendants(parent, extending)
    if PREFIX + parent in targets.values():
        names.append(parent)
    refs: dict[str, str] = {}
    values, taken = dict[Any, str](), set[Any]()
    for name in names:
        mapped = [value for value, ref in targets.items() if ref == PREFIX + name]
        told = mapped or _values(named[name], str(discriminator.get("propertyName")), named) or [name]
        if name not in extending[parent] and not taken.isdisjoint(told):
            continue
        taken.update(value for value in told if mapped or value not in targets)
        refs[PREFIX + name] = PREFIX + bases.get(name, name)
        if name in bases:
            # The reference has another name now, so that the value must be mapped.
            values |= dict.fromkeys(told, refs[PREFIX + name])
    values |= {value: refs.get(ref, ref) for value, ref in targets.items()}
    return {
        "anyOf": [{"$ref": ref} for ref in refs.values()],
        "discriminator": {**discriminator, "mapping": values} if values else discriminator,
    }


def _descendants(parent: str, extending: Mapping[str, list[str]]) -> list[str]:
    """Returns the names of all schemas that extend a parent, directly or not."""
    found = dict.fromkeys(extending[parent])
    waiting = [*found]
    for name in waiting:
        new = [child for child in extending.get(name, ()) if child not in found and child != parent]
        found |= dict.fromkeys(new)
        waiting += new
    return waiting


def referring(one: Any) -> Any:
    """Returns a schema whose discriminators map to references, where documents may have mere names."""
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, _: referring(inner))
    if targets := mapping(same):
        same["discriminator"] = {**same["discriminator"], "mapping": targets}
    return same


def decided(one: Any, named: Mapping[str, Any]) -> Any:
    """Returns a schema in which each usable discriminator selects the alternative to check.

    Checking only that one is faster than checking all, and its faults are the ones that help the caller.
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
    if any(_is_null(branch, named) for branch in alternatives):
        rules = [{"if": {"not": NULL}, "then": {"allOf": rules}}]
    return {**same, "allOf": [*same.get("allOf", ()), *rules]}


def _is_null(branch: Any, named: Mapping[str, Any]) -> bool:
    """Whether an alternative allows only null, by which OpenAPI 3.1 makes the others optional."""
    one = schema.followed(branch, named)
    if not isinstance(one, Mapping):
        return False
    return one.get("type") in ("null", ["null"]) or [None] in (one.get("enum"), [one.get("const", 0)])


def _branches(one: Mapping[str, Any], keyword: str, named: Mapping[str, Any]) -> dict[Any, int]:
    """Returns the values of a discriminator's property, each with the index of its alternative.

    The values come from the mapping; for an alternative that it lacks, from the property's own enum;
    otherwise from the alternative's name (OpenAPI 3.0.3, 4.7.25). Empty if there is no discriminator,
    an alternative has no values, or two share one: then all alternatives are checked.
    """
    if not one.get("discriminator"):
        return {}
    property_, targets = one["discriminator"]["propertyName"], mapping(one)
    found: dict[Any, int] = {}
    for index, branch in enumerate(one.get(keyword, ())):
        if _is_null(branch, named):
            continue
        ref = branch.get("$ref") if isinstance(branch, Mapping) else None
        own = _values(branch, property_, named)
        # The keys of a mapping are always strings.
        meant = {json.dumps(value): value for value in own if not isinstance(value, str)}
        values = [meant.get(value, value) for value, target in targets.items() if target == ref]
        values = values or own or ([ref.rpartition("/")[2]] if ref else [])
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
