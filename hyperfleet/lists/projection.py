"""Which members of a resource a response shows: those named by ``fields``, or a client's default."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from hyperfleet.contract import document
from hyperfleet.errors import ConfigurationError, bad_parameter
from hyperfleet.kinds import ALL, KINDS, RESOURCES
from hyperfleet.lists import columns
from hyperfleet.nearest import expected

MAX_MEMBERS = 100
MAX_DEPTH = 16
# A trailing .* asks for the whole member: status.* means status.
MEMBER = re.compile(rf"\s*({columns.NAME})(\.\*)?\s*")
MANY = "members separated by commas, such as name,status.phase"


@functools.cache
def members(kind: str) -> dict[str, dict[str, Any]]:
    """Returns the members that a response may show of a kind, from the contract's schema."""
    return document.members(kind)


class ProjectionError(columns.Wrong):
    """A projection that is malformed or names an unknown member."""


# The wanted members of an object, and the wanted part of each; None means all of it.
Projection: TypeAlias = dict[str, "Projection | None"]


def project(names: str, kind: str) -> Projection:
    """Returns the members that a list of dotted paths such as ``name,status.phase`` asks for.

    The member that identifies an item is always among them: the id, or a report's adapter. Raises
    ProjectionError if the list is malformed or the kind lacks a member.
    """
    wanted: Projection = {KINDS[kind].identity: None}
    for count, match in enumerate(columns.separated(names, MEMBER, ProjectionError, MANY), 1):
        first, *rest = columns.segments(match[1])
        _check(kind, [first, *rest, "*"] if match[2] else [first, *rest])
        if count > MAX_MEMBERS or len(rest) > MAX_DEPTH:
            raise ProjectionError(f"at most {MAX_MEMBERS} members, at most {MAX_DEPTH} deep")
        # Dots in a label's key are part of it, since labels are flat.
        _want(wanted, [first, ".".join(rest)] if first == "labels" and rest else [first, *rest])
    return wanted


def _check(kind: str, path: list[str]) -> None:
    """Raises ProjectionError for a member unknown to the contract, also within the items of lists."""
    known = members(kind)
    for depth, name in enumerate(path):
        if name == "*":
            return
        if name not in known:
            unknown = ".".join(path[: depth + 1])
            raise ProjectionError(f"unknown member {unknown}; {expected(name, known)}")
        inner = _inner(known[name])
        if inner is None:
            return
        if not inner and depth + 1 < len(path):
            told = f"{'.'.join(path[: depth + 1])} has no members"
            raise ProjectionError(f"unknown member {'.'.join(path)}; {told}")
        known = inner


def _inner(member: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Returns a member's (or its items') members: {} for a scalar, None if the contract is silent."""
    below = document.followed(member)
    below = document.followed(below.get("items", below))
    return below.get("properties") if below.get("type", "object") == "object" else {}


def _want(wanted: Projection, path: list[str]) -> None:
    for name in path[:-1]:
        below = wanted.setdefault(name, {})
        if below is None:
            return
        wanted = below
    wanted[path[-1]] = None


def apply(projection: Projection, document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document with only the projection's members, in the document's order.

    A path goes through lists into each of their items. Members that the document lacks are left out.
    """
    shown = {}
    for name, value in document.items():
        if name not in projection:
            continue
        below = projection[name]
        if below is None:
            shown[name] = value
        elif isinstance(value, dict):
            shown[name] = apply(below, value)
        elif isinstance(value, list):
            shown[name] = [apply(below, item) for item in value if isinstance(item, dict)]
    return shown


class Shape(NamedTuple):
    """What a response shows of its resources.

    :param projection: the members; None means all
    :param agent: the beginning of the User-Agent whose default this is; empty if the request chose it
    """

    projection: Projection | None = None
    agent: str = ""

    def text(self, document: bytes) -> bytes:
        """Returns the JSON text of a resource in this shape."""
        if self.projection is None:
            return document
        return json.dumps(apply(self.projection, json.loads(document))).encode()

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell a client that its fields were limited by default."""
        return {"X-Default-Fields": self.agent, "Vary": "User-Agent"} if self.agent else {}


# For each beginning of a User-Agent, the members of each kind.
Defaults: TypeAlias = list[tuple[str, dict[str, Projection]]]


def defaults(entries: Sequence[str]) -> Defaults:
    """Parses the setting ``--default-fields``: entries such as ``curl/7=name,status.phase``.

    A member applies to those resources and reports that have it; anything else that is shown of a
    resource, such as its history, is shown whole. Raises ConfigurationError if an entry is malformed.
    """
    found: Defaults = []
    kinds = [KINDS[name] for name in (*RESOURCES, ALL, "AdapterStatus")]
    for entry in entries:
        agent, sign, names = entry.partition("=")
        if not sign or not agent.strip() or not names.strip():
            raise ConfigurationError(
                f"--default-fields: {entry[:100]!r} is not of the form AGENT=FIELDS."
            )
        given = [name.strip() for name in names.split(",")]
        strange = [name for name in given if not any(_has(kind.name, name) for kind in kinds)]
        if strange:
            raise ConfigurationError(
                f"--default-fields: {strange[0]!r} of {agent.strip()} is not a member of any resource."
            )
        by_kind: dict[str, Projection] = {}
        try:
            for kind in kinds:
                own = [name for name in given if _has(kind.name, name)]
                by_kind[kind.name] = project(",".join([*own, kind.identity]), kind.name)
        except ProjectionError as error:
            raise ConfigurationError(f"--default-fields: {agent.strip()}: {error.message}") from None
        found.append((agent.strip(), by_kind))
    return found


def _has(kind: str, name: str) -> bool:
    """Returns whether a kind has a path's beginning; a member of another kind may be nested deeper."""
    first, deeper, _ = name.partition(".")
    known = members(kind)
    return first in known and not (deeper and _inner(known[first]) == {})


def shape(names: str, agent: str, kind: str, defaults: Defaults) -> Shape:
    """Returns the shape that a request asks for with ``fields``, or its client's default.

    :param names: the value of ``fields``, or empty
    :param agent: the value of ``User-Agent``
    Raises Problem if ``fields`` cannot be understood.
    """
    names = columns.given(names)
    if names == "*":
        return Shape()
    if "*" in names.split(","):
        raise bad_parameter("fields", "* asks for everything and must stand alone", names)
    if names:
        try:
            return Shape(project(names, kind))
        except ProjectionError as error:
            raise bad_parameter("fields", error.message, names) from None
    for start, by_kind in defaults:
        if agent.startswith(start) and kind in by_kind:
            return Shape(by_kind[kind], start)
    return Shape()
