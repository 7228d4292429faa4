"""What a kind of thing is, once: its names, where it is kept and found, and what it belongs to.

Whatever differs between kinds is in these tables, so that a new kind is one entry.
"""

import functools
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

# Where the API lies; all addresses that answers hold begin with it.
BASE = "/api/hyperfleet/v1"
# An id, as it is written in addresses and texts.
ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
# An id that the original of December 2025 has made, a KSUID in base 32; and the namespace of what it
# becomes here (RFC 9562, version 5).
OLD_ID = re.compile(r"[0-9a-v]{32}")
OLD_IDS = uuid.UUID("6f1f0c5e-6d3c-5f2b-9a55-2f3c1c1d7e0a")
# The name of an adapter, as the contract has it.
ADAPTER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
NO_ADAPTER = (
    "is not a name that an adapter can have: at most 128 letters, digits, '.', '_' and '-', with a "
    "letter or a digit at both ends."
)


@dataclass(frozen=True)
class Reference:
    """What resources of a kind may refer to.

    :param type: what the references are called
    :param target: the kind of what they lead to
    :param least: how many there are of a resource, and ``most``
    """

    type: str
    target: str
    least: int = 0
    most: int = 1000


@dataclass(frozen=True)
class Kind:
    """A kind.

    :param name: as the member ``kind`` has it, and the contract's schema is called
    :param noun: what messages call one of it
    :param segment: what its collections are called in paths
    :param table: where it is kept
    :param identity: the column that tells the items of a list apart
    :param row: the condition that finds the one row of a list which an identity names
    :param order: what a list is ordered by that nobody orders otherwise, in descending order
    :param parent: the kind that it belongs to, whose id is its ``owner_id``
    :param spec: the provider's schema of its spec
    :param shared: whether its table holds other kinds too
    :param restrict: whether what it belongs to cannot be deleted as long as there is one
    :param address: SQL, the address of a row
    :param among: the kinds of its rows, where these are several
    :param needs_schema: whether nothing is served without the provider's schema of its spec
    :param names_schema: whether the provider's document, where there is one, must have that schema
    :param shortest: characters of a name, and ``longest``
    :param references: what its resources may refer to
    :param barred: the fields that no search may name, with what is in them
    """

    name: str
    noun: str
    segment: str
    table: LiteralString
    identity: LiteralString = "id"
    row: LiteralString = "item.id = page.identity"
    order: str = "created_time"
    parent: str | None = None
    spec: str = ""
    shared: bool = False
    restrict: bool = False
    address: LiteralString = "href"
    among: tuple[str, ...] = ()
    needs_schema: bool = False
    names_schema: bool = False
    shortest: int = 1
    longest: int = 63
    references: tuple[Reference, ...] = ()
    barred: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What paths and the contract call the id of one: ``cluster_id``."""
        return f"{self.name.lower()}_id"

    @property
    def types(self) -> LiteralString:
        """SQL, the kinds of its rows, with commas between."""
        return quoted(self.among or (self.name,))

    @property
    def only(self) -> LiteralString:
        """The condition, after others, that a row of its table is of this kind."""
        return ONLY.format(types=self.types) if self.shared or self.among else ""

    @property
    def document(self) -> LiteralString:
        """SQL, what is shown of a row."""
        refer = self.references or any(RESOURCES[name].references for name in self.among)
        return REFERRING if refer else "document"

    @property
    def counted(self) -> LiteralString:
        """SQL, what its rows are counted as, with commas between."""
        if self.among:
            return ", ".join(RESOURCES[name].counted for name in self.among)
        return QUOTED.format(text=f"{self.table}/{self.name}" if self.shared else self.table)


# What a kind may be called, and its collection: both become part of statements and paths.
NAME = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
SEGMENT = re.compile(r"[a-z][a-z0-9-]{0,62}")
QUOTED: LiteralString = "'{text}'"
ONLY: LiteralString = "AND kind IN ({types})"
REFERRING: LiteralString = """(CASE WHEN refs IS NULL THEN document
    ELSE left(document, -1) || ',"references":' || refs::text || '}' END)"""
# What lists of resources of all kinds are of.
ALL = "Resource"


def quoted(names: Iterable[str]) -> LiteralString:
    """SQL, the names of kinds, with commas between."""
    return ", ".join(QUOTED.format(text=name) for name in names)


# Those that are there without being declared.
NATIVE: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="Cluster",
            noun="cluster",
            segment="clusters",
            table="clusters",
            address="'/api/hyperfleet/v1/clusters/' || id::text",
            spec="ClusterSpec",
        ),
        Kind(
            name="NodePool",
            noun="node pool",
            segment="nodepools",
            table="node_pools",
            address="'/api/hyperfleet/v1/clusters/' || owner_id::text || '/nodepools/' || id::text",
            parent="Cluster",
            spec="NodePoolSpec",
        ),
    )
}


# What people want, and adapters report on: each with labels, a spec and a status. As :func:`declare`
# fills it, like the two others that change.
RESOURCES: dict[str, Kind] = {}


def above(kind: str) -> list[Kind]:
    """What resources of a kind belong to, and what that belongs to: the root first."""
    parent = RESOURCES[kind].parent
    return [*above(parent), RESOURCES[parent]] if parent else []


def below(kind: str) -> list[Kind]:
    """The kinds that belong to a kind, directly or not: each after its parent, in the order of all."""
    return [one for one in RESOURCES.values() if RESOURCES[kind] in above(one.name)]


def referrers(*kinds: str) -> list[Kind]:
    """The kinds of which resources may refer to one of these."""
    return [one for one in RESOURCES.values() if any(ref.target in kinds for ref in one.references)]


def owned(kind: str, root: str, owners: LiteralString) -> LiteralString:
    """The condition for the rows of a kind below some of another kind, directly or not.

    :param owners: SQL, an array of the ids of those
    """
    parent, only = RESOURCES[kind].parent, RESOURCES[kind].only
    if parent is None or parent == root:
        return OWNED.format(owners=owners, only=only)
    inner = owned(parent, root, owners)
    return BETWEEN.format(table=RESOURCES[parent].table, owned=inner, only=only)


OWNED: LiteralString = "owner_id = ANY({owners}) {only}"
BETWEEN: LiteralString = "owner_id IN (SELECT id FROM {table} WHERE {owned}) {only}"
UNDER: LiteralString = "AND (%(owner_id)s::uuid IS NULL OR owner_id = %(owner_id)s)"


# What a caller sees who is of a tenant; where tenants are not told apart, no statement has it.
SCOPE: LiteralString = "AND tenancy @> %(tenancy)s"


class Statements(dict[str, LiteralString]):
    """A statement for each kind of resource, made when it is first asked for.

    :param scoped: for callers who see the resources of their tenant alone
    """

    def __init__(self, statement: LiteralString, *, scoped: bool = False) -> None:
        self.statement = statement
        self.is_scoped = scoped

    @functools.cached_property
    def scoped(self) -> "Statements":
        """The same statements for callers of a tenant."""
        return Statements(self.statement, scoped=True)

    def of(self, kind: str, key: Mapping[str, Any]) -> LiteralString:
        """The statement of a kind, for whoever a key says: it has a ``tenancy`` for one of a tenant."""
        return (self.scoped if "tenancy" in key else self)[kind]

    def __missing__(self, kind: str) -> LiteralString:
        """Makes the statement. Raises KeyError for what is no kind of resource."""
        of = RESOURCES[kind]
        made = self[kind] = self.statement.format(
            table=of.table,
            kind=of.name,
            owner="owner_id" if of.parent else "NULL",
            under=UNDER if of.parent else "",
            only=of.only,
            address=of.address,
            document=of.document,
            scope=SCOPE if self.is_scoped else "",
            tenancy=", tenancy" if self.is_scoped else "",
        )
        return made


def both(statement: LiteralString) -> Statements:
    """A statement for each kind of resource: ``{table}`` and ``{kind}`` are its names, ``{owner}`` is
    the id of what it belongs to, ``{under}`` the condition that this is the owner that the path names,
    if it has and names one, ``{only}`` the one that a row of the table is of this kind, ``{address}`` a
    row's, and ``{document}`` what is shown of it. For callers of a tenant,
    ``{scope}`` is the condition that they see a row, and ``{tenancy}`` one more column.
    """
    return Statements(statement)


def id_here(old: str) -> str:
    """The id that a resource of the original has here, if it can be here."""
    return old.lower() if ID.fullmatch(old) else str(uuid.uuid5(OLD_IDS, old))


def known_id(text: str) -> str:
    """The id that a text stands for here, one of the original too; empty where it is none."""
    return id_here(text) if ID.fullmatch(text) or OLD_ID.fullmatch(text) else ""


# Of what there are lists beside.
LISTED: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="AdapterStatus",
            noun="report",
            segment="statuses",
            table="adapter_statuses",
            identity="adapter",
            row="item.owner_type = %(kind)s AND item.owner_id = %(id)s AND item.adapter = page.identity",
        ),
        Kind(
            name="ResourceGeneration",
            noun="generation",
            segment="history",
            table="all_generations",
            identity="generation",
            row="item.owner_id = %(id)s AND item.generation = page.identity",
            order="generation",
        ),
        Kind(
            name="Transition",
            noun="transition",
            segment="transitions",
            table="all_transitions",
            identity="number",
            row="item.owner_id = %(id)s AND item.number = page.identity",
            order="number",
        ),
        Kind(
            name="AuditRecord",
            noun="audit record",
            segment="audit",
            table="audit_records",
            identity="record",
            row="item.record = page.identity",
            order="record",
        ),
    )
}

KINDS: dict[str, Kind] = {}


def declare(kinds: Iterable[Kind]) -> None:
    """Makes these kinds known, beside or in place of the native ones, and no others.

    Called once, before anything is served or read. Raises ValueError for a name that statements must not
    have.
    """
    RESOURCES.clear()
    RESOURCES.update(NATIVE)
    for kind in kinds:
        if not NAME.fullmatch(kind.name):
            raise ValueError(kind.name)
        RESOURCES[kind.name] = kind
    KINDS.clear()
    KINDS.update({**RESOURCES, **LISTED})
    KINDS[ALL] = Kind(
        name=ALL, noun="resource", segment="resources", table="all_resources", among=tuple(RESOURCES)
    )


declare(())
