"""JSON Schema: from a schema as OpenAPI writes it to the faults of a value, in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema_rs

from hyperfleet.errors import Fault

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
}

WORDS: dict[str, Callable[[Any], str]] = {
    "required": lambda kind: "is required",
    "type": lambda kind: "must be " + " or ".join(ARTICLES.get(t, f"a {t}") for t in kind.types),
    "enum": lambda kind: "must be " + ("one of " if len(kind.options) > 1 else "") + _list(kind.options),
    "const": lambda kind: f"must be {kind.expected_value}",
    "minLength": lambda kind: (
        "must not be empty" if kind.limit == 1 else f"must have at least {kind.limit} characters"
    ),
    "maxLength": lambda kind: f"must have at most {kind.limit} characters",
    "minimum": lambda kind: f"must be at least {kind.limit}",
    "maximum": lambda kind: f"must be at most {kind.limit}",
    "exclusiveMinimum": lambda kind: f"must be greater than {kind.limit}",
    "exclusiveMaximum": lambda kind: f"must be less than {kind.limit}",
    "multipleOf": lambda kind: f"must be a multiple of {kind.multiple_of}",
    "pattern": lambda kind: f"must match the pattern {kind.pattern}",
    "format": lambda kind: FORMATS.get(kind.format, f"must be a valid {kind.format}"),
    "minItems": lambda kind: f"must have at least {kind.limit} {_items(kind.limit)}",
    "maxItems": lambda kind: f"must have at most {kind.limit} {_items(kind.limit)}",
    "uniqueItems": lambda kind: "must not have the same item twice",
    "minProperties": lambda kind: f"must have at least {kind.limit} members",
    "maxProperties": lambda kind: f"must have at most {kind.limit} members",
    "falseSchema": lambda kind: "is not allowed here",
    "not": lambda kind: "is not allowed here",
    "contains": lambda kind: "lacks an item that it must have",
    "oneOf": lambda kind: "must fit exactly one of the alternatives",
    "anyOf": lambda kind: "must fit one of the alternatives",
}


def _items(count: int) -> str:
    return "item" if count == 1 else "items"


def _list(options: Sequence[Any]) -> str:
    return ", ".join(str(option) for option in options)


def compile_schema(schema: Mapping[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """A validator of a schema whose references are resolved.

    Raises ValueError for a schema that is none.
    """
    return jsonschema_rs.Draft202012Validator(_dialect(schema), validate_formats=True)


def _dialect(schema: Any) -> Any:
    """A schema of OpenAPI 3.0, in which some keywords differ, as one of JSON Schema 2020-12."""
    if not isinstance(schema, Mapping):
        return schema
    same: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "properties":
            same[keyword] = {name: _dialect(inner) for name, inner in value.items()}
        elif keyword in ("allOf", "anyOf", "oneOf"):
            same[keyword] = [_dialect(inner) for inner in value]
        elif keyword in ("items", "not", "additionalProperties"):
            same[keyword] = _dialect(value)
        elif keyword == "x-key-max-length":
            same["propertyNames"] = {"maxLength": value}
        elif keyword not in ("example", "components"):
            same[keyword] = value
    return same


def path(parts: Sequence[str | int]) -> str:
    """``["conditions", 2, "status"]`` as ``conditions[2].status``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def faults(validator: Any, value: Any, where: Sequence[str | int] = ()) -> Iterator[Fault]:
    """Everything that is wrong with a value, in the order of the schema.

    :param where: the path of the value itself, which the paths of the faults begin with
    """
    for error in validator.iter_errors(value):
        yield from _explain(error, where)


def _explain(error: Any, where: Sequence[str | int]) -> Iterator[Fault]:
    kind, at = error.kind, [*where, *error.instance_path]
    rule = kind.name
    # A missing member and a superfluous one are named themselves, not the object that they are in.
    if rule == "required":
        at.append(kind.property)
    if rule in ("additionalProperties", "unevaluatedProperties"):
        for name in kind.unexpected:
            yield _fault([*at, name], "is not a known member", rule)
        return
    if rule == "propertyNames":
        rule = error.schema_path[-1]
        yield _fault(at, f"has a member whose name {WORDS[rule](kind.error.kind)}", rule)
        return
    words = WORDS.get(rule)
    yield _fault(at, words(kind) if words else "is not valid", rule)


def _fault(at: Sequence[str | int], message: str, rule: str) -> Fault:
    return {"field": path(at) or "body", "message": message, "constraint": rule}
