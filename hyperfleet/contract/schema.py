"""JSON Schema: from a schema as OpenAPI writes it to the faults of a value, in words."""

import base64
import binascii
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Kind

from hyperfleet.errors import Fault, with_value, without_value
from hyperfleet.nearest import nearest

Path: TypeAlias = Sequence[str | int]

# Where schemas lie within a schema: in a mapping by name, in a list, or as the value itself.
MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = (
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
)
# JSON Schema's rules for the names of members, which OpenAPI 3.0 lacks: x-key-pattern and so on.
KEYS = {"pattern": "pattern", "maxLength": "max-length"}
# What those rules come to, in words that follow "which".
KEY_WORDS = "x-key-words"
# What says nothing about values, and what would give a schema an address of its own.
SILENT = ("example", "components", "$id", "$schema", "$vocabulary")

# Steps that a pattern may go back before a text counts as not matching: some 0.2 ms. Patterns without
# look-around and back-references never go back.
BACKTRACKS = 10_000
PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)

# What OpenAPI's formats of integers stand for; JSON Schema knows formats of texts alone.
INTEGERS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
RANGE = "urn:hyperfleet:format:"
RANGES = jsonschema_rs.Registry(
    [(RANGE + name, {"minimum": low, "maximum": high}) for name, (low, high) in INTEGERS.items()]
)

ARTICLES = {"integer": "an integer", "object": "an object", "array": "an array", "null": "null"}

FORMATS = {
    "date-time": "must be a time as in RFC 3339, such as 2025-11-17T15:04:05Z",
    "date": "must be a date, such as 2025-11-17",
    "email": "must be an e-mail address",
    "uri": "must be a URI",
    "uuid": "must be a UUID",
    "ipv4": "must be an IPv4 address",
    "ipv6": "must be an IPv6 address",
    "hostname": "must be a host name",
    "byte": "must be text in base64",
    "regex": "must be a regular expression",
    "int32": "must be an integer of 32 bits, from -2147483648 to 2147483647",
    "int64": "must be an integer of 64 bits, from -9223372036854775808 to 9223372036854775807",
}

WORDS: dict[str, Callable[[Any], str]] = {
    "required": lambda kind: "is required",
    "type": lambda kind: "must be " + _types(kind.types),
    "enum": lambda kind: f"must be {_one_of(kind.options)}",
    "const": lambda kind: f"must be {_list([kind.expected_value])}",
    "minLength": lambda kind: (
        "must not be empty" if kind.limit == 1 else f"must have at least {kind.limit} characters"
    ),
    "maxLength": lambda kind: f"must have at most {_count(kind.limit, 'character')}",
    "minimum": lambda kind: f"must be at least {kind.limit}",
    "maximum": lambda kind: f"must be at most {kind.limit}",
    "exclusiveMinimum": lambda kind: f"must be greater than {kind.limit}",
    "exclusiveMaximum": lambda kind: f"must be less than {kind.limit}",
    "multipleOf": lambda kind: f"must be a multiple of {kind.multiple_of}",
    "pattern": lambda kind: f"must match the pattern {kind.pattern}",
    "format": lambda kind: FORMATS.get(kind.format, f"must be a valid {kind.format}"),
    "minItems": lambda kind: f"must have at least {_count(kind.limit, 'item')}",
    "maxItems": lambda kind: f"must have at most {_count(kind.limit, 'item')}",
    "uniqueItems": lambda kind: "must not have the same item twice",
    "minProperties": lambda kind: f"must have at least {_count(kind.limit, 'member')}",
    "maxProperties": lambda kind: f"must have at most {_count(kind.limit, 'member')}",
    "falseSchema": lambda kind: "is not allowed here",
    "not": lambda kind: "is not allowed here",
    "contains": lambda kind: "lacks an item that it must have",
    "minContains": lambda kind: "has too few of the items that it must have",
    "maxContains": lambda kind: "has too many items of a kind that is limited",
    "unevaluatedItems": lambda kind: "has more items than it may have",
}
# Where the library names a rule otherwise than the keyword, or several keywords alike.
KEYWORDS = {"dependentRequired", "minContains", "maxContains", "items", "unevaluatedItems"}

# More faults are not told: a body of a megabyte can have half a million. The validator finds all of
# them before it tells the first, some 20 us each, so that of a value with more parts than MAX_PARTS
# only the first fault is looked for.
MAX_FAULTS = 1000
MAX_PARTS = 10_000
MAX_NAME = 100
# As many values or alternatives a message lists.
LISTED = 20
ALTERNATIVES = 4


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _one_of(options: Sequence[Any]) -> str:
    # That it may also be null is no help to who sends something else.
    told = [one for one in options if one is not None] or [None]
    return ("one of " if len(told) > 1 else "") + _list(told)


