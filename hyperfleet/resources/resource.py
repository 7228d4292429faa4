"""What all kinds of resources share: ids, rows, their first row, and the input of their status.

The order of locks, which prevents deadlocks: to mark or remove a resource that has an owner, or to take
a report on one that is marked, first lock its owners, from the root down. Lock several of a kind in the
order of their ids, and several kinds in the order of ``hyperfleet.kinds.RESOURCES``, where each kind
follows its parent. The same holds for adding references, and for removing by force what others refer to.
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
    Key,
    PerKind,
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

# The values of new resources, as :func:`first_row` returns them plus their address, for statements to
# build on.
GIVEN: LiteralString = """
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s) AS given
        (id uuid, owner_id uuid, name text, labels jsonb, spec jsonb, status jsonb,
         at timestamptz, by text, request text, method text, path text, tenancy jsonb, href text)
)"""

# Finds the resource that has a name, among those of the same owner, or else of the same tenant.
HOLDER = PerKind("""/* {table}_named */
SELECT id::text, deleted_time IS NOT NULL FROM {table}
WHERE name = %(name)s AND ({owner} IS NOT NULL OR tenancy = %(tenancy)s) {under} {only}
""")

# Everyone locks several rows in this order, which prevents deadlocks.
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
# What rules of mapped conditions need in addition.
SEEN, SEEN_COLUMNS = ("name", "labels", "spec"), ", name, labels, spec"

# Separate statements: one that also waited for the lock would see rows from before the wait.
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
# What refers to a resource being deleted is being deleted itself, and keeps the target until it is gone.
REFERRING: LiteralString = """/* resource_references_to_locked */
SELECT target_id::text, count(*) FROM resource_references AS reference
WHERE target_id = ANY({ids}) AND source_kind IN ({kinds}) AND keeps AND EXISTS (
    SELECT FROM all_resources AS source
    WHERE source.id = reference.source_id AND source.deleted_time IS NOT NULL)
