"""Discriminators of OpenAPI, in the words of JSON Schema."""

import json
from collections.abc import Container, Mapping
from typing import Any

from hyperfleet.contract import schema
from hyperfleet.contract.schema import PREFIX

NULL = {"type": "null"}


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


def spread(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The schemas with each parent that has a discriminator, but no alternatives, turned into the
    choice between its descendants: the schemas with an allOf that refers to it (OpenAPI 3.0.3, 4.7.25),
    and those that extend one of these. What it says itself becomes a schema of its own, which its
    children refer to instead, and who refers to a part of it.

    :return: and by the names of parents those of what they say themselves
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
    """The name of the schema that a part of an allOf refers to, if that is all that it does."""
    ref = part.get("$ref") if isinstance(part, Mapping) and len(part) == 1 else None
    return ref.removeprefix(PREFIX) if isinstance(ref, str) and ref.startswith(PREFIX) else ""


def _on(one: Any, bases: Mapping[str, str]) -> Any:
    """A schema that extends what a parent says itself, where it extends a parent."""
    parts = [
        {"$ref": PREFIX + bases[name]} if (name := _extended(part)) in bases else part
        for part in _parts(one)
    ]
    return {**one, "allOf": parts} if parts else one


def _into(one: Any, bases: Mapping[str, str]) -> Any:
    """A schema whose references to parts of parents lead to where these are."""
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
    """The choice between the descendants of a parent; itself is one where its mapping says so.

    Who extends a child and has no value of its own is not meant by any, and is left out.
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
        if name in bases and not mapped:
            # It is called otherwise now.
            values |= dict.fromkeys(told, refs[PREFIX + name])
    values |= {value: refs.get(ref, ref) for value, ref in targets.items()}
    return {
        "anyOf": [{"$ref": ref} for ref in refs.values()],
        "discriminator": {**discriminator, "mapping": values} if values else discriminator,
    }


def _descendants(parent: str, extending: Mapping[str, list[str]]) -> list[str]:
    """The names of the schemas that extend a parent, or extend one that does, and so on."""
    found = dict.fromkeys(extending[parent])
    waiting = [*found]
    for name in waiting:
        new = [child for child in extending.get(name, ()) if child not in found and child != parent]
        found |= dict.fromkeys(new)
        waiting += new
    return waiting


def referring(one: Any) -> Any:
    """A schema whose discriminators map to references, where the document may have names alone."""
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, lambda inner, _: referring(inner))
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
    if any(_is_null(branch, named) for branch in alternatives):
        rules = [{"if": {"not": NULL}, "then": {"allOf": rules}}]
    return {**same, "allOf": [*same.get("allOf", ()), *rules]}


def _is_null(branch: Any, named: Mapping[str, Any]) -> bool:
    """Whether an alternative is null alone: so OpenAPI 3.1 says that there may be none of the others."""
    one = schema.followed(branch, named)
    if not isinstance(one, Mapping):
        return False
    return one.get("type") in ("null", ["null"]) or [None] in (one.get("enum"), [one.get("const", 0)])


def _branches(one: Mapping[str, Any], keyword: str, named: Mapping[str, Any]) -> dict[Any, int]:
    """What a discriminator chooses from: for each value of its property the index of an alternative.

    The values come from the mapping; for an alternative that it leaves out from the property's own
    enum; at last they are the alternative's name (OpenAPI 3.0.3, 4.7.25). Nothing where there is no
    discriminator, or an alternative without values, or one value for two: all of them count then.
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
        # In a mapping all values are texts.
        meant = {json.dumps(value): value for value in own if not isinstance(value, str)}
        values = [meant.get(value, value) for value, target in targets.items() if target == ref]
        values = values or own or ([ref.rpartition("/")[2]] if ref else [])
        if not values or any(value in found for value in values):
            return {}
        found |= dict.fromkeys(values, index)
    return found


def _values(branch: Any, property_: str, named: Mapping[str, Any], depth: int = 10) -> list[Any]:
    """The values that a schema lets a property have, as far as an enum or a const says so; of texts,
    numbers, true and false.
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
