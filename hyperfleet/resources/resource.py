"""What all kinds of resources have in common: ids, rows, a first row, and what a status is made of.

The order of locks, which keeps two transactions from waiting for each other: whoever marks or
removes what belongs to others, or takes a report on what is marked and does, holds the locks on those
first, from the root on; whoever locks several of a kind locks them in the order of their ids, and
several kinds in the order of ``hyperfleet.kinds.RESOURCES``, where each comes after what it belongs to.
So does who makes a resource refer to others, and who removes by force what others refer to.
"""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString, NamedTuple

import uuid_utils
from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.changes.audit import Origin
from hyperfleet.contract.faults import faults
from hyperfleet.database.connection import Connection, Cursor
from hyperfleet.database.statements import fetch_one, filled
from hyperfleet.errors import INVALID, NAME_TAKEN, NOT_FOUND, Fault, Problem, with_value
from hyperfleet.kinds import (
    KINDS,
    RESOURCES,
    SCOPE,
    Statements,
    both,
    known_id,
    owned,
    quoted,
    referrers,
)
from hyperfleet.service import Service
from hyperfleet.settings import tenancy
from hyperfleet.status.conditions import Folding
from hyperfleet.status.fold import State, Status
from hyperfleet.status.report import Report, all_finalized

# What new resources are made of, as :func:`first_row` has it and with their address, for statements that
# go on from there.
GIVEN: LiteralString = """
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s) AS given
        (id uuid, owner_id uuid, name text, labels jsonb, spec jsonb, status jsonb,
         at timestamptz, by text, request text, method text, path text, tenancy jsonb, href text)
)"""

# Who has a name: among what belongs to the same, or else to the same tenant.
HOLDER = both("""/* {table}_named */
SELECT id::text, deleted_time IS NOT NULL FROM {table}
WHERE name = %(name)s AND ({owner} IS NOT NULL OR tenancy = %(tenancy)s) {under} {only}
""")

# Whoever locks several locks them in this order, so that no two wait for each other.
LOCK = """/* {table}_lock */
SELECT id::text, version, generation, status, hyperfleet_time(created_time),
       hyperfleet_time(updated_time), hyperfleet_time(deleted_time), {owner}::text {whole}
FROM {table} WHERE id = ANY({ids}) {under} {only} {scope} ORDER BY id FOR NO KEY UPDATE
"""
STATE = (
    *("id", "version", "generation", "status", "created_time", "updated_time", "deleted_time"),
    "owner_id",
)
WHOLE = ("name", "labels", "spec", "document")
WHOLE_COLUMNS: LiteralString = ", name, labels, spec, {document}::bpchar"
# What rules of mapped conditions look at beside.
SEEN, SEEN_COLUMNS = ("name", "labels", "spec"), ", name, labels, spec"

# Statements of their own: one that waited for a lock would see what was there before the wait.
REPORTS = """/* adapter_statuses_of_locked */
SELECT owner_id::text, adapter, observed_generation, conditions,
       hyperfleet_time(created_time), hyperfleet_time(last_report_time) {data}
FROM adapter_statuses WHERE owner_type = '{kind}' AND owner_id = ANY({ids})
"""
REPORT = ("adapter", "observed_generation", "conditions", "created_time", "last_report_time")
REPORT_SEEN = (*REPORT, "data")
CHILDREN = """/* {child}_count_of_locked */
SELECT owner_id::text, count(*) FROM {child} WHERE owner_id = ANY({ids}) {only} GROUP BY owner_id
"""
# Those who refer to what is being deleted are being deleted too, and keep it until they are gone.
REFERRING: LiteralString = """/* resource_references_to_locked */
SELECT target_id::text, count(*) FROM resource_references AS reference
WHERE target_id = ANY({ids}) AND source_kind IN ({kinds}) AND keeps AND EXISTS (
    SELECT FROM all_resources AS source
    WHERE source.id = reference.source_id AND source.deleted_time IS NOT NULL)
GROUP BY target_id
"""

# Statuses that are folded at a time: thousands may be below one, and others are served in between.
BATCH = 100

# Which resources: those that are named, or those below another that are not marked as deleted.
NAMED = "%(ids)s::uuid[]"
BELOW = "SELECT id FROM {table} WHERE {owned} AND deleted_time IS NULL"
# The first of these; apart, lest they be looked for in the order of all ids that there are.
FIRST: LiteralString = "ARRAY(SELECT id FROM ({below} OFFSET 0) AS below ORDER BY id LIMIT {batch})"
LOCK_EACH: LiteralString = """/* {table}_lock_below */
SELECT id::text FROM {table} WHERE id IN ({below}) ORDER BY id FOR NO KEY UPDATE
"""
OWN_ROOT = "ARRAY(SELECT id FROM {table} WHERE id = ANY(%(ids)s::uuid[]) {only} {scope})"

