"""JSON Schema: converts schemas from OpenAPI and compiles them."""

import base64
import functools
import hashlib
import operator
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jsonschema_rs

Path: TypeAlias = Sequence[str | int]

PREFIX = "#/components/schemas/"

# The keywords that hold schemas: in a mapping by name, in a list, or as the value itself.
MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = (
    *("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
# JSON Schema's rules for names of members, which OpenAPI 3.0 lacks: x-key-pattern and so on.
KEYS = {"pattern": "pattern", "maxLength": "max-length"}
# A description of those rules that follows "which".
KEY_WORDS = "x-key-words"
# Keywords that say nothing about values, or would give a schema an address of its own.
SILENT = ("example", "components", "$id", "$schema", "$vocabulary")

# Backtracking steps, about 0.2 ms, after which a pattern counts as not matching. Patterns without
# look-around and back-references never backtrack.
BACKTRACKS = 10_000
PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)

# The ranges of OpenAPI's integer formats; JSON Schema only has formats of strings.
INTEGERS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
RANGE = "urn:hyperfleet:format:"
RANGES = jsonschema_rs.Registry(
    [(RANGE + name, {"minimum": low, "maximum": high}) for name, (low, high) in INTEGERS.items()]
)

# Deeper documents are refused. Clients and databases have limits too, none of them lower.
MAX_DEPTH = 64


class Validator(NamedTuple):
    """A compiled schema, and its text, in which the paths of errors lead to the rules."""

    compiled: jsonschema_rs.Draft202012Validator
    text: Mapping[str, Any]


def compile_schema(
    schema: Any, named: Mapping[str, Any] | None = None, *, old: bool = True
) -> Validator:
    """Compiles a schema into a validator.

    :param schema: as OpenAPI writes it
    :param named: the schemas that references ``#/components/schemas/NAME`` lead to
    :param old: whether it is OpenAPI 3.0, in which some keywords differ from JSON Schema 2020-12

    Nothing is fetched. Raises ValueError if the schema is invalid.
    """
    # Only those that are needed: each kind has several, and a validator for each.
    needed = reached(schema, named) if named else {}
    named = {name: plain(inner, old=old) for name, inner in needed.items()}
    whole = _dialect(plain(schema, old=old), named, old)
    if named:
        components: dict[str, Any] = {}
        # The conversion may add variants of schemas that require less.
        while left := named.keys() - components.keys():
            components |= {name: _dialect(named[name], named, old) for name in sorted(left)}
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


def reached(schema: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the named schemas that a schema refers to, directly or not."""
    found: dict[str, Any] = {}
    waiting = [schema]
    for one in waiting:
        for part in parts(one):
            if isinstance(part, str) and part.startswith(PREFIX):
                name = pointer(part)[2]
                if name in named and name not in found:
                    found[name] = named[name]
                    waiting.append(named[name])
    return found


def parts(value: Any) -> Iterator[Any]:
    """Yields a value and all values that it consists of."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def fits(text: str, pattern: str) -> bool:
    """Whether a pattern of a schema matches anywhere in a text."""
    return _searching(pattern).is_valid(text)


@functools.lru_cache(1000)
def _searching(pattern: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=PATTERNS)


def pointer(ref: str) -> list[str]:
    """Returns the path that a reference within a document stands for (RFC 6901, section 6)."""
    steps = urllib.parse.unquote(ref[2:]).split("/")
    return [step.replace("~1", "/").replace("~0", "~") for step in steps]


def at(whole: Any, path: Path) -> Any:
    """Returns what a path leads to. Raises LookupError, TypeError or ValueError if there is nothing."""
    for step in path:
        whole = whole[int(step) if isinstance(whole, list) else step]
    return whole


def each(schema: Mapping[str, Any], change: Callable[[Any, Path], Any]) -> dict[str, Any]:
    """Returns a copy of a schema with each schema directly within it replaced by the result of
    ``change``, called with the inner schema and its path. Misplaced values stay as they are.
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
    """Returns the schema in the form of JSON Schema 2020-12; all paths stay the same."""
    if not isinstance(schema, Mapping):
        return schema
    if old and "$ref" in schema:
        # In OpenAPI 3.0, anything beside a reference is ignored.
        return {"$ref": schema["$ref"]}
    same = each(schema, lambda inner, _: plain(inner, old=old))
    for keyword in SILENT:
        same.pop(keyword, None)
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if old and isinstance(same.get(strict), bool) and same.pop(strict) and bound in same:
            same[strict] = same.pop(bound)
    return same


def _dialect(schema: Any, named: dict[str, Any], old: bool) -> Any:
    """Converts a plain schema to JSON Schema 2020-12 with the same meaning.

    :param named: the schemas that references lead to; variants that the result refers to are added
    """
    if not isinstance(schema, Mapping):
        return schema
    if old and "$ref" not in schema and (answered := _read_only(schema, named)):
        schema = _not_requiring(schema, answered, named)
    same = each(schema, lambda inner, _: _dialect(inner, named, old))
    keys = {word: same.pop(f"x-key-{note}") for word, note in KEYS.items() if f"x-key-{note}" in same}
    if keys:
        same["propertyNames"] = keys
    low, high = INTEGERS.get(str(same.get("format")), (0, 0))
    if high and not (same.get("minimum", low - 1) >= low and same.get("maximum", high + 1) <= high):
        same["allOf"] = [*same.get("allOf", ()), {"$ref": RANGE + same["format"]}]
    return _with_null(same) if old and same.pop("nullable", False) is True else same


def _with_null(same: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema of OpenAPI 3.0 that also allows null."""
    if isinstance(same.get("type"), str):
        same["type"] = [same["type"], "null"]
    if "enum" in same and None not in same["enum"]:
        same["enum"] = [*same["enum"], None]
    # Other keywords do not apply to null, but these may.
    rest = {
        keyword: same.pop(keyword) for keyword in ("allOf", "anyOf", "oneOf", "not") if keyword in same
    }
    if rest:
        same |= {"if": {"not": {"type": "null"}}, "then": rest}
    return same


def _read_only(schema: Any, named: Mapping[str, Any]) -> set[str]:
    """Returns the read-only members of an object, according to a schema or a part of its allOf."""
    found, seen, waiting = set[str](), list[Any](), [schema]
    while waiting:
        one = followed(waiting.pop(), named)
        if not isinstance(one, Mapping) or any(one is other for other in seen):
            continue
        seen.append(one)
        for name, member in one.get("properties", {}).items():
            inner = followed(member, named)
            if isinstance(inner, Mapping) and inner.get("readOnly") is True:
                found.add(name)
        waiting += one.get("allOf", ())
    return found


def _not_requiring(
    schema: Any, names: set[str], named: dict[str, Any], within: tuple[Any, ...] = ()
) -> Any:
    """Returns an object's schema that requires none of these members, not in parts of its allOf either:
    OpenAPI 3.0 does not require read-only members in requests. May be the schema itself.

    :param named: variants of referenced schemas are added here; in place, they could contain themselves
    :param within: the schemas that it is a part of, since one can be a part of itself
    """
    one = followed(schema, named)
    if not isinstance(one, Mapping) or any(one is other for other in within):
        return schema
    ref = schema.get("$ref", "")
    name = hashlib.sha256(repr((ref, sorted(names))).encode()).hexdigest() if ref else ""
    if ref and name in named:
        return {"$ref": PREFIX + name}
    asked, parts = one.get("required", ()), one.get("allOf", ())
    required = [name for name in asked if name not in names]
    allof = [_not_requiring(part, names, named, (*within, one)) for part in parts]
    if len(required) == len(asked) and all(map(operator.is_, allof, parts)):
        return schema
    same = {**one, **({"required": required} if asked else {}), **({"allOf": allof} if parts else {})}
    if not ref:
        return same
    named[name] = same
    return {"$ref": PREFIX + name}


def followed(schema: Any, named: Mapping[str, Any]) -> Any:
    """Follows references; returns the schema that they lead to, or None if that fails or takes ten."""
    for _ in range(10):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        if not str(schema["$ref"]).startswith(PREFIX):
            return None
        try:
            schema = at(named, pointer(schema["$ref"])[2:])
        except (LookupError, TypeError, ValueError):
            return None
    return None


def depth(value: Any) -> int:
    """Returns the number of levels of a value; a scalar is one level."""
    level, count = [value], 0
    while level:
        count += 1
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return count


def tidy(schema: Mapping[str, Any], value: Any) -> Any:
    """Returns a valid value without members whose null means absent, or the value itself if there is
    nothing to remove.

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
