"""The fields that a search, an order or a projection may name, and where each is stored.

Names come from callers, SQL only from the tables here; anything open-ended, such as a label's key, is
bound as a value.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hyperfleet.contract import document
from hyperfleet.errors import ConfigurationError
from hyperfleet.kinds import ALL, KINDS, LISTED, RESOURCES
from hyperfleet.nearest import nearest, question
from hyperfleet.storable import FORBIDDEN

# A moment is a time stored as text in a JSON document; any is a JSON value of any type; a reference is
# compared by the id that it leads to.
Type: TypeAlias = Literal["text", "uuid", "number", "time", "moment", "any", "reference"]

# Adds a value to those of the statement and returns the placeholder for it.
Bind: TypeAlias = Callable[[Any], str]

# Segments separated by dots; a quoted one may hold any character, with its quote doubled.
NAME = r"""[A-Za-z_][\w-]*(?:\.(?:"(?:[^"]|"")*"|'(?:[^']|'')*'|[\w\/-]+))*"""
# An empty item of a comma-separated text, as after a comma at the end.
EMPTY = re.compile(r"\s*(?=,|\Z)")
SEGMENT = re.compile(r""""(?:[^"]|"")*"|'(?:[^']|'')*'|[^.]+""")


def _scalars(schema: str, time: Type = "time") -> dict[str, Type]:
    """Returns the scalar members of an object and their types, from the contract's schema."""
    types: dict[tuple[str, str], Type] = {
        ("string", ""): "text",
        ("string", "date-time"): time,
        ("integer", "int32"): "number",
        ("integer", "int64"): "number",
    }
    keys = {
        name: (member.get("type", ""), member.get("format", ""))
        for name, member in document.members(schema).items()
    }
    return {name: types[key] for name, key in keys.items() if key in types}


@functools.cache
def columns(kind: str) -> dict[str, Type]:
    """Returns the columns of a kind's table that may be named (not kind and href), with their types."""
    made = () if kind in LISTED else ("kind", "href")
    own: dict[str, Type] = {
        name: "uuid" if name == "id" else type_
        for name, type_ in _scalars(kind).items()
        if name not in made
    }
    more: dict[str, Type] = {"kind": "text"} if kind == ALL else {}
    return {**own, **more, "owner_id": "uuid"} if KINDS[kind].parent or kind == ALL else own


@functools.cache
def nullable(kind: str) -> set[str]:
    """Returns the columns that may be null: optional members, and owner_id in lists of all kinds."""
    found = document.members(kind).keys() - document.required(kind)
    return found | {"owner_id"} if kind == ALL else found


def references(kind: str) -> list[str]:
    """Returns the types of references that items of a kind may have."""
    of = KINDS[kind]
    some = [one for name in of.among for one in RESOURCES[name].references] or of.references
    return list(dict.fromkeys(one.type for one in some))


STATUS = _scalars("ClusterStatus", "moment")
CONDITION = {n: t for n, t in _scalars("ResourceCondition", "moment").items() if n != "type"}
# Two names for one condition; the aggregation keeps them equal, so one set of indexes serves both.
SAME = {"Ready": "Reconciled", "Available": "LastKnownReconciled"}
SAME_MEMBERS = {"status", "last_updated_time", "last_transition_time"}
# The values that migrations/0003.search.sql keeps in columns with an index of their own.
KEPT = {
    ("Reconciled", "status"): "reconciled",
    ("Reconciled", "last_updated_time"): "reconciled_time",
    ("LastKnownReconciled", "status"): "available",
}


EXAMPLE = "use a field such as name, labels.KEY, spec.PATH or status.conditions.TYPE"


