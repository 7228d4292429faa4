"""Describes what is wrong with a value according to a schema."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Kind

from hyperfleet.contract import schema
from hyperfleet.contract.schema import KEY_WORDS, PREFIX, RANGE, Path, Validator
from hyperfleet.errors import Fault, with_value
from hyperfleet.nearest import hint

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
# Keywords for which the library has another name, or one name for several.
KEYWORDS = {"dependentRequired", "minContains", "maxContains", "items", "unevaluatedItems"}

# The most faults to report: a body of a megabyte can have half a million. The validator finds all of
# them before it returns the first, at about 20 us each, so only the first is looked for if a value has
# more than MAX_PARTS parts, or if copies of it could take more than MAX_COPIED bytes: for each unknown
# name, the validator copies the object that has it. There a number counts as VALUE, and an object or a
# list as HOLDER, even if it is empty.
MAX_FAULTS = 1000
MAX_PARTS = 10_000
MAX_COPIED = 50_000_000
VALUE = 50
HOLDER = 4 * VALUE
# For this many unknown members the nearest known one is searched, at about 10 us per known member.
HINTED = 50
MAX_NAME = 100
# The most values and alternatives that a message lists.
LISTED = 20
ALTERNATIVES = 4


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _one_of(options: Sequence[Any]) -> str:
    # Null is omitted: it is no help to a client that sends something else.
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


def path(parts: Path) -> str:
    """Returns a path as text: ``["conditions", 2, "status"]`` is ``conditions[2].status``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def fault(at: Path, message: str, rule: str) -> Fault:
    """Returns a fault: the path of the value, a message, and the name of the rule."""
    return {"field": path(at) or "body", "message": message, "constraint": rule}


def faults(validator: Validator, value: Any, where: Path = ()) -> Iterator[Fault]:
    """Yields everything that is wrong with a value, without duplicates and in the order of the schema.

    There are at most ``MAX_FAULTS``, and only the first for a value with more than ``MAX_PARTS`` parts.

    :param where: the path of the value itself, with which the paths of the faults begin
    """
    if validator.compiled.is_valid(value):
        return iter(())
    return itertools.islice(_faults(validator, value, where), MAX_FAULTS)


def _faults(validator: Validator, value: Any, where: Path) -> Iterator[Fault]:
    seen = set()
    paths: list[list[str | int]] = []
    leftovers: list[Any] = []

    def secret(place: Path) -> bool:
        return any(map(_is_secret, itertools.chain(*_along(validator.text, place))))

    def new(found: Iterable[Fault]) -> Iterator[Fault]:
        for one in found:
            key = tuple(one.values())
            if key not in seen:
                seen.add(key)
                yield one

    for error in _without_consequences(_errors(validator.compiled, value)):
        rule, at = error.kind.name, [*where, *error.instance_path]
        if rule == "unevaluatedProperties":
            leftovers.append(error)
        elif rule == "additionalProperties":
            hinted = len(seen) < HINTED
            known = _known(_rules(error, validator), validator.text) if hinted else ()
            yield from new(_unknown_members(at, error.kind.unexpected, rule, known))
        elif rule == "propertyNames" and (words := _rules(error, validator).get(KEY_WORDS)):
            key = error.kind.error.instance[:MAX_NAME]
            yield from new([fault(at, f"has the key {key!r}, which {words}", "pattern")])
        else:
            paths.append(error.instance_path)
            if rule == "type" and error.instance is None and not where and _wanted(validator, at):
                # A member that is null counts as absent.
                yield from new([fault(at, "is required", "required")])
                continue
            yield from new(explain(error, where, secret))
    for error in leftovers:
        # If a part of an allOf fails, all members that it knows are reported as unevaluated.
        at, known = error.instance_path, set[str]()
        if any(path[: len(at)] == at for path in paths):
            known = _known(_rules(error, validator), validator.text)
        names = (name for name in error.kind.unexpected if name not in known)
        yield from new(_unknown_members([*where, *at], names, error.kind.name))