SET_STATUS = both("""/* {table}_set_status */
UPDATE {table} SET status = %(status)s, version = version + 1 WHERE id = %(id)s
""")

# Ends a statement that changes a resource, which it has ``changed``.
DOCUMENT: LiteralString = "SELECT document::bpchar FROM changed"


class Stored(NamedTuple):
    """A resource as it is stored: its finished JSON text, and the version that its entity tag names."""

    document: bytes
    version: int


def stored(changed: Cursor, version: int) -> Stored:
    """What a statement that ends with ``DOCUMENT`` has made of a resource."""
    row: Any = changed.fetchone()
    return Stored(bytes(row[0]), version)


class Held(NamedTuple):
    """A resource that a transaction has locked.

    :param state: its row; with name, labels, spec and document where those were asked for
    :param reports: the stored ones
    :param children: how many resources belong to it, or refer to it and keep it from being removed
    :param folding: what its status is folded by
    """

    state: State
    reports: Sequence[Report]
    children: int
    folding: Folding

    def fold(self, at: str, **changes: Any) -> Status:
        """The status that it comes to, with changes of its state, which are made at a time."""
        state: Any = {**self.state, **changes}
        return self.folding.fold(state, self.reports, self.state["status"], at, self.children)

    def ended(self, generation: int | None = None) -> bool:
        """Whether nobody has to do anything for it any more, as it is or at another generation, when it
        is marked as deleted.
        """
        generation = generation or self.state["generation"]
        return not self.children and all_finalized(generation, self.reports, self.folding.required)


@functools.cache
def _lock(ids: LiteralString, columns: LiteralString) -> Statements:
    return both(LOCK.replace("{ids}", ids).replace("{whole}", columns))


@functools.cache
def _below(kind: str, *, root: str, scoped: bool) -> LiteralString:
    """The query for what is below some of a kind, and not marked as deleted."""
    above = RESOURCES[root]
    owners = OWN_ROOT.format(table=above.table, only=above.only, scope=SCOPE) if scoped else NAMED
    return BELOW.format(table=RESOURCES[kind].table, owned=owned(kind, root, owners))


def lock_below(conn: Connection, kind: str, key: Mapping[str, Any]) -> Cursor:
    """Locks all of a kind that are below a resource, and not marked as deleted; finds their ids.

    :param key: as :class:`Hold` has it, with ``root``
    """
    below = _below(kind, root=key["root"], scoped="tenancy" in key)
    statement = LOCK_EACH.format(table=RESOURCES[kind].table, below=below)
    return conn.execute(statement, {**key, "ids": filled([key["id"]])})


@functools.cache
def _statements(
    kind: str, *, whole: bool, seen: bool, children: bool, root: str, scoped: bool
) -> list[LiteralString]:
    of = RESOURCES[kind]
    ids = NAMED
    if root:
        below = _below(kind, root=root, scoped=scoped)
        ids, scoped = FIRST.format(below=below, batch=str(BATCH)), False
    columns: LiteralString = WHOLE_COLUMNS if whole else SEEN_COLUMNS if seen else ""
    data: LiteralString = ", data" if seen else ""
    lock = _lock(ids, columns)
    counts = [
        CHILDREN.format(child=child.table, ids=ids, only=child.only)
        for child in RESOURCES.values()
        if children and child.parent == kind
    ]
    if children and (sources := referrers(kind)):
        kinds = quoted(one.name for one in sources)
        counts.append(REFERRING.format(ids=ids, kinds=kinds))
    return [
        (lock.scoped if scoped else lock)[kind],
        REPORTS.format(kind=of.name, ids=ids, data=data),
        *counts,
    ]