GROUP BY target_id
"""

# How many resources below another are held, and their statuses computed, at a time; others are served in
# between. One resource can have thousands.
BATCH = 100

# Which resources: those given by id, or those below another that are not marked for deletion.
NAMED = "%(ids)s::uuid[]"
BELOW = "SELECT id FROM {table} WHERE {owned} AND deleted_time IS NULL"
# The first of these. The OFFSET keeps the planner from walking all ids in their order.
FIRST: LiteralString = "ARRAY(SELECT id FROM ({below} OFFSET 0) AS below ORDER BY id LIMIT {batch})"
LOCK_EACH: LiteralString = """/* {table}_lock_below */
SELECT id::text FROM {table} WHERE id IN ({below}) ORDER BY id FOR NO KEY UPDATE
"""
OWN_ROOT = "ARRAY(SELECT id FROM {table} WHERE id = ANY(%(ids)s::uuid[]) {only} {scope})"

SET_STATUS = PerKind("""/* {table}_set_status */
UPDATE {table} SET status = %(status)s, version = version + 1 WHERE id = %(id)s
""")

# The end of a statement that changes a resource in its part ``changed``.
DOCUMENT: LiteralString = "SELECT document::bpchar FROM changed"


class Stored(NamedTuple):
    """A resource as it is stored: its complete JSON text, and the version for its entity tag."""

    document: bytes
    version: int


def stored(changed: Cursor, version: int) -> Stored:
    """Returns the resource that a statement ending with ``DOCUMENT`` has changed."""
    row: Any = changed.fetchone()
    return Stored(bytes(row[0]), version)


class Held(NamedTuple):
    """A resource with what determines its status; :class:`Hold` has locked it, or ``look`` has read it.

    :param state: its row; name, labels, spec and document only if they were asked for
    :param reports: its stored reports
    :param children: how many resources belong to it, or keep it by referring to it
    :param folding: how to compute its status
    """

    state: State
    reports: Sequence[Report]
    children: int
    folding: Folding

    def fold(self, at: str, **changes: Any) -> Status:
        """Returns the status after ``changes`` to the state; ``at`` is the time of the change."""
        state: Any = {**self.state, **changes}
        return self.folding.fold(state, self.reports, self.state["status"], at, self.children)

    def ended(self, generation: int | None = None) -> bool:
        """Whether nothing has to finalize it any more, assuming that it is marked for deletion; at
        another generation, if one is given.
        """
        generation = generation or self.state["generation"]
        return not self.children and all_finalized(generation, self.reports, self.folding.required)


@functools.cache
def _lock(ids: LiteralString, columns: LiteralString) -> PerKind:
    return PerKind(LOCK.replace("{ids}", ids).replace("{whole}", columns))


@functools.cache
def _below(kind: str, *, root: str, scoped: bool) -> LiteralString:
    """Returns the query for resources of a kind that are below others and not marked for deletion."""
    above = RESOURCES[root]
    owners = OWN_ROOT.format(table=above.table, only=above.only, scope=SCOPE) if scoped else NAMED
    return BELOW.format(table=RESOURCES[kind].table, owned=owned(kind, root, owners))


def lock_below(conn: Connection, kind: str, key: Key) -> Cursor:
    """Locks all resources of a kind that are below another and not marked for deletion; finds their ids.

    :param key: names the other, with its kind as ``root``
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
    """Locks resources in the order of their ids, and reads what determines their status.

    The statements are sent at once; their results are fetched when they are needed, so that other
    statements can travel with them.

    :param key: names them; of all below a ``root``, those not marked for deletion are held, and of these
        only the first :data:`BATCH`
    :param folding: how to compute their statuses
    :param whole: whether to read name, labels, spec and document, which can be large
    :param children: whether to count what belongs to them, which matters only if they are marked
    """

    def __init__(
        self,
        conn: Connection,
        kind: str,
        key: Key,
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
        """Returns those that exist."""
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
        """Returns the resource with the id; None if there is none."""
        return next(iter(self.all()), None)

    def found(self) -> Held:
        """Returns the resource with the id. Raises Problem if there is none."""
        held = self.one()
        if held is None:
            raise not_found(self.kind, self.key["id"])
        return held


def queue(key: Key) -> str:
    """Returns the name of the queue for changes of a resource. It includes the tenancy: callers who name
    another tenant's resource must not hold up that tenant.
    """
    id_: str = key["id"]
    return id_ + tenancy.text(key["tenancy"].obj) if "tenancy" in key else id_


def sees(key: Key, tenancy: Sequence[Mapping[str, str]]) -> bool:
    """Whether a caller may see a resource that was read for several callers at once.

    :param tenancy: a row's last columns: the resource's tenancy, read only for callers of a tenant
    """
    return "tenancy" not in key or key["tenancy"].obj.items() <= tenancy[0].items()


def not_found(kind: str, id_: str) -> Problem:
    """Returns the error for a resource that does not exist, or not at this path."""
    return Problem(NOT_FOUND, f"There is no {KINDS[kind].noun} with the id '{id_[:100]}' here.")


def id_in_path(kind: str, id_: str) -> str:
    """Returns the id that an id in a path stands for; the original's ids still find their resources.

    Raises Problem, not found, if no resource can have it.
    """
    found = known_id(id_)
    if not found:
        raise not_found(kind, id_)
    return found


def name_taken(service: Service, kind: str, values: Mapping[str, Any]) -> Problem:
    """Returns the error for a creation whose name is taken; it tells by which resource, and whether that
    is being deleted.

    :param values: as :func:`first_row` returns them, and ``owner_id`` of a node pool
    """
    holder = fetch_one(service.pool, HOLDER[kind], {**values, "tenancy": Jsonb(values["tenancy"])})
    message = f"is the name of another {RESOURCES[kind].noun}"
    if holder:
        message += f", {holder[0]}" + (", which is being deleted" if holder[1] else "")
    fault: Fault = {"field": "name", "message": message, "constraint": "unique"}
    return Problem(NAME_TAKEN, faults=[with_value(fault, values["name"])])


def check(service: Service, kind: str, body: Mapping[str, Any], *, replaced: bool) -> None:
    """Raises Problem if a patched resource could not have been the body of a creation.

    :param replaced: whether the spec was sent whole, and so was validated by the provider's schema
    """
    found = list(faults(service.creation[kind], body))
    if not replaced:
        found += service.provider.faults(kind, body.get("spec"))
    # Measured in the shortest form that a client could have sent.
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
    """Returns the values of a new row except its address.

    :param body: of a validated request
    :param folding: how to compute its status
    :param origin: who creates it, and how
    :param tenancy: the creator's; a resource with an owner gets the owner's instead
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