def _without_consequences(errors: Iterable[Any]) -> Iterator[Any]:
    """Yields the errors except those that follow from another: a value of the wrong type is not in the
    enum either, and an empty string does not match the pattern.
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
    """Yields the schemas that apply to a value, and to each of its parts along a path."""
    level = _applied([text], text)
    yield level
    for step in place:
        inner: list[Any] = []
        for one in level:
            if isinstance(step, int):
                inner += [one.get(keyword) for keyword in ("items", "contains", "unevaluatedItems")]
                inner += one.get("prefixItems", ())[step : step + 1]
                continue
            named = one.get("patternProperties", {}).items()
            mine = [one["properties"][step]] if step in one.get("properties", {}) else []
            mine += [inner for pattern, inner in named if schema.fits(step, pattern)]
            rest = ("additionalProperties", "unevaluatedProperties")
            inner += mine or [one.get(keyword) for keyword in rest]
        level = _applied(inner, text)
        yield level


def _applied(schemas: list[Any], text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns schemas, and all schemas that they apply to the same value."""
    waiting, done = list(schemas), list[Mapping[str, Any]]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping) or any(one is other for other in done):
            continue
        done.append(one)
        for ref in (one.get("$ref", ""), one.get("$dynamicRef", "")):
            if ref.startswith(PREFIX):
                waiting.append(schema.at(text, schema.pointer(ref)))
        for keyword in ("allOf", "anyOf", "oneOf"):
            waiting += one.get(keyword, ())
        waiting += [one.get(keyword) for keyword in ("if", "then", "else")]
        waiting += one.get("dependentSchemas", {}).values()
    return done


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return schema.get("format") == "password" or schema.get("writeOnly") is True


def _wanted(validator: Validator, at: Path) -> bool:
    """Whether the schemas around a value require it."""
    around = list(_along(validator.text, at[:-1]))[-1] if at else []
    return any(at[-1] in one.get("required", ()) for one in around)


def _rules(error: Any, validator: Validator) -> Any:
    """Returns the schema with the rule of an error; for a member's name, that of the object."""
    place = error.schema_path
    if error.kind.name in place:
        place = place[: len(place) - place[::-1].index(error.kind.name)]
    return schema.at(validator.text, place[:-1])


def _errors(compiled: jsonschema_rs.Draft202012Validator, value: Any) -> Iterable[Any]:
    few = sum(1 for _ in itertools.islice(schema.parts(value), MAX_PARTS + 1)) <= MAX_PARTS
    if few and _copies(value)[1] <= MAX_COPIED:
        return compiled.iter_errors(value)
    try:
        compiled.validate(value)
    except jsonschema_rs.ValidationError as error:
        return [error]
    return []


def _copies(value: Any) -> tuple[int, int]:
    """Estimates the bytes of a value, and of copying each object in it once for each of its names."""
    if not isinstance(value, dict | list):
        return VALUE + (len(value) if isinstance(value, str) else 0), 0
    inner = [_copies(one) for one in (value.values() if isinstance(value, dict) else value)]
    size, copied = HOLDER + sum(own for own, _ in inner), sum(copied for _, copied in inner)
    if isinstance(value, dict):
        # Names may be as long as the body.
        size += sum(map(len, value))
        copied += len(value) * size
    return size, copied


def _unknown_members(
    at: Path, names: Iterable[str], rule: str, known: Iterable[str] = ()
) -> Iterator[Fault]:
    for index, name in enumerate(names):
        meant = hint(name, known if index < HINTED else ())
        # Truncated, since a name may be as long as the body.
        yield fault([*at, name[:MAX_NAME]], f"is not a known member{meant}", rule)


def _known(schema: Any, text: Mapping[str, Any]) -> set[str]:
    """Returns the members that a schema defines, itself or in schemas that it applies to the value."""
    return {name for one in _applied([schema], text) for name in one.get("properties", {})}


