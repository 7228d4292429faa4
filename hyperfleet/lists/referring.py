"""The conditions of lists that ask who refers to what."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from hyperfleet.errors import bad_parameter
from hyperfleet.kinds import KINDS, RESOURCES, known_id
from hyperfleet.lists import columns
from hyperfleet.lists.columns import Bind
from hyperfleet.nearest import nearest

# By the pair with created_time the planner reads the references in the order of the list.
SOURCES = """(({table}.created_time, {table}.id) IN (
    SELECT reference.created_time, reference.source_id FROM resource_references AS reference
    WHERE reference.source_kind IN ({types}) {more}))"""


def asked(kind: str, query: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The condition that the parameters ``ref_type`` and ``ref_target_id`` ask for, and its values; it
    is empty where they are not given. Raises Problem for a type that the kind does not have.
    """
    type_, targets = _wanted(kind, query)
    values, bind = columns.collector("r")
    given = type_ is not None or targets is not None
    return sources(kind, type_, targets, bind) if given else "", values


def held(kind: str, query: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The same as :func:`asked`, read off rows that are found by their ids."""
    type_, targets = _wanted(kind, query)
    values, bind = columns.collector("r")
    table = KINDS[kind].table
    if targets is None:
        any_ = "" if type_ is None else f"({table}.refs -> {bind(type_)}::text IS NOT NULL)"
        return any_, values
    types = columns.references(kind) if type_ is None else [type_]
    parts = [among(table, one, targets, bind) for one in types if targets]
    return f"({' OR '.join(parts) or 'FALSE'})", values


def _wanted(kind: str, query: Mapping[str, Any]) -> tuple[str | None, list[UUID] | None]:
    """The type, and the ids of what is referred to; None: any. Raises Problem."""
    type_, target = query.get("ref_type"), query.get("ref_target_id")
    if type_ is not None and type_ not in (known := columns.references(kind)):
        near = nearest(type_, known)
        meant = f"did you mean {near}?" if near else f"expected one of {', '.join(known)}"
        here = KINDS[kind].noun
        message = f"must be a type of reference; {meant}" if known else f"a {here} refers to nothing"
        raise bad_parameter("ref_type", message, type_)
    return type_, None if target is None else ids([target])


def ids(texts: Iterable[str]) -> list[UUID]:
    """Those of some texts that are ids, as they are here."""
    return [UUID(id_) for id_ in map(known_id, texts) if id_]


def sources(kind: str, type_: str | None, targets: Sequence[UUID] | None, bind: Bind) -> str:
    """The condition that a row has a reference, found by an index; None: of any type, to anything.

    :param bind: keeps the values
    """
    if targets == []:
        return "FALSE"
    more = f" AND reference.ref_type = {bind(type_)}::text" if type_ is not None else ""
    if targets is not None and len(targets) == 1:
        # An index gives the rows with one value in order, and those with several not.
        more += f" AND reference.target_id = {bind(targets[0])}::uuid"
    elif targets is not None:
        more += f" AND reference.target_id = ANY({bind([*targets])}::uuid[])"
    of = KINDS[kind]
    among = [name for name in of.among or (kind,) if RESOURCES[name].references]
    types = ", ".join(f"'{name}'" for name in among)
    return SOURCES.format(table=of.table, types=types, more=more) if among else "FALSE"


def among(table: str, type_: str, targets: Sequence[UUID], bind: Bind) -> str:
    """The condition that a row has one of these references of a type, read off the row."""
    wanted = [json.dumps({type_: [{"id": str(target)}]}) for target in targets]
    return f"({table}.refs @> ANY({bind(wanted)}::jsonb[]))"
