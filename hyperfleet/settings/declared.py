"""Turns the list ``entities`` into the kinds of the service."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyperfleet.errors import ConfigurationError
from hyperfleet.kinds import NATIVE, Kind
from hyperfleet.nearest import question
from hyperfleet.settings.entities import Entity

# Segments that the API uses already where a plural would be: at the top, and below a resource.
TAKEN = (
    *("resources", "changes", "audit", "errors", "compatibility", "openapi"),
    *("statuses", "adapter-statuses", "force-delete", "history", "diff", "rollback", "transitions"),
)


def kinds_of(entities: Iterable[Entity]) -> list[Kind]:
    """Returns all kinds, native ones included. Each follows its parent; otherwise native ones come
    first, then the others by name. This is the order of locks, on which replicas must agree even if
    their lists are in another order, or one is longer.

    Raises ConfigurationError, with a sentence for the operator, for the first mistake.
    """
    found = dict(NATIVE)
    for entity in entities:
        found[entity.kind] = _kind(entity)
    _check_names([*found.values()])
    _check_references(found)
    ordered: list[Kind] = []
    waiting = [*found.values()]
    while waiting:
        ready = [kind for kind in waiting if kind.parent in (None, *(one.name for one in ordered))]
        if not ready:
            circle = " and ".join(kind.name for kind in waiting)
            raise ConfigurationError(f"entities: {circle} belong to each other in a circle.")
        ordered += sorted(ready, key=lambda kind: (kind.name not in NATIVE, kind.name))
        waiting = [kind for kind in waiting if kind not in ready]
    return ordered


def _kind(entity: Entity) -> Kind:
    own: dict[str, Any] = {
        "shortest": entity.name_min_len,
        "longest": entity.name_max_len,
        "needs_schema": entity.require_spec_schema,
        "names_schema": entity.spec_schema_name is not None or None,
        "references": entity.references or None,
        "barred": entity.search_disallowed_fields,
    }
    if entity.on_parent_delete:
        own["restrict"] = entity.on_parent_delete == "restrict"
    given = {name: value for name, value in own.items() if value is not None}
    kind = NATIVE.get(entity.kind) or _new(entity)
    if entity.on_parent_delete and not kind.parent:
        raise ConfigurationError(
            f"entities: {kind.name}.on_parent_delete is given for a kind without a parent."
        )
    kind = replace(kind, **given)
    if kind.shortest > kind.longest:
        raise ConfigurationError(
            f"entities: names of a {kind.name} have at least {kind.shortest} characters and at most "
            f"{kind.longest}, so that no name is possible."
        )
    return kind


def _new(entity: Entity) -> Kind:
    if entity.plural is None:
        hint = question(entity.kind, NATIVE)
        raise ConfigurationError(f"entities: {entity.kind} lacks a plural.{hint}")
    return Kind(
        name=entity.kind,
        noun=re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", entity.kind).lower(),
        segment=entity.plural,
        table="resources",
        parent=entity.parent_kind,
        spec=entity.spec_schema_name or f"{entity.kind}Spec",
        shared=True,
        # The default, as in the original.
        restrict=entity.parent_kind is not None,
    )


def _check_names(kinds: Sequence[Kind]) -> None:
    plurals: dict[str, str] = {}
    lower: dict[str, str] = {}
    names = {kind.name for kind in kinds}
    for kind in kinds:
        if kind.segment in TAKEN:
            raise ConfigurationError(
                f"entities: {kind.name}.plural cannot be {kind.segment!r}, which the API already uses."
            )
        other = plurals.setdefault(kind.segment, kind.name)
        if other != kind.name:
            raise ConfigurationError(
                f"entities: {other} and {kind.name} have the same plural, {kind.segment!r}."
            )
        other = lower.setdefault(kind.name.lower(), kind.name)
        if other != kind.name:
            raise ConfigurationError(f"entities: {other} and {kind.name} differ only in capitalization.")
        if kind.parent is not None and kind.parent not in names:
            raise ConfigurationError(
                f"entities: {kind.name}.parent_kind is {kind.parent}, which is not a known kind."
            )


def _check_references(kinds: Mapping[str, Kind]) -> None:
    # What must exist before a resource can: its owner, and the targets of its required references.
    needs: dict[str, set[str]] = {}
    for kind in kinds.values():
        for ref in kind.references:
            if ref.target not in kinds:
                raise ConfigurationError(
                    f"entities: {kind.name}.references: {ref.type} leads to {ref.target}, which is "
                    "not a known kind."
                )
        needs[kind.name] = {ref.target for ref in kind.references if ref.least}
        needs[kind.name] |= {kind.parent} if kind.parent else set()
    while ready := [name for name, needed in needs.items() if not needed & needs.keys()]:
        for name in ready:
            del needs[name]
    circle = [name for name in needs if any(ref.least for ref in kinds[name].references)]
    if circle:
        raise ConfigurationError(
            f"entities: {' and '.join(circle)} require references to resources that cannot exist "
            "before them, so none of them can ever be created."
        )
