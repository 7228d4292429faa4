"""References between resources. They imply no ownership, and are stored and changed with their source.

Targets are locked meanwhile, so that they can be neither marked for deletion nor removed.
For the order of locks, see :mod:`hyperfleet.resources.resource`.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, LiteralString, TypeAlias

from psycopg.types.json import Jsonb

from hyperfleet.database.connection import Connection, Cursor
from hyperfleet.errors import INVALID, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES, Key, PerKind, Reference, known_id

# The references of a resource by type, as a client sends them or as responses show them.
References: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]

# The target of placeholder references, for validating a body whose references are not at issue.
SOMETHING = "00000000-0000-0000-0000-000000000000"

LOCK: LiteralString = """/* {table}_lock_referred */
SELECT id::text, deleted_time IS NOT NULL, {address} FROM {table}
WHERE id = ANY(%(ids)s::uuid[]) {only} {scope} {beside} ORDER BY id FOR SHARE
"""
LOCK_OWN = PerKind("""/* {table}_lock_referring */
SELECT 1 FROM {table} WHERE id = %(id)s {only} {scope} FOR NO KEY UPDATE
""")
# With tenants, anyone who sees a resource must also see its targets. So a target must have all
# dimensions of the resource itself, or of its owner if it is new. Dimensions never change, so they are
# read without a lock.
BESIDE: LiteralString = """
AND tenancy @> coalesce((SELECT of.tenancy FROM {table} AS of
                         WHERE of.id = %(beside)s AND of.tenancy @> %(tenancy)s), tenancy)
"""

FORGET = "/* resource_references_forget */ DELETE FROM resource_references WHERE source_id = %(id)s"
KEEP = PerKind("""/* {table}_refer */
INSERT INTO resource_references
    (source_kind, source_id, ref_type, target_kind, target_id, created_time)
SELECT '{kind}', source.id, of.key, one.value ->> 'kind', (one.value ->> 'id')::uuid, source.created_time
FROM {table} AS source, jsonb_each(%(refs)s::jsonb) AS of, jsonb_array_elements(of.value) AS one
WHERE source.id = %(id)s
""")
SHOW = PerKind("""/* {table}_show_references */
UPDATE {table} SET refs = %(refs)s WHERE id = %(id)s RETURNING {document}::bpchar
""")


class Targets:
    """Locks the targets of a resource's references, and the resource itself, or its owner if it is new.

    The statements are sent at once; their results are fetched when they are needed.

    :param wanted: the references as the client sent them; what is malformed is skipped
    :param own: the id of the resource; empty for a new one
    :param key: ``owner_id`` of a new resource, and ``tenancy`` if the caller belongs to a tenant, which
        must see the targets
    """

    def __init__(self, conn: Connection, kind: str, wanted: Any, key: Key, *, own: str = "") -> None:
        owner = key.get("owner_id")
        self.of = {ref.type: ref for ref in RESOURCES[kind].references}
        ids: dict[str, set[str]] = {}
        parent = RESOURCES[kind].parent
        if parent and owner:
            ids.setdefault(parent, set()).add(owner)
        for ref in self.of.values():
            given = wanted.get(ref.type) if isinstance(wanted, dict) else None
            for one in given if isinstance(given, list) else ():
                if isinstance(one, dict) and (id_ := _id(one)):
                    ids.setdefault(ref.target, set()).add(id_)
        lock, scope = _lock(""), {}
        if "tenancy" in key:
            beside = kind if own else parent if owner else None
            lock = _lock(RESOURCES[beside].table if beside else "")
            scope = {"tenancy": key["tenancy"], "beside": own or owner}
        self._found = [
            (of, conn.execute((LOCK_OWN if mine else lock).of(of, key), {**values, **scope}))
            for of, mine, values in _locks(ids, kind if own else "", own)
        ]

    def resolved(self, wanted: References, known: References) -> dict[str, list[dict[str, str]]]:
        """Returns the new references of the resource, as they are stored and shown.

        :param wanted: the references that the client sent, valid by the contract
        :param known: the resource's present references
        Raises Problem with a fault for each target that does not exist or is being deleted, and for each
        duplicate.
        """
        there = {
            (of, row[0]): (row[1], row[2])
            for of, cursor in self._found
            for row in cursor
            if len(row) > 1
        }
        shown = {(one["kind"], one["id"]): dict(one) for some in known.values() for one in some}
        faults: list[Fault] = []
        found: dict[str, list[dict[str, str]]] = {}
        for type_, given in wanted.items():
            target, seen = self.of[type_].target, set[str]()
            for index, one in enumerate(given or ()):
                id_ = _id(one)
                deleted, href = there.get((target, id_), (None, ""))
                stored = {"kind": target, "id": id_, "href": href}
                if deleted is None and (target, id_) in shown:
                    deleted, stored = False, shown[target, id_]
                if message := _wrong(self.of[type_], deleted, id_ in seen):
                    rule = "unique" if id_ in seen else "reference"
                    field = f"references.{type_}[{index}].id"
                    fault: Fault = {"field": field, "message": message, "constraint": rule}
                    faults.append(with_value(fault, one["id"]))
                seen.add(id_)
                found.setdefault(type_, []).append(stored)
        if faults:
            raise Problem(INVALID, faults=faults)
        return found


def _id(one: Mapping[str, Any]) -> str:
    """Returns the id that a reference leads to; empty if it has none that a resource can have."""
    given = one.get("id")
    return known_id(given) if isinstance(given, str) else ""


def _wrong(of: Reference, deleted: bool | None, again: bool) -> str:
    noun = RESOURCES[of.target].noun
    if again:
        return f"names a {noun} that is already named"
    if deleted is None:
        return f"must be the id of an existing {noun}"
    return f"names a {noun} that is being deleted" if deleted else ""


@functools.cache
def _lock(beside: LiteralString) -> PerKind:
    """Returns the statements that lock the targets of references.

    :param beside: the table of the resource whose dimensions they must have; empty for none
    """
    return PerKind(LOCK.replace("{beside}", BESIDE.format(table=beside) if beside else ""))


def _locks(
    ids: Mapping[str, set[str]], own_kind: str, own: str
) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yields, in the order of locks, the kind, whether it is the resource itself, and the values."""
    for kind in RESOURCES:
        wanted = sorted(ids.get(kind, ()))
        if kind != own_kind:
            if wanted:
                yield kind, False, {"ids": wanted}
            continue
        for some in ([id_ for id_ in wanted if id_ < own], [own], [id_ for id_ in wanted if id_ > own]):
            if some == [own]:
                yield kind, True, {"id": own}
            elif some:
                yield kind, False, {"ids": some}
    # A resource may refer to itself; its own lock is the stronger one.
    if own in ids.get(own_kind, ()):
        yield own_kind, False, {"ids": [own]}


