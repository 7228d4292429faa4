"""A page of a list: parameters, plan, statement, rows; its text is in :mod:`.body`."""

from collections.abc import Mapping
from typing import Any, LiteralString, NamedTuple

import psycopg

from hyperfleet.database.reads import Reader
from hyperfleet.errors import bad_parameter
from hyperfleet.kinds import ALL, KINDS, LISTED, RESOURCES
from hyperfleet.lists import order, referring, search
from hyperfleet.lists.columns import columns
from hyperfleet.lists.continuation import STRANGE, Continuation, following
from hyperfleet.lists.order import Order
from hyperfleet.lists.place import NOW, Place
from hyperfleet.lists.search import Condition
from hyperfleet.lists.trouble import searching, unknown_kind

DEFAULT_SIZE = 100
# Bytes of documents that are in memory at once for one client; the rest of a page comes from the
# database while the client takes it, a document at least.
BYTES = 1024 * 1024

# The page is found by keys alone, which an index holds, however deep it lies; their text and the
# documents are made for its rows only. One row more than asked for tells whether there is a next page.
# An empty page is one row without keys, so that the total is there all the same. The size of a document
# is known without reading it, and large ones are left for later. The rows come in the order of the page:
# what OFFSET 0 keeps whole can be joined in no other way than row by row.
# The inner limit is for the planner: without a number to go by it expects a tenth of the table, so that
# a plan for the very values looks cheaper than one that is kept, and is made anew each time: two thirds
# of what PostgreSQL does for a page of twenty.
LIST = """/* {table}_list */
WITH page AS (
    SELECT * FROM (
        SELECT {table}.{identity} AS identity, {keys}
        FROM {source} WHERE {where} AND {after} ORDER BY {order} LIMIT {most} {skip}
    ) AS beginning LIMIT %(limit)s
)
SELECT counted.found, counted.total, counted.moment, counted.place, item.keys,
       CASE WHEN item.until <= {bytes} THEN item.document::bpchar END AS document,
       CASE WHEN item.until > {bytes} THEN ARRAY[item.identity, item.size::text] END AS later
FROM (SELECT EXISTS ({exists}) AS found, {total} AS total, {moment} AS moment,
             {place} AS place) AS counted LEFT JOIN (
    SELECT ARRAY[{texts}] AS keys, page.identity::text AS identity, document,
           octet_length(document) AS size,
           sum(octet_length(document)) OVER (ROWS UNBOUNDED PRECEDING) AS until
    FROM page CROSS JOIN LATERAL (
        SELECT {document} AS document FROM {table} AS item WHERE {row} OFFSET 0
    ) AS one
) AS item ON true
"""

# Which transactions had ended: who finds the same again sees the same rows in all tables. None on a
# standby, which can't tell.
MOMENT = """
CASE WHEN NOT pg_is_in_recovery()
     THEN concat(pg_postmaster_start_time(), ' ', pg_current_snapshot()) END
"""

# Numbers of rows for the planner.
MOST = (10, 100, 1000, 10_000)
SKIP = "OFFSET %(skip)s"

# The types of what tells the items of a list apart, where that is no text.
STORED = {"uuid": "uuid", "number": "bigint"}

# Documents that are left for later.
LATER = """/* {table}_list_documents */
SELECT page.identity::text, {document}::bpchar
FROM unnest(%(identities)s::{type}[]) AS page (identity) JOIN {table} AS item ON {row}
"""

# A page that is not full and not empty is the last one: what comes before it is known.
TOTAL = """
CASE WHEN (SELECT count(*) FROM page) BETWEEN %(least)s AND %(size)s
     THEN %(offset)s + (SELECT count(*) FROM page)
     ELSE ({matching}) END
"""
MATCHING = "SELECT count(*) FROM {source} WHERE {where}"

FEW = "(SELECT * FROM {table} WHERE {where} OFFSET 0) AS {table}"

# A page this deep in a whole table is looked for from the nearer end.
DEEP = 10_000
# Kept by the database as rows come and go.
COUNT = "SELECT coalesce(sum(difference), 0)::bigint FROM row_counts WHERE table_name IN ({counted})"


class Within(NamedTuple):
    """What a list is of, where it is not a whole table.

    :param where: the condition that makes it, before the search
    :param values: what the parameters of ``where`` and ``exists`` stand for
    :param exists: a query that finds the list's owner
    :param missing: raised when it finds none
    :param counted: how many there are, as a query, where that is known without looking at them
    :param few: whether these are so few that a search looks at each of them, and at no other
    :param steady: whether a page is best found in the same way whatever the values are
    """

    where: LiteralString = ""
    values: Mapping[str, Any] = {}
    exists: LiteralString = "SELECT 1"
    missing: Exception | None = None
    counted: LiteralString = ""
    few: bool = False
    steady: bool = True


