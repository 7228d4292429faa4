"""The faults of a value by a schema, in words."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Kind

from hyperfleet.contract import schema
from hyperfleet.contract.schema import KEY_WORDS, PREFIX, RANGE, Path, Validator
from hyperfleet.errors import Fault, with_value
from hyperfleet.nearest import nearest

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
# only the first fault is looked for; and so where its copies may come to more than MAX_COPIED bytes:
# with each wrong name it copies the object that has it. VALUE is what a number counts there, and HOLDER
# what an object or a list does, also an empty one.
MAX_FAULTS = 1000
MAX_PARTS = 10_000
MAX_COPIED = 50_000_000
VALUE = 50
HOLDER = 4 * VALUE
# Of as many unknown members what was meant is looked for, some 10 us for each known one.
HINTED = 50
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


def path(parts: Path) -> str:
    """``["conditions", 2, "status"]`` as ``conditions[2].status``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def fault(at: Path, message: str, rule: str) -> Fault:
    """One thing that is wrong: the path of the value, what it is in words, and the rule's name."""
    return {"field": path(at) or "body", "message": message, "constraint": rule}


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
                # Null for a member is no member.
                yield from new([fault(at, "is required", "required")])
                continue
            yield from new(explain(error, where, secret))
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
    """Schemas, with all that they apply to the same value."""
    waiting, done = list(schemas), list[Mapping[str, Any]]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping) or any(one is other for other in done):
            continue
        done.append(one)
        if one.get("$ref", "").startswith(PREFIX):
            waiting.append(schema.at(text, schema.pointer(one["$ref"])))
        for keyword in ("allOf", "anyOf", "oneOf"):
            waiting += one.get(keyword, ())
        waiting += [one.get(keyword) for keyword in ("if", "then", "else")]
        waiting += one.get("dependentSchemas", {}).values()
    return done


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return schema.get("format") == "password" or schema.get("writeOnly") is True


def _wanted(validator: Validator, at: Path) -> bool:
    """Whether the schemas around a value say that it must be there."""
    around = list(_along(validator.text, at[:-1]))[-1] if at else []
    return any(at[-1] in one.get("required", ()) for one in around)


def _rules(error: Any, validator: Validator) -> Any:
    """The schema whose rule an error is about; for the name of a member, the schema of the object."""
    place = error.schema_path
    if error.kind.name in place:
        place = place[: len(place) - place[::-1].index(error.kind.name)]
    return schema.at(validator.text, place[:-1])


def _errors(compiled: jsonschema_rs.Draft202012Validator, value: Any) -> Iterable[Any]:
    if compiled.is_valid(value):
        return []
    if _parts(value) <= MAX_PARTS and _copies(value)[1] <= MAX_COPIED:
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


def _copies(value: Any) -> tuple[int, int]:
    """About how many bytes a value has, and how many a copy of each object for each of its names."""
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
        near = nearest(name, known if index < HINTED else ())
        meant = f"; did you mean {near}?" if near else ""
        # Cut, as a name may be as long as the body.
        yield fault([*at, name[:MAX_NAME]], f"is not a known member{meant}", rule)


def _known(schema: Any, text: Mapping[str, Any]) -> set[str]:
    """The members that a schema names, itself or in the schemas that it applies to the same value."""
    return {name for one in _applied([schema], text) for name in one.get("properties", {})}


def explain(
    error: Any, where: Path = (), secret: Callable[[Path], bool] = lambda _: False
) -> Iterator[Fault]:
    """The faults that one error of a validator comes to.

    :param where: as in :func:`faults`
    :param secret: whether the value that a path leads to must not be repeated
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
        # A missing member and a superfluous one are named themselves, not the object that they are in.
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
    """The faults of the alternative that was meant, where that can be told, else one sentence."""
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
        for inner in best[0]:
            yield from explain(inner, where, secret)
        return
    message = "must fit one of the alternatives"
    if len(best) <= ALTERNATIVES:
        here = path(error.instance_path)
        message += ": " + "; or ".join(_brief(branch, here) for branch in best)
    yield fault(at, message, rule)


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
