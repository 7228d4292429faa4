"""What a kind is: its names, where it is stored and found, and what it belongs to.

Everything that differs between kinds is in these tables, so that a new kind is one entry.
"""

import functools
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import LiteralString, TypedDict

from psycopg.types.json import Jsonb

# The base path of the API, which every href begins with.
BASE = "/api/hyperfleet/v1"
# An id as it is written in paths and text.
ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
# An id from the original of December 2025, a KSUID in base 32; and the namespace for deriving ids from
# such ids (UUIDv5, RFC 9562).
OLD_ID = re.compile(r"[0-9a-v]{32}")
OLD_IDS = uuid.UUID("6f1f0c5e-6d3c-5f2b-9a55-2f3c1c1d7e0a")
# The name of an adapter, as in the contract.
ADAPTER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
NO_ADAPTER = (
    "is not a name that an adapter can have: at most 128 letters, digits, '.', '_' and '-', with a "
    "letter or a digit at both ends."
)


@dataclass(frozen=True)
class Reference:
    """What resources of a kind may refer to.

    :param type: the name of the references
    :param target: the kind that they refer to
    :param least: how many a resource must have, and ``most`` how many it may have
    """

    type: str
    target: str
    least: int = 0
    most: int = 1000


@dataclass(frozen=True)
class Kind:
    """A kind.

    :param name: its value in the member ``kind``, and the name of its schema in the contract
    :param noun: what messages call one of it
    :param segment: the name of its collections in paths
    :param table: the table that stores it
    :param identity: the column that identifies the items of a list
    :param row: the condition that finds the one row of a list with a given identity
    :param order: the default order of lists, descending
    :param parent: the kind of its owner, whose id is its ``owner_id``
    :param spec: the provider's schema of its spec
    :param shared: whether its table also stores other kinds
    :param restrict: whether an owner cannot be deleted while it has one
    :param address: SQL for the href of a row
    :param among: the kinds of its rows, if there are several
    :param needs_schema: whether nothing is served without the provider's schema of its spec
    :param names_schema: whether the provider's document, if there is one, must contain that schema
    :param shortest: the least number of characters in a name, and ``longest`` the greatest
    :param references: what its resources may refer to
    :param barred: the fields that searches must not name, including all that they contain
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
    def parameter(self) -> str:
        """The name of its id in paths and in the contract: ``cluster_id``."""
        return f"{self.name.lower()}_id"

    @property
    def types(self) -> LiteralString:
        """SQL for the kinds of its rows, separated by commas."""
        return quoted(self.among or (self.name,))

    @property
    def only(self) -> LiteralString:
        """SQL for a further condition: that a row of its table is of this kind."""
        return ONLY.format(types=self.types) if self.shared or self.among else ""

    @property
    def document(self) -> LiteralString:
        """SQL for the JSON text of a row."""
        refer = self.references or any(RESOURCES[name].references for name in self.among)
        return REFERRING if refer else "document"

    @property
    def counted(self) -> LiteralString:
        """SQL for the names that its rows are counted by, separated by commas."""
        if self.among:
            return ", ".join(RESOURCES[name].counted for name in self.among)
        return QUOTED.format(text=f"{self.table}/{self.name}" if self.shared else self.table)


# Valid names of kinds and of their collections, which become part of statements and paths.
NAME = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
SEGMENT = re.compile(r"[a-z][a-z0-9-]{0,62}")
QUOTED: LiteralString = "'{text}'"
ONLY: LiteralString = "AND kind IN ({types})"
REFERRING: LiteralString = """(CASE WHEN refs IS NULL THEN document
    ELSE left(document, -1) || ',"references":' || refs::text || '}' END)"""
# The kind of lists that contain resources of all kinds.
ALL = "Resource"


def quoted(names: Iterable[str]) -> LiteralString:
    """Returns SQL for the names of kinds, separated by commas."""
    return ", ".join(QUOTED.format(text=name) for name in names)


# The kinds that need not be declared.
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


# The kinds that people create and adapters report on, with labels, a spec and a status. Filled by
# :func:`declare`, as is KINDS.
RESOURCES: dict[str, Kind] = {}


def above(kind: str) -> list[Kind]:
    """Returns the kinds that own a kind, directly or not; the root first."""
    parent = RESOURCES[kind].parent
    return [*above(parent), RESOURCES[parent]] if parent else []


def below(kind: str) -> list[Kind]:
    """Returns the kinds below a kind, directly or not, in declared order: each after its parent."""
    return [one for one in RESOURCES.values() if RESOURCES[kind] in above(one.name)]


def referrers(*kinds: str) -> list[Kind]:
    """Returns the kinds whose resources may refer to one of these."""
    return [one for one in RESOURCES.values() if any(ref.target in kinds for ref in one.references)]


def owned(kind: str, root: str, owners: LiteralString) -> LiteralString:
    """Returns the condition for rows of a kind that belong to others of another, directly or not.

    :param owners: SQL for an array of the ids of these others
    """
    parent, only = RESOURCES[kind].parent, RESOURCES[kind].only
    if parent is None or parent == root:
        return OWNED.format(owners=owners, only=only)
    inner = owned(parent, root, owners)
    return BETWEEN.format(table=RESOURCES[parent].table, owned=inner, only=only)


OWNED: LiteralString = "owner_id = ANY({owners}) {only}"
BETWEEN: LiteralString = "owner_id IN (SELECT id FROM {table} WHERE {owned}) {only}"
UNDER: LiteralString = "AND (%(owner_id)s::uuid IS NULL OR owner_id = %(owner_id)s)"


class Key(TypedDict, total=False):
    """Names a resource, as the path of a request does; also the values of the statements that find it.

    ``id``; for a kind with a parent ``owner_id``, which is None if the path lacks it; ``tenancy`` if the
    caller belongs to a tenant, which must see the resource. Within the service it may also name several:
    those with these ``ids``, or all below the resource if that is of the kind ``root``.
    """

    id: str
    owner_id: str | None
    tenancy: Jsonb
    ids: Sequence[str]
    root: str


# The condition for rows that callers of a tenant see; only used if tenants are kept apart.
SCOPE: LiteralString = "AND tenancy @> %(tenancy)s"


class PerKind(dict[str, LiteralString]):
    """A statement for each kind of resource, made from a template when it is first used.

    In the template, ``{table}`` and ``{kind}`` are the kind's names, ``{owner}`` is the id of the owner,
    ``{under}`` the condition that it is the owner in the path, if there is one, ``{only}`` the condition
    that a row is of this kind, ``{address}`` its href, and ``{document}`` its JSON text. For callers of
    a tenant, ``{scope}`` is the condition that they see a row, and ``{tenancy}`` one more column.

    :param scoped: whether it is for callers who only see the resources of their tenant
    """

    def __init__(self, template: LiteralString, *, scoped: bool = False) -> None:
        self.template = template
        self.is_scoped = scoped

    @functools.cached_property
    def scoped(self) -> "PerKind":
        """The same statements for callers of a tenant."""
        return PerKind(self.template, scoped=True)

    def of(self, kind: str, key: Key) -> LiteralString:
        """Returns the statement of a kind, for a tenant's callers if the key has a ``tenancy``."""
        return (self.scoped if "tenancy" in key else self)[kind]

    def __missing__(self, kind: str) -> LiteralString:
        """Makes the statement. Raises KeyError if this is not a kind of resource."""
        of = RESOURCES[kind]
        made = self[kind] = self.template.format(
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


def id_here(old: str) -> str:
    """Returns the id here of a resource of the original: a UUID is kept, others are replaced."""
    return old.lower() if ID.fullmatch(old) else str(uuid.uuid5(OLD_IDS, old))


def known_id(text: str) -> str:
    """Returns the id that a text stands for here, also one of the original; empty if it is not an id."""
    return id_here(text) if ID.fullmatch(text) or OLD_ID.fullmatch(text) else ""


# Kinds that only occur in lists.
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
    """Registers these kinds, which add to the native ones or replace them, and no others.

    Called once, before anything is served or read. Raises ValueError for a name unsafe in statements.
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
