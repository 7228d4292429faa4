"""Conditions for lists of resources that refer to given resources."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from hyperfleet.errors import bad_parameter
from hyperfleet.kinds import KINDS, RESOURCES, known_id
from hyperfleet.lists import columns
from hyperfleet.lists.columns import Bind
from hyperfleet.nearest import expected

# With created_time in the pair, the planner can read the references in the order of the list.
SOURCES = """(({table}.created_time, {table}.id) IN (
    SELECT reference.created_time, reference.source_id FROM resource_references AS reference
    WHERE reference.source_kind IN ({types}) {more}))"""


def asked(kind: str, query: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the condition, if any, of ``ref_type`` and ``ref_target_id``, and its values.

    Raises Problem if the kind has no such type.
    """
    type_, targets = _wanted(kind, query)
    values, bind = columns.collector("r")
    given = type_ is not None or targets is not None
    return sources(kind, type_, targets, bind) if given else "", values


def held(kind: str, query: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Does the same as :func:`asked`, but reads the rows' references, for rows found by id."""
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
    """Returns the type and the ids of the targets; None means any. Raises Problem."""
    type_, target = query.get("ref_type"), query.get("ref_target_id")
    if type_ is not None and type_ not in (known := columns.references(kind)):
        message = f"must be a type of reference; {expected(type_, known)}"
        if not known:
            message = f"a {KINDS[kind].noun} refers to nothing"
        raise bad_parameter("ref_type", message, type_)
    return type_, None if target is None else ids([target])


def ids(texts: Iterable[str]) -> list[UUID]:
    """Returns those texts that are ids, as UUIDs."""
    return [UUID(id_) for id_ in map(known_id, texts) if id_]


def sources(kind: str, type_: str | None, targets: Sequence[UUID] | None, bind: Bind) -> str:
    """Returns the condition, for an index, that a row has a reference.

    :param targets: the ids that it may lead to; None means any, also for ``type_``
    :param bind: adds a value to the statement
    """
    if targets == []:
        return "FALSE"
    more = f" AND reference.ref_type = {bind(type_)}::text" if type_ is not None else ""
    if targets is not None and len(targets) == 1:
        # An index yields rows in order for one value, but not for several.
        more += f" AND reference.target_id = {bind(targets[0])}::uuid"
    elif targets is not None:
        more += f" AND reference.target_id = ANY({bind([*targets])}::uuid[])"
    of = KINDS[kind]
    among = [name for name in of.among or (kind,) if RESOURCES[name].references]
    types = ", ".join(f"'{name}'" for name in among)
    return SOURCES.format(table=of.table, types=types, more=more) if among else "FALSE"


def among(table: str, type_: str, targets: Sequence[UUID], bind: Bind) -> str:
    """Returns the condition that a row has one of these references of a type, read from the row."""
    wanted = [json.dumps({type_: [{"id": str(target)}]}) for target in targets]
    return f"({table}.refs @> ANY({bind(wanted)}::jsonb[]))"