def _types(names: Sequence[str]) -> str:
    return " or ".join(ARTICLES.get(name, f"a {name}") for name in sorted(names, key="null".__eq__))


def _list(options: Sequence[Any]) -> str:
    shown = ", ".join(
        option if isinstance(option, str) and option else json.dumps(option, ensure_ascii=False)
        for option in options[:LISTED]
    )
    return shown + (f" and {len(options) - LISTED} more" if len(options) > LISTED else "")


class Validator(NamedTuple):
    """A schema that is compiled, and its text, in which the paths of errors lead to their rules."""

    compiled: jsonschema_rs.Draft202012Validator
    text: Mapping[str, Any]


def compile_schema(
    schema: Any, named: Mapping[str, Any] | None = None, *, old: bool = True
) -> Validator:
    """A validator of values.

    :param schema: as OpenAPI writes it
    :param named: the schemas that its references, ``#/components/schemas/NAME``, speak of
    :param old: whether it is of OpenAPI 3.0, in which some keywords differ from JSON Schema 2020-12

    Nothing is fetched. Raises ValueError for a schema that is none.
    """
    named = {name: plain(inner, old=old) for name, inner in (named or {}).items()}
    whole = _dialect(plain(schema, old=old), named, old)
    if named:
        components = {name: _dialect(inner, named, old) for name, inner in named.items()}
        whole = {"allOf": [whole], "components": {"schemas": components}}
    compiled = jsonschema_rs.Draft202012Validator(
        whole,
        validate_formats=True,
        formats={"byte": _is_base64},
        pattern_options=PATTERNS,
        registry=RANGES,
        offline=True,
    )
    return Validator(compiled, whole if isinstance(whole, Mapping) else {})


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def each(schema: Mapping[str, Any], change: Callable[[Any, Path], Any]) -> dict[str, Any]:
    """A copy of a schema in which each schema directly within is replaced by what ``change`` makes of
    it; that is called with the inner schema and its path. What is misplaced stays as it is.
    """
    same: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in MAPS and isinstance(value, Mapping):
            same[keyword] = {name: change(inner, (keyword, name)) for name, inner in value.items()}
        elif keyword in LISTS and isinstance(value, list):
            same[keyword] = [change(inner, (keyword, index)) for index, inner in enumerate(value)]
        elif keyword in SINGLE:
            same[keyword] = change(value, (keyword,))
        else:
            same[keyword] = value
    return same


def plain(schema: Any, *, old: bool) -> Any:
    """The schema without what differs from JSON Schema 2020-12 in form; every path stays the same."""
    if not isinstance(schema, Mapping):
        return schema
    if old and "$ref" in schema:
        # In OpenAPI 3.0 a reference stands alone: what is beside it does not count.
        return {"$ref": schema["$ref"]}
    same = each(schema, lambda inner, _: plain(inner, old=old))
    for keyword in SILENT:
        same.pop(keyword, None)
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if old and isinstance(same.get(strict), bool) and same.pop(strict) and bound in same:
            same[strict] = same.pop(bound)
    return same


def _dialect(schema: Any, named: Mapping[str, Any], old: bool) -> Any:
    """A plain schema as one of JSON Schema 2020-12 that means the same."""
    if not isinstance(schema, Mapping):
        return schema
    same = each(schema, lambda inner, _: _dialect(inner, named, old))
    keys = {word: same.pop(f"x-key-{note}") for word, note in KEYS.items() if f"x-key-{note}" in same}
    if keys:
        same["propertyNames"] = keys
    added: list[Any] = []
    low, high = INTEGERS.get(str(same.get("format")), (0, 0))
    if high and not (same.get("minimum", low - 1) >= low and same.get("maximum", high + 1) <= high):
        added.append({"$ref": RANGE + same["format"]})
    found = choices(schema, named)
    if found:
        # Checking the chosen alternative alone is faster than all of them, and its faults are the
        # ones that the caller wants to hear of.
        keyword, property_, branches = found
        alternatives = same.pop(keyword)
        tag = {"enum": list(branches)}
        added.append({"type": "object", "required": [property_], "properties": {property_: tag}})
        for value, index in branches.items():
            chosen = {"required": [property_], "properties": {property_: {"const": value}}}
            added.append({"if": chosen, "then": alternatives[index]})
    if added:
        same["allOf"] = [*same.get("allOf", ()), *added]
    return _for_requests(same, named) if old else same