class Hold:
    """Locks resources and asks for what their status is made of, in the order of their ids.

    The statements are sent at once; what they found is fetched when it is asked for, so that others
    may travel with them.

    :param key: ``id`` or ``ids``, ``owner_id`` of what must belong to that owner, and ``tenancy`` of
        what a tenant must see; with ``root``, a kind, the first :data:`BATCH` are meant of
        those that are below these, directly or not, and not marked as deleted
    :param folding: what their statuses are folded by
    :param whole: whether a state is to have name, labels, spec and document, which can be large
    :param children: whether what belongs to them is counted, which counts for marked ones alone
    """

    def __init__(
        self,
        conn: Connection,
        kind: str,
        key: Mapping[str, Any],
        folding: Folding,
        *,
        whole: bool = False,
        children: bool = True,
    ) -> None:
        values = {"owner_id": None, **key, "ids": filled(key["ids"] if "ids" in key else [key["id"]])}
        seen, root = folding.rules is not None, key.get("root", "")
        scoped = "tenancy" in key
        statements = _statements(
            kind, whole=whole, seen=seen, children=children, root=root, scoped=scoped
        )
        self.kind, self.key, self.folding = kind, key, folding
        self.columns = (*STATE, *WHOLE) if whole else (*STATE, *SEEN) if seen else STATE
        self.report = REPORT_SEEN if seen else REPORT
        self._rows, self._reports, *self._children = [conn.execute(one, values) for one in statements]

    def all(self) -> list[Held]:
        """Those that there are."""
        reports: dict[str, list[Report]] = {}
        states: list[Any] = [dict(zip(self.columns, row, strict=True)) for row in self._rows]
        for owner, *row in self._reports:
            report: Any = dict(zip(self.report, row, strict=True))
            reports.setdefault(owner, []).append(report)
        children = Counter[str]()
        for found in self._children:
            children.update(dict(found))
        return [
            Held(state, reports.get(id_, []), children[id_], self.folding)
            for id_, state in ((state["id"], state) for state in states)
        ]

    def one(self) -> Held | None:
        """The one that was named by its id, if there is one."""
        return next(iter(self.all()), None)

    def found(self) -> Held:
        """The one that was named by its id. Raises Problem when there is none."""
        held = self.one()
        if held is None:
            raise not_found(self.kind, self.key["id"])
        return held


def turn(key: Mapping[str, Any]) -> str:
    """Where a caller queues to change a resource: not with those who do not see what he sees, or may
    name what is not theirs.

    :param key: what the caller looks for
    """
    id_: str = key["id"]
    return id_ + tenancy.text(key["tenancy"].obj) if "tenancy" in key else id_


def sees(key: Mapping[str, Any], tenancy: Sequence[Mapping[str, str]]) -> bool:
    """Whether a caller sees what was read for several at once.

    :param key: what the caller looks for; it has a ``tenancy`` for one of a tenant
    :param tenancy: that of what was found, which is read for such callers alone
    """
    return "tenancy" not in key or key["tenancy"].obj.items() <= tenancy[0].items()


def not_found(kind: str, id_: str) -> Problem:
    """The error of a resource that is not there, or not where it was looked for."""
    return Problem(NOT_FOUND, f"There is no {KINDS[kind].noun} with the id '{id_[:100]}' here.")


def key(kind: str, id_: str) -> str:
    """An id from a path; who still has the one that a resource had in the original finds it by that.

    Raises Problem, not found, for what no resource can have as its id.
    """
    found = known_id(id_)
    if not found:
        raise not_found(kind, id_)
    return found


def name_taken(service: Service, kind: str, values: Mapping[str, Any]) -> Problem:
    """The error of a creation with a name that another has: which one, and whether it is being deleted.

    :param values: as :func:`first_row` has them, and ``owner_id`` of a node pool
    """
    holder = fetch_one(service.pool, HOLDER[kind], {**values, "tenancy": Jsonb(values["tenancy"])})
    message = f"is the name of another {RESOURCES[kind].noun}"
    if holder:
        message += f", {holder[0]}" + (", which is being deleted" if holder[1] else "")
    fault: Fault = {"field": "name", "message": message, "constraint": "unique"}
    return Problem(NAME_TAKEN, faults=[with_value(fault, values["name"])])


def check(service: Service, kind: str, body: Mapping[str, Any], *, replaced: bool) -> None:
    """Raises Problem for what could not be the body of a creation: the result of a patch.

    :param replaced: whether the spec came whole, so that the provider's schema was asked already
    """
    found = list(faults(service.creation[kind], body))
    if not replaced:
        found += service.provider.faults(kind, body.get("spec"))
    # As short as a client could have written it.
    whole = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    largest = service.settings.max_body_size
    if not found and len(whole) > largest:
        message = f"must have at most {largest} bytes as a whole"
        found = [{"field": "body", "message": message, "constraint": "size"}]
    if found:
        raise Problem(INVALID, faults=found)


def first_row(
    body: Mapping[str, Any], folding: Folding, origin: Origin, tenancy: Mapping[str, str]
) -> dict[str, Any]:
    """The values of a new row, but for its address.

    :param body: of a request that was validated
    :param folding: what its status is folded by
    :param origin: who creates it, and how
    :param tenancy: of who creates it; what belongs to another has that one's
    """
    at = times.now()
    own = {
        "id": str(uuid_utils.uuid7()),
        "name": body["name"],
        "labels": body.get("labels", {}),
        "spec": body["spec"],
    }
    born: Any = {**own, "generation": 1, "created_time": at, "updated_time": at}
    return {
        **own,
        "status": folding.fold(born, (), None, at),
        "at": at,
        "tenancy": tenancy,
        **origin.values(),
    }