def insert(
    conn: Connection, kind: str, statement: LiteralString, values: Mapping[str, Any], wanted: Any
) -> Sequence[Any] | None:
    """Runs the statement that creates a resource, and stores its references.

    :param statement: returns a row that begins with the resource's id and its document
    :param wanted: the references; None or empty for none
    :return: the row, with the references in the document; None if the statement returned none
    Raises Problem if a reference is invalid.
    """
    rows = {"rows": Jsonb([values]), "lock_timeout": None}
    if not wanted:
        return conn.execute(statement, rows).fetchone()
    key: Key = {"owner_id": values.get("owner_id")}
    if values["tenancy"]:
        key["tenancy"] = Jsonb(values["tenancy"])
    refs = Targets(conn, kind, wanted, key).resolved(wanted, {})
    created = conn.execute(statement, rows)
    shown = _keep(conn, kind, values["id"], refs)
    row, document = created.fetchone(), shown.fetchone()
    return row if row is None or document is None else (row[0], document[0], *row[2:])


def replace(conn: Connection, kind: str, id_: str, refs: References) -> None:
    """Replaces the references of a resource. The caller holds its lock."""
    conn.execute(FORGET, {"id": id_})
    _keep(conn, kind, id_, refs)


def _keep(conn: Connection, kind: str, id_: str, refs: References) -> Cursor:
    """Stores the references of a resource that has none; the cursor returns its new document."""
    values = {"id": id_, "refs": Jsonb(refs) if refs else None}
    if refs:
        conn.execute(KEEP[kind], values)
    return conn.execute(SHOW[kind], values)


def same(one: References, other: References) -> bool:
    """Whether both have the same targets in the same order."""
    return _ids(one) == _ids(other)


def _ids(refs: References) -> dict[str, Any]:
    # The result of a merge patch need not match the contract.
    found: dict[str, Any] = {type_: some for type_, some in refs.items() if some}
    for type_, some in found.items():
        if isinstance(some, list):
            found[type_] = [_id(one) if isinstance(one, dict) else one for one in some]
    return found


def something(kind: str) -> dict[str, list[dict[str, str]]]:
    """Returns references that make the body of a creation valid by the contract for a kind."""
    return {ref.type: [{"id": SOMETHING}] * ref.least for ref in RESOURCES[kind].references if ref.least}
