"""References between resources, which own nothing: made with a resource, and changed with it.

What is referred to is locked while it is, so that it is neither marked as deleted nor removed meanwhile.
The order of locks is that of :mod:`hyperfleet.resources.resource`.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, LiteralString, TypeAlias

from psycopg.types.json import Jsonb

from hyperfleet.database.connection import Connection, Cursor
from hyperfleet.errors import INVALID, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES, Reference, Statements, both, known_id

# What a resource refers to, by the types of its references: as a client says it, or as it is shown.
References: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]

# What a resource of its kind refers to before anybody has said it.
SOMETHING = "00000000-0000-0000-0000-000000000000"

LOCK: LiteralString = """/* {table}_lock_referred */
SELECT id::text, deleted_time IS NOT NULL, {address} FROM {table}
WHERE id = ANY(%(ids)s::uuid[]) {only} {scope} {beside} ORDER BY id FOR SHARE
"""
LOCK_OWN = both("""/* {table}_lock_referring */
SELECT 1 FROM {table} WHERE id = %(id)s {only} {scope} FOR NO KEY UPDATE
""")
# Where tenants are kept apart, whoever sees a resource sees what it refers to, too: that has all the
# dimensions that it has itself, or of a new one what it belongs to. These never change, and so are read
# without a lock.
BESIDE: LiteralString = """
AND tenancy @> coalesce((SELECT of.tenancy FROM {table} AS of
                         WHERE of.id = %(beside)s AND of.tenancy @> %(tenancy)s), tenancy)
"""

FORGET = "/* resource_references_forget */ DELETE FROM resource_references WHERE source_id = %(id)s"
KEEP = both("""/* {table}_refer */
INSERT INTO resource_references
    (source_kind, source_id, ref_type, target_kind, target_id, created_time)
SELECT '{kind}', source.id, of.key, one.value ->> 'kind', (one.value ->> 'id')::uuid, source.created_time
FROM {table} AS source, jsonb_each(%(refs)s::jsonb) AS of, jsonb_array_elements(of.value) AS one
WHERE source.id = %(id)s
""")
SHOW = both("""/* {table}_show_references */
UPDATE {table} SET refs = %(refs)s WHERE id = %(id)s RETURNING {document}::bpchar
""")


class Targets:
    """Locks what a resource is to refer to, and what it belongs to, or itself when it is there already.

    The statements are sent at once; what they found is fetched when it is asked for.

    :param wanted: what a client says, as far as that can be understood
    :param own: the id of a resource that is there already
    :param key: of a new one ``owner_id``, what it is to belong to; and ``tenancy`` where a tenant must
        see what is referred to
    """

    def __init__(
        self, conn: Connection, kind: str, wanted: Any, key: Mapping[str, Any], *, own: str = ""
    ) -> None:
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
            (of, conn.execute((LOCK_OWN if mine else lock).of(of, scope), {**values, **scope}))
            for of, mine, values in _locks(ids, kind if own else "", own)
        ]

    def resolved(self, wanted: References, known: References) -> dict[str, list[dict[str, str]]]:
        """What a resource is to refer to, as it is stored and shown.

        :param wanted: valid by the contract
        :param known: what it refers to already
        Raises Problem, with a fault for each reference to what is not there or is being deleted, and for
        each repetition.
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
    """The id that a reference leads to here; empty for what no resource can have as its id."""
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
def _lock(beside: LiteralString) -> Statements:
    """What locks those that are referred to.

    :param beside: the table of the resource whose dimensions they must have; empty: there is none
    """
    return both(LOCK.replace("{beside}", BESIDE.format(table=beside) if beside else ""))


def _locks(
    ids: Mapping[str, set[str]], own_kind: str, own: str
) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Kind and values of each lock, in the order of locks, and whether it is that of the one itself."""
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
    """Runs the statement that creates a resource, and makes its references.

    :param statement: returns the id and what is shown of the resource, where it was created, and more
    :param wanted: the references; None or empty: it has none
    :return: what the statement returns
    Raises Problem for references that there can't be.
    """
    rows = {"rows": Jsonb([values]), "patience": None}
    if not wanted:
        return conn.execute(statement, rows).fetchone()
    key = {"owner_id": values.get("owner_id")}
    key |= {"tenancy": Jsonb(values["tenancy"])} if values["tenancy"] else {}
    refs = Targets(conn, kind, wanted, key).resolved(wanted, {})
    created = conn.execute(statement, rows)
    shown = _keep(conn, kind, values["id"], refs)
    row, document = created.fetchone(), shown.fetchone()
    return row if row is None or document is None else (row[0], document[0], *row[2:])


def replace(conn: Connection, kind: str, id_: str, refs: References) -> None:
    """Makes these the references of a resource, in place of those that it has. The caller holds its
    lock.
    """
    conn.execute(FORGET, {"id": id_})
    _keep(conn, kind, id_, refs)


def _keep(conn: Connection, kind: str, id_: str, refs: References) -> Cursor:
    """Keeps the references of a resource that has none, and finds what is shown of it then."""
    values = {"id": id_, "refs": Jsonb(refs) if refs else None}
    if refs:
        conn.execute(KEEP[kind], values)
    return conn.execute(SHOW[kind], values)


def same(one: References, other: References) -> bool:
    """Whether two resources that refer to these refer to the same, in the same order."""
    return _ids(one) == _ids(other)


def _ids(refs: References) -> dict[str, Any]:
    # What a merge patch comes to need not be as the contract has it.
    found: dict[str, Any] = {type_: some for type_, some in refs.items() if some}
    for type_, some in found.items():
        if isinstance(some, list):
            found[type_] = [_id(one) if isinstance(one, dict) else one for one in some]
    return found


def something(kind: str) -> dict[str, list[dict[str, str]]]:
    """References that a resource of a kind could have been created with, as the contract sees it."""
    return {ref.type: [{"id": SOMETHING}] * ref.least for ref in RESOURCES[kind].references if ref.least}