class Wrong(ValueError):
    """Some text in a request cannot be understood; ``message`` says why."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class UnknownField(ValueError):
    """The kind has no such field; the message suggests the nearest one or gives an example."""


@dataclass(frozen=True)
class Field:
    """Where a field is stored.

    :param sql: an expression over the columns of the kind's table, complete with its parentheses; for
        type ``any`` it yields jsonb
    :param label: the placeholder of a label's key, or the type of a reference
    :param dimension: the placeholder of a key of the tenancy
    """

    name: str
    type: Type
    sql: str
    nullable: bool
    label: str = ""
    dimension: str = ""


def collector(prefix: str) -> tuple[dict[str, Any], Bind]:
    """Returns an empty set of bound values, and the function that adds one to it.

    Values are named ``prefix0``, ``prefix1`` and so on, so that they do not clash with the caller's.
    """
    values: dict[str, Any] = {}

    def bind(value: Any) -> str:
        name = f"{prefix}{len(values)}"
        values[name] = value
        return f"%({name})s"

    return values, bind


def segments(name: str) -> list[str]:
    """Returns the parts of a name that matches :data:`NAME`, without their quotes."""
    return [
        part[1:-1].replace(part[0] * 2, part[0]) if part[0] in "\"'" else part
        for part in SEGMENT.findall(name)
    ]


def separated(
    text: str, one: re.Pattern[str], error: type[Wrong], expected: str
) -> Iterator[re.Match[str]]:
    """Yields a match of ``one`` for each item of a comma-separated text; empty items are left out.

    Raises ``error``, which says that ``expected`` was expected, if an item does not match, or if there
    is none.
    """
    position, whole, items = 0, not FORBIDDEN.search(text), 0
    while position <= len(text):
        empty = EMPTY.match(text, position)
        match = empty or (one.match(text, position) if whole else None)
        if not match or text[match.end() : match.end() + 1] not in ("", ","):
            raise error(f"expected {expected}, at character {position + 1}")
        if not empty:
            items += 1
            yield match
        position = match.end() + 1
    if not items:
        raise error(f"expected {expected}, at character 1")


def given(text: str) -> str:
    """Returns a comma-separated text without the blanks around it; empty if it has no items."""
    return text.strip() if text.replace(",", " ").strip() else ""


def _path(name: str) -> list[str]:
    """Returns the parts of a name in the canonical form for its field."""
    parts = segments(name)
    if parts[0] in ("labels", "tenancy"):
        # Dots in an unquoted key are part of it, since labels and tenancies are flat.
        return [parts[0], ".".join(parts[1:])] if parts[1:] else parts
    return ["owner_id"] if parts == ["owner_references", "id"] else parts


def _sought(name: str) -> list[str]:
    """Returns the parts of a name in the canonical form of all names that lead to the same value."""
    match _path(name):
        case ["status", "conditions", type_, *rest]:
            return ["status", "conditions", SAME.get(type_, type_), *rest]
        case ["owner_references"]:
            # Their id is all that can be searched for.
            return ["owner_id"]
        case parts:
            return parts


def barred(name: str, kind: str) -> bool:
    """Returns whether the operator bars a field from searches of a kind (of any, for all together)."""
    parts = _sought(name)
    if parts[:2] == ["status", "conditions"] and len(parts) == 3:
        # The default member of a condition.
        parts.append("status")
    all_ = [one for of in KINDS[kind].among for one in RESOURCES[of].barred] or KINDS[kind].barred
    return any(parts[: len(one)] == one for one in map(_sought, all_))


def check_barred() -> None:
    """Raises ConfigurationError if a field that an operator bars from searches does not exist."""
    status = {f"status.{name}" for name in document.members("ClusterStatus")}
    for kind, of in RESOURCES.items():
        plain = columns(kind).keys()
        known = {*document.members(kind), *plain, "tenancy", *status}
        for name in of.barred:
            first, *rest = segments(name) if re.fullmatch(NAME, name) else [""]
            if first == "status" and rest:
                first = f"status.{rest[0]}"
            if first not in known or (rest and first in plain):
                raise ConfigurationError(
                    f"entities: {kind}.search_disallowed_fields has {name[:200]!r}, a field that no "
                    f"{of.noun} has.{question(name, known)}"
                )


def names(kind: str) -> list[str]:
    """Returns the fields of a kind in the form in which error messages list them."""
    listed = list(columns(kind))
    if kind not in LISTED:
        if kind != ALL:
            listed.insert(2, "kind")
        if "owner_id" in listed:
            listed.append("owner_references.id")
        listed += ["labels.KEY", "spec.PATH", "tenancy.KEY"]
        listed += [f"references.{type_}" for type_ in references(kind)]
        listed += [f"status.{member}" for member in STATUS]
        listed += ["status.conditions.TYPE", "status.conditions.TYPE.FIELD"]
    return listed


def resolve(name: str, kind: str, bind: Bind) -> Field:
    """Returns the field of that name.

    ``name`` must match :data:`NAME`; values that the field's SQL needs go through ``bind``. Raises
    UnknownField.
    """
    table = KINDS[kind].table
    parts = _path(name)
    if len(parts) == 1 and parts[0] in columns(kind):
        column = parts[0]
        return Field(name, columns(kind)[column], f"{table}.{column}", column in nullable(kind))
    made: Field | None = None
    if kind not in LISTED:
        match parts:
            case ["kind"]:
                return Field(name, "text", f"'{kind}'::text", nullable=False)
            case ["labels" | "tenancy" as column, said]:
                key = bind(said) + "::text"
                own = {"label" if column == "labels" else "dimension": key}
                return Field(name, "text", f"({table}.{column} ->> {key})", nullable=True, **own)
            case ["spec", _, *_]:
                path = bind(parts[1:])
                return Field(name, "any", f"({table}.spec #> {path}::text[])", nullable=True)
            case ["status", member] if member in STATUS:
                return _status(name, table, member)
            case ["references", type_] if type_ in references(kind):
                sql = f"({table}.refs -> {bind(type_)}::text)"
                made = Field(name, "reference", sql, nullable=True, label=type_)
            case ["status", "conditions", type_, *rest] if len(rest) <= 1:
                made = _condition(name, table, type_, rest[0] if rest else "status", bind)
            case ["status", "conditions", _, _, _, *_]:
                raise UnknownField(
                    f"unknown field {name}; put a condition's type that has dots in quotes, as in "
                    'status.conditions."example.com/Synced".reason'
                )
    if made:
        return made
    near = nearest(name, names(kind))
    listed = " or ".join([*columns(kind)][:2])
    example = f"use a field such as {listed}" if kind in LISTED else EXAMPLE
    other = f"did you mean {near}?" if near else example
    raise UnknownField(f"unknown field {name}; {other}")


def _status(name: str, table: str, member: str) -> Field:
    type_ = STATUS[member]
    if member == "phase":
        return Field(name, type_, f"{table}.phase", nullable=True)
    if type_ == "number":
        value = f"""jsonb_path_query_first({table}.status, '$.{member} ? (@.type() == "number")')"""
        return Field(name, type_, f"({value}::numeric)", nullable=True)
    collation = ' COLLATE "C"' if type_ == "moment" else ""
    return Field(name, type_, f"(({table}.status ->> '{member}'){collation})", nullable=True)


def _condition(name: str, table: str, condition: str, member: str, bind: Bind) -> Field:
    if member not in CONDITION:
        raise UnknownField(
            f"unknown field {name}; a condition has {', '.join(CONDITION)}; if {member} belongs to "
            "the condition's type, put the type in quotes"
        )
    type_ = CONDITION[member]
    if member in SAME_MEMBERS:
        condition = SAME.get(condition, condition)
    if (condition, member) in KEPT:
        return Field(name, type_, f"{table}.{KEPT[condition, member]}", nullable=True)
    variables = f", {bind(json.dumps({'type': condition}, ensure_ascii=False))}::jsonb"
    path = f"$.conditions[*] ? (@.type == $type).{member}"
    if type_ == "number":
        path += ' ? (@.type() == "number")'
    value = f"jsonb_path_query_first({table}.status, '{path}'{variables})"
    if type_ == "number":
        return Field(name, type_, f"({value}::numeric)", nullable=True)
    collation = ' COLLATE "C"' if type_ == "moment" else ""
    return Field(name, type_, f"(({value} #>> '{{}}'){collation})", nullable=True)