def explain(
    error: Any, where: Path = (), secret: Callable[[Path], bool] = lambda _: False
) -> Iterator[Fault]:
    """Yields the faults that an error of a validator stands for.

    :param where: as in :func:`faults`
    :param secret: whether the value at a path must not be repeated
    """
    kind, at, rule = error.kind, [*where, *error.instance_path], error.kind.name
    last = error.schema_path[-1] if error.schema_path else ""

    def told(found: Fault) -> Fault:
        return found if secret(error.instance_path) else with_value(found, error.instance)

    if rule in ("oneOf", "anyOf"):
        yield from _alternatives(error, where, secret)
    elif (error.absolute_keyword_location or "").startswith(RANGE):
        name = error.absolute_keyword_location[len(RANGE) :].partition("#")[0]
        yield told(fault(at, FORMATS[name], "format"))
    elif isinstance(kind, Kind.BacktrackLimitExceeded | Kind.RegexEngineFailure):
        yield fault(at, "takes too long to compare with its pattern", rule)
    elif rule in ("additionalProperties", "unevaluatedProperties"):
        # The fault names the unknown or missing member, not the object that it is about.
        yield from _unknown_members(at, kind.unexpected, rule)
    elif rule == "required":
        rule = last if last in KEYWORDS else rule
        yield fault([*at, kind.property], "is required", rule)
    elif rule == "propertyNames":
        for one in explain(kind.error, ()):
            message = f"has a member whose name {one['message']}: {kind.error.instance[:MAX_NAME]}"
            yield fault(at, message, one["constraint"])
    else:
        rule = last if last in KEYWORDS else rule
        words = WORDS.get(rule) or WORDS.get(kind.name)
        message = words(kind) if words else "is not valid"
        yield told(fault(at, message, rule))


def _alternatives(error: Any, where: Path, secret: Callable[[Path], bool]) -> Iterator[Fault]:
    """Yields the faults of the alternative that was probably meant; if that is unclear, one fault."""
    at, rule = [*where, *error.instance_path], error.kind.name
    if isinstance(error.kind, Kind.OneOfMultipleValid):
        yield fault(at, "must fit exactly one of the alternatives, but fits several", rule)
        return
    branches = error.kind.context
    fitting = [branch for branch in branches if not any(_is_other_type(one, error) for one in branch)]
    if not fitting:
        other = (one for branch in branches for one in branch if _is_other_type(one, error))
        names = dict.fromkeys(name for one in other for name in one.kind.types)
        yield fault(at, "must be " + _types(list(names)), rule)
        return
    ranks = [_distance(branch, error) for branch in fitting]
    best = [branch for branch, rank in zip(fitting, ranks, strict=True) if rank == min(ranks)]
    if len(best) == 1:
        for inner in _without_consequences(best[0]):
            yield from explain(inner, where, secret)
        return
    message = "must fit one of the alternatives"
    if len(best) <= ALTERNATIVES:
        message += ": " + "; or ".join(_brief(branch, error.instance_path) for branch in best)
    yield fault(at, message, rule)


def _is_other_type(fault: Any, error: Any) -> bool:
    return bool(fault.kind.name == "type" and fault.instance_path == error.instance_path)


def _distance(branch: Sequence[Any], error: Any) -> tuple[int, int]:
    """Returns how far a value is from an alternative: first by the names and constants of its own
    members, which distinguish alternatives, then by all errors.
    """
    level = len(error.instance_path)
    telling = [
        fault
        for fault in branch
        if len(fault.instance_path) == level
        or (len(fault.instance_path) == level + 1 and fault.kind.name in ("const", "enum"))
    ]
    return len(telling), len(branch)


def _brief(branch: Sequence[Any], here: Path) -> str:
    left = list(_without_consequences(branch))[:2]
    found = [fault for error in left for fault in explain(error, ["body"])][:2]
    fields = [fault["field"].removeprefix(path(["body", *here])).lstrip(".") for fault in found]
    return " and ".join(
        f"{field} {fault['message']}".lstrip() for field, fault in zip(fields, found, strict=True)
    )