class Wanted(NamedTuple):
    """What the parameters of a request ask for; ``counted``: also how many items there are."""

    number: int
    size: int
    order: Order
    search: Condition
    after: Continuation | None
    counted: bool

    @property
    def offset(self) -> int:
        """How many rows are before the page; unknown, and not asked, for one that continues another."""
        return 0 if self.after else (self.number - 1) * self.size


class Plan(NamedTuple):
    """A statement that finds a page, and its values; ``backward``: from the last row to the first;
    ``prepare``: as :class:`Condition` has it.
    """

    statement: str
    values: dict[str, Any]
    backward: bool
    prepare: bool | None


class Later(NamedTuple):
    """A document that is still to be read, and its size in bytes when the page was found."""

    identity: str
    size: int


class Found(NamedTuple):
    """The rows of a page: their documents, and the keys of the last one where another page follows.

    :param total: how many the list has; None: nobody asked
    :param moment: what was to be seen when they were found, if that is known
    :param place: in the feed of changes, at that moment
    """

    total: int | None
    moment: str | None
    documents: list[bytes | Later]
    last: list[str | None] | None
    place: Place | None


def page(reader: Reader, kind: str, query: Mapping[str, Any], within: Within) -> tuple[Wanted, Found]:
    """What a request for a list asks for, and the rows that it gets.

    :param query: the parameters of the request, by the names of their handlers' arguments
    Raises Problem for parameters that cannot be understood, and ``within.missing``.
    """
    wanted = understand(kind, query, lookup=not within.few, whole=not within.where)
    made = plan(kind, wanted, within, _size(reader, kind, wanted, within))
    return wanted, fetch(reader, made, wanted, within)


def understand(
    kind: str, query: Mapping[str, Any], *, lookup: bool = True, whole: bool = True
) -> Wanted:
    """What the parameters of a request ask for. Raises Problem.

    :param lookup: whether labels are looked up, as is of use in long lists
    :param whole: whether the list is of all that there are of the kind
    """
    number, size = number_and_size(query)
    try:
        ordered = order.order_by(query.get("order_by"), query.get("order"), kind)
    except order.OrderError as error:
        name, member = ("orderBy", "order_by") if query.get("order_by") else ("order", "order")
        raise bad_parameter(name, error.message, query.get(member)) from None
    usual = whole and not (query.get("order_by") or query.get("order"))
    condition = search.asked(query.get("search") or "", kind, lookup=lookup, usual=usual)
    condition = condition.joined(*referring.asked(kind, query))
    condition = condition.joined(*_of_kind(query.get("kind", "")))
    after = following(query["continue_"], ordered) if "continue_" in query else None
    counted = query.get("total") != "none"
    return Wanted(after.number if after else number, size, ordered, condition, after, counted)


def _of_kind(name: str) -> tuple[str, dict[str, Any]]:
    """The condition that resources of all kinds are of one, and its values; empty without a name. Raises
    Problem for one that is none.
    """
    if name and name not in RESOURCES:
        raise unknown_kind(name)
    return (f"{KINDS[ALL].table}.kind = %(of_kind)s::text", {"of_kind": name}) if name else ("", {})


def number_and_size(query: Mapping[str, Any]) -> tuple[int, int]:
    """Number and size of the page that a query asks for.

    Raises Problem when ``pageSize`` and its alias ``size`` differ.
    """
    sizes = {query[name] for name in ("page_size", "size") if name in query}
    if len(sizes) > 1:
        raise bad_parameter("size", "must not differ from pageSize", query["size"])
    return query.get("page", 1), sizes.pop() if sizes else DEFAULT_SIZE


def _size(reader: Reader, kind: str, wanted: Wanted, within: Within) -> int | None:
    """The size of a list in which the page lies so deep that it pays to ask; None: it does not."""
    whole = not within.where and not wanted.search.sql
    if not whole or wanted.offset <= DEEP or any(key.nullable for key in wanted.order.keys):
        return None
    of = KINDS[kind]
    statement = f"/* {{table}}_count */ {COUNT}".format(table=of.table, counted=of.counted)
    [(count,)] = reader.rows(statement, {})
    return int(count)