def _for_requests(same: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAPI 3.0 says in keywords of its own: null may be sent, what is read only need not."""
    given = same.get("properties", {})
    if "required" in same and given:
        known = [_followed(given.get(name), named) for name in same["required"]]
        same["required"] = [
            name
            for name, inner in zip(same["required"], known, strict=True)
            if not (isinstance(inner, Mapping) and inner.get("readOnly") is True)
        ]
    if same.pop("nullable", False) is not True:
        return same
    if isinstance(same.get("type"), str):
        same["type"] = [same["type"], "null"]
    if "enum" in same and None not in same["enum"]:
        same["enum"] = [*same["enum"], None]
    # The other keywords say nothing about null, but these may.
    rest = {
        keyword: same.pop(keyword) for keyword in ("allOf", "anyOf", "oneOf", "not") if keyword in same
    }
    if rest:
        same |= {"if": {"not": {"type": "null"}}, "then": rest}
    return same


def choices(
    schema: Mapping[str, Any], named: Mapping[str, Any]
) -> tuple[str, str, dict[Any, int]] | None:
    """What the discriminator of a schema chooses from: the keyword with the alternatives, the property
    that it looks at, and for each of that property's values the index of an alternative.

    The values come from the mapping; for an alternative that it leaves out from the property's own
    enum; at last they are the alternative's name (OpenAPI 3.0.3, 4.7.25). None where there is no
    discriminator, or an alternative without values, or one value for two: all of them count then.
    """
    keyword = "oneOf" if "oneOf" in schema else "anyOf"
    discriminator = schema.get("discriminator")
    if not isinstance(discriminator, Mapping) or keyword not in schema:
        return None
    property_ = discriminator["propertyName"]
    mapping = discriminator.get("mapping") or {}
    found: dict[Any, int] = {}
    for index, branch in enumerate(schema[keyword]):
        ref = branch.get("$ref") if isinstance(branch, Mapping) else None
        values: list[Any] = [value for value, target in mapping.items() if target == ref]
        values = values or _values(branch, property_, named) or ([_name(ref)] if ref else [])
        if not values or any(value in found for value in values):
            return None
        found |= dict.fromkeys(values, index)
    return keyword, property_, found


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]


def _followed(schema: Any, named: Mapping[str, Any]) -> Any:
    """What a schema that is a reference refers to; references to references end somewhere, or None."""
    for _ in range(10):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        schema = named.get(_name(schema["$ref"]))
    return None


def _values(branch: Any, property_: str, named: Mapping[str, Any], depth: int = 10) -> list[Any]:
    """The texts that a schema lets a property have, as far as an enum or a const says so."""
    branch = _followed(branch, named)
    if not isinstance(branch, Mapping) or not depth:
        return []
    own = _followed(branch.get("properties", {}).get(property_), named)
    if isinstance(own, Mapping) and ("enum" in own or "const" in own):
        return [value for value in own.get("enum", [own.get("const")]) if isinstance(value, str)]
    for inner in branch.get("allOf", ()):
        values = _values(inner, property_, named, depth - 1)
        if values:
            return values
    return []


def tidy(schema: Mapping[str, Any], value: Any) -> Any:
    """A valid value without the members that are null where null means absent; the value itself where
    there is nothing to change.

    :param schema: as OpenAPI writes it, without references; what it does not describe stays as it is
    """
    if isinstance(value, list) and "items" in schema:
        items = [tidy(schema["items"], item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    known = schema.get("properties")
    if not isinstance(value, dict) or not known or schema.get("x-null-removes"):
        return value
    members = {
        name: tidy(known.get(name, {}), inner)
        for name, inner in value.items()
        if inner is not None or name not in known
    }
    same = members.keys() == value.keys() and all(members[name] is value[name] for name in members)
    return value if same else members


def path(parts: Path) -> str:
    """``["conditions", 2, "status"]`` as ``conditions[2].status``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def faults(validator: Validator, value: Any, where: Path = ()) -> Iterator[Fault]:
    """Everything that is wrong with a value, each thing once, in the order of the schema.

    At most ``MAX_FAULTS`` things, and of a value with more than ``MAX_PARTS`` parts the first alone.

    :param where: the path of the value itself, which the paths of the faults begin with
    """
    return itertools.islice(_faults(validator, value, where), MAX_FAULTS)


def _faults(validator: Validator, value: Any, where: Path) -> Iterator[Fault]:
    seen = set()
    paths: list[list[str | int]] = []
    leftovers: list[Any] = []

    def new(found: Iterable[Fault]) -> Iterator[Fault]:
        for fault in found:
            key = tuple(fault.values())
            if key not in seen:
                seen.add(key)
                yield fault

    for error in _without_consequences(_errors(validator.compiled, value)):
        rule, at = error.kind.name, [*where, *error.instance_path]
        if rule == "unevaluatedProperties":
            leftovers.append(error)
        elif rule == "additionalProperties":
            known = _known(_rules(error, validator), validator.text)
            yield from new(_unknown_members(at, error.kind.unexpected, rule, known))
        elif rule == "propertyNames" and (words := _rules(error, validator).get(KEY_WORDS)):
            key = error.kind.error.instance[:MAX_NAME]
            yield from new([_fault(at, f"has the key {key!r}, which {words}", "pattern")])
        else:
            paths.append(error.instance_path)
            levels = list(_along(validator.text, error.instance_path))
            if rule == "type" and error.instance is None and not where and _wanted(levels, at):
                # Null for a member is no member.
                yield from new([_fault(at, "is required", "required")])
                continue
            found = explain(error, where)
            if any(map(_is_secret, itertools.chain(*levels))):
                found = map(without_value, found)
            yield from new(found)
    for error in leftovers:
        # Where one part of an allOf is broken, all that this part knows counts as left over.
        at, known = error.instance_path, set[str]()
        if any(path[: len(at)] == at for path in paths):
            known = _known(_rules(error, validator), validator.text)
        names = (name for name in error.kind.unexpected if name not in known)
        yield from new(_unknown_members([*where, *at], names, error.kind.name))


def _without_consequences(errors: Iterable[Any]) -> Iterator[Any]:
    """The errors but those that come of another one's mistake: what is of the wrong type is none of the
    values either, and what is empty fits no pattern.
    """
    errors = list(errors)
    wrong = {tuple(error.instance_path) for error in errors if error.kind.name == "type"}
    empty = {
        tuple(error.instance_path)
        for error in errors
        if error.kind.name == "minLength" and error.instance == ""
    }
    for error in errors:
        rule, at = error.kind.name, tuple(error.instance_path)
        if not (rule in ("enum", "const") and at in wrong) and not (
            rule in ("pattern", "format", "enum", "const") and at in empty
        ):
            yield error


def _along(text: Mapping[str, Any], place: Path) -> Iterator[list[Mapping[str, Any]]]:
    """The schemas that apply to a value, to its part that a path leads to, and to all between."""
    level = _applied([text], text)
    yield level
    for step in place:
        inner: list[Any] = []
        for one in level:
            if isinstance(step, int):
                inner += [one.get("items"), *one.get("prefixItems", ())[step : step + 1]]
            elif step in one.get("properties", {}):
                inner.append(one["properties"][step])
            else:
                inner.append(one.get("additionalProperties"))
        level = _applied(inner, text)
        yield level


def _applied(schemas: list[Any], text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Schemas, with all that they apply to the same value."""
    waiting, done = list(schemas), list[Mapping[str, Any]]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping) or any(one is other for other in done):
            continue
        done.append(one)
        if one.get("$ref", "").startswith("#/"):
            waiting.append(_at(text, one["$ref"][2:].split("/")))
        for keyword in ("allOf", "anyOf", "oneOf"):
            waiting += one.get(keyword, ())
        waiting += [one.get(keyword) for keyword in ("if", "then", "else")]
        waiting += one.get("dependentSchemas", {}).values()
    return done


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return schema.get("format") == "password" or schema.get("writeOnly") is True


def _wanted(levels: Sequence[list[Mapping[str, Any]]], at: Path) -> bool:
    """Whether the schemas around a value say that it must be there."""
    return len(levels) > 1 and any(at[-1] in one.get("required", ()) for one in levels[-2])


def _rules(error: Any, validator: Validator) -> Any:
    """The schema whose rule an error is about; for the name of a member, the schema of the object."""
    place = error.schema_path
    if error.kind.name in place:
        place = place[: len(place) - place[::-1].index(error.kind.name)]
    return _at(validator.text, place[:-1])


def _errors(compiled: jsonschema_rs.Draft202012Validator, value: Any) -> Iterable[Any]:
    if compiled.is_valid(value):
        return []
    if _parts(value) <= MAX_PARTS:
        return compiled.iter_errors(value)
    try:
        compiled.validate(value)
    except jsonschema_rs.ValidationError as error:
        return [error]
    return []


def _parts(value: Any) -> int:
    """How many values a value consists of, as far as it matters here."""
    count, waiting = 0, [value]
    while waiting and count <= MAX_PARTS:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return count


def _unknown_members(
    at: Path, names: Iterable[str], rule: str, known: Iterable[str] = ()
) -> Iterator[Fault]:
    for name in names:
        near = nearest(name, known)
        meant = f"; did you mean {near}?" if near else ""
        # Cut, as a name may be as long as the body.
        yield _fault([*at, name[:MAX_NAME]], f"is not a known member{meant}", rule)


def _at(text: Any, path: Path) -> Any:
    for part in path:
        text = text[part]
    return text


def _known(schema: Any, text: Mapping[str, Any]) -> set[str]:
    """The members that a schema names, itself or in the schemas that it applies to the same value."""
    return {name for one in _applied([schema], text) for name in one.get("properties", {})}


def explain(error: Any, where: Path = ()) -> Iterator[Fault]:
    """The faults that one error of a validator comes to; ``where`` as in :func:`faults`."""
    kind, at, rule = error.kind, [*where, *error.instance_path], error.kind.name
    last = error.schema_path[-1] if error.schema_path else ""
    if rule in ("oneOf", "anyOf"):
        yield from _alternatives(error, where)
    elif (error.absolute_keyword_location or "").startswith(RANGE):
        name = error.absolute_keyword_location[len(RANGE) :].partition("#")[0]
        yield with_value(_fault(at, FORMATS[name], "format"), error.instance)
    elif isinstance(kind, Kind.BacktrackLimitExceeded | Kind.RegexEngineFailure):
        yield _fault(at, "takes too long to compare with its pattern", rule)
    elif rule in ("additionalProperties", "unevaluatedProperties"):
        # A missing member and a superfluous one are named themselves, not the object that they are in.
        yield from _unknown_members(at, kind.unexpected, rule)
    elif rule == "required":
        rule = last if last in KEYWORDS else rule
        yield _fault([*at, kind.property], "is required", rule)
    elif rule == "propertyNames":
        for fault in explain(kind.error, ()):
            message = f"has a member whose name {fault['message']}: {kind.error.instance[:MAX_NAME]}"
            yield _fault(at, message, fault["constraint"])
    else:
        rule = last if last in KEYWORDS else rule
        words = WORDS.get(rule) or WORDS.get(kind.name)
        fault = _fault(at, words(kind) if words else "is not valid", rule)
        yield with_value(fault, error.instance)


def _alternatives(error: Any, where: Path) -> Iterator[Fault]:
    """The faults of the alternative that was meant, where that can be told, else one sentence."""
    at, rule = [*where, *error.instance_path], error.kind.name
    if isinstance(error.kind, Kind.OneOfMultipleValid):
        yield _fault(at, "must fit exactly one of the alternatives, but fits several", rule)
        return
    other = [fault for branch in error.kind.context for fault in branch if _is_other_type(fault, error)]
    fitting = [
        branch
        for branch in error.kind.context
        if not any(_is_other_type(fault, error) for fault in branch)
    ]
    if not fitting:
        names = dict.fromkeys(name for fault in other for name in fault.kind.types)
        yield _fault(at, "must be " + _types(list(names)), rule)
        return
    ranks = [_distance(branch, error) for branch in fitting]
    best = [branch for branch, rank in zip(fitting, ranks, strict=True) if rank == min(ranks)]
    if len(best) == 1:
        for inner in best[0]:
            yield from explain(inner, where)
        return
    message = "must fit one of the alternatives"
    if len(best) <= ALTERNATIVES:
        here = path(error.instance_path)
        message += ": " + "; or ".join(_brief(branch, here) for branch in best)
    yield _fault(at, message, rule)


def _is_other_type(fault: Any, error: Any) -> bool:
    return bool(fault.kind.name == "type" and fault.instance_path == error.instance_path)


def _distance(branch: Sequence[Any], error: Any) -> tuple[int, int]:
    """How far a value is from an alternative: first by its own members' names and constants, which
    tell alternatives apart, then by all that is wrong.
    """
    level = len(error.instance_path)
    telling = [
        fault
        for fault in branch
        if len(fault.instance_path) == level
        or (len(fault.instance_path) == level + 1 and fault.kind.name in ("const", "enum"))
    ]
    return len(telling), len(branch)


def _brief(branch: Sequence[Any], here: str) -> str:
    found = [fault for error in branch[:2] for fault in explain(error, ())][:2]
    fields = [fault["field"].removeprefix(here).lstrip(".") for fault in found]
    return " and ".join(
        f"{field} {fault['message']}".lstrip() for field, fault in zip(fields, found, strict=True)
    )


def _fault(at: Path, message: str, rule: str) -> Fault:
    return {"field": path(at) or "body", "message": message, "constraint": rule}