def plan(kind: str, wanted: Wanted, within: Within, count: int | None) -> Plan:
    """How the page is found.

    :param count: the size of the list where that is known: a page in its second half is looked for
        from the end
    """
    of, ordered, size, offset = KINDS[kind], wanted.order, wanted.size, wanted.offset
    parts = [part for part in (within.where, wanted.search.sql) if part]
    condition = f"{' AND '.join(f'({part})' for part in parts) or 'true'} {of.only}"
    skip, limit, backward = offset, size + 1, count is not None and offset > count // 2
    if backward:
        assert count is not None
        # The last page is not full, and what is behind it is empty.
        skip, limit = max(0, count - offset - size - 1), max(0, min(size + 1, count - offset))
    # What OFFSET 0 keeps whole is found by its own index, whatever is searched for in it.
    few = within.few and wanted.search.sql
    source = FEW.format(table=of.table, where=within.where) if few else of.table
    if wanted.search.source and not within.where and _by_age(ordered):
        source, condition = f"({wanted.search.source}) AS {of.table}", "true"
    keys = [f"k{index}" for index in range(len(ordered.keys))]
    statement = LIST.format(
        table=of.table,
        source=source,
        identity=of.identity,
        row=of.row,
        document=of.document,
        where=condition,
        keys=", ".join(f"{key.sql} AS {k}" for key, k in zip(ordered.keys, keys, strict=True)),
        texts=", ".join(f"page.{k}::text" for k in keys),
        order=ordered.reversed().sql if backward else ordered.sql,
        after=wanted.after.sql if wanted.after else "true",
        most=most(limit),
        skip=SKIP if skip else "",
        exists=within.exists,
        bytes=BYTES,
        moment=MOMENT,
        # The feed is of resources.
        place="NULL" if kind in LISTED else NOW,
        total=_total(wanted, within).format(source=source, where=condition, counted=of.counted),
    )
    values = {
        **within.values,
        **ordered.values,
        **wanted.search.values,
        **(wanted.after.values if wanted.after else {}),
        "size": size,
        "limit": limit,
        "offset": offset,
        "skip": skip,
        # A page that continues another one does not know how many come before it.
        "least": size + 1 if wanted.after else min(offset, 1),
    }
    return Plan(statement, values, backward, wanted.search.prepare if within.steady else False)


def _by_age(order: Order) -> bool:
    """Whether an index of labels has their owners in this order, or from its end."""
    first, *rest = order.keys
    others = [(key.name, key.descending) for key in rest]
    return first.name == "created_time" and others == [("id", first.descending)]


def most(limit: int) -> int:
    """A number for ``LIMIT`` that is no smaller, and of which a tenth is no larger: so many rows the
    planner expects behind a limit that it does not know.
    """
    return next(number for number in MOST if number >= limit)


def _total(wanted: Wanted, within: Within) -> str:
    if not wanted.counted:
        return "NULL::bigint"
    if not wanted.search.sql and (known := within.counted or ("" if within.where else COUNT)):
        return f"({known})"
    matching = "" if within.where else wanted.search.count
    return TOTAL.replace("{matching}", matching or MATCHING)


def fetch(reader: Reader, made: Plan, wanted: Wanted, within: Within) -> Found:
    """The rows of a page. Raises Problem for what only the database can tell of the parameters."""
    try:
        with searching(bool(wanted.search.sql), reader.statement_timeout):
            rows = reader.rows(made.statement, made.values, prepare=made.prepare)
    except psycopg.DataError:
        if not wanted.after:
            raise
        raise bad_parameter("continue", STRANGE) from None
    if made.backward:
        rows.reverse()
    found, total, moment, place, *_ = rows[0]
    if not found and within.missing:
        raise within.missing
    documents = [
        row[5] if row[6] is None else Later(row[6][0], int(row[6][1]))
        for row in rows[: wanted.size]
        if row[4] is not None
    ]
    last = rows[wanted.size - 1][4] if 0 < wanted.size < len(rows) else None
    return Found(total, moment, documents, last, Place.parse(place) if place else None)


def documents(reader: Reader, kind: str, identities: list[str], within: Within) -> dict[str, bytes]:
    """Documents of a list, by their identities; of a page that a standby has shown too, so that none is
    taken for gone which another one does not have yet.
    """
    of = KINDS[kind]
    stored = STORED.get(columns(kind)[of.identity], "text")
    statement = LATER.format(table=of.table, row=of.row, document=of.document, type=stored)
    return dict(reader.newest(statement, {**within.values, "identities": identities}))
