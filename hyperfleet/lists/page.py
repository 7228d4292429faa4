"""A page of a list: parameters, plan, statement and rows; its text is in :mod:`.body`."""

from bisect import bisect_left
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
# Bytes of documents, or at least one document, held in memory at once for a client; the rest of a page
# is read while the client receives it.
BYTES = 1024 * 1024

# An index with the keys alone finds the page, however deep it is; key texts and documents are made only
# for its rows. One row more than asked for tells whether there is a next page. An empty page yields one
# row without keys, so that there is a total. A document's size is known without reading it, and large
# ones are left for later. The rows keep the order of the page: OFFSET 0 keeps the planner from pulling
# up the subquery, which can then only be joined row by row.
# The inner limit is a literal for the planner, which expects a tenth of the table if a limit is bound.
# Then a plan for the given values looks cheaper than the cached one and is made anew each time, which is
# two thirds of PostgreSQL's work for a page of twenty.
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

# Which transactions have ended: a reader that finds the same again sees the same rows in all tables.
# NULL on a standby, which cannot tell.
MOMENT = """
CASE WHEN NOT pg_is_in_recovery()
     THEN concat(pg_postmaster_start_time(), ' ', pg_current_snapshot()) END
"""

# Limits that the planner is given.
MOST = (10, 100, 1000, 10_000)
SKIP = "OFFSET %(skip)s"

# The SQL types of identities that are not text.
STORED = {"uuid": "uuid", "number": "bigint"}

# Reads documents that were left for later.
LATER = """/* {table}_list_documents */
SELECT page.identity::text, {document}::bpchar
FROM unnest(%(identities)s::{type}[]) AS page (identity) JOIN {table} AS item ON {row}
"""

# A page that is neither full nor empty is the last one, so its offset and its rows give the total.
TOTAL = """
CASE WHEN (SELECT count(*) FROM page) BETWEEN %(least)s AND %(size)s
     THEN %(offset)s + (SELECT count(*) FROM page)
     ELSE ({matching}) END
"""
MATCHING = "SELECT count(*) FROM {source} WHERE {where}"

FEW = "(SELECT * FROM {table} WHERE {where} OFFSET 0) AS {table}"

# A page this deep in a whole table is searched for from the nearer end.
DEEP = 10_000
# The database maintains these counts as rows come and go.
COUNT = "SELECT coalesce(sum(difference), 0)::bigint FROM row_counts WHERE table_name IN ({counted})"


class Within(NamedTuple):
    """The part of a table that a list covers; by default, the whole.

    :param where: the condition that selects it, before the search
    :param values: the parameters of ``where`` and ``exists``
    :param exists: a query that finds the list's owner
    :param missing: raised if it finds none
    :param counted: a query for the number of rows, if that is known without looking at them
    :param few: whether there are so few rows that a search looks at each of these, and at no others
    :param steady: whether the same plan suits a page whatever the values are
    """

    where: LiteralString = ""
    values: Mapping[str, Any] = {}
    exists: LiteralString = "SELECT 1"
    missing: Exception | None = None
    counted: LiteralString = ""
    few: bool = False
    steady: bool = True


class Wanted(NamedTuple):
    """What the parameters of a request ask for; ``counted`` means that the total is wanted, too."""

    number: int
    size: int
    order: Order
    search: Condition
    after: Continuation | None
    counted: bool

    @property
    def offset(self) -> int:
        """The number of rows before the page; 0 if it continues another one, when it is not needed."""
        return 0 if self.after else (self.number - 1) * self.size


class Plan(NamedTuple):
    """A statement that finds a page, and its values.

    :param backward: whether it yields the rows from last to first
    :param prepare: as in :class:`Condition`
    """

    statement: str
    values: dict[str, Any]
    backward: bool
    prepare: bool | None


class Unread(NamedTuple):
    """A document that is still to be read, and its size in bytes when the page was found."""

    identity: str
    size: int


class Found(NamedTuple):
    """The rows of a page: their documents, and the last one's keys if another page follows.

    :param total: how many rows the list has, or None if nobody asked
    :param moment: the database's :data:`MOMENT` when they were found, or None if it is unknown
    :param place: the place in the feed of changes at that moment
    """

    total: int | None
    moment: str | None
    documents: list[bytes | Unread]
    last: list[str | None] | None
    place: Place | None


def page(reader: Reader, kind: str, query: Mapping[str, Any], within: Within) -> tuple[Wanted, Found]:
    """Returns what a list request asks for, and the rows found.

    :param query: the request's parameters, by the names of the handlers' arguments
    Raises Problem if a parameter cannot be understood, and ``within.missing``.
    """
    wanted = understand(kind, query, lookup=not within.few, whole=not within.where)
    made = plan(kind, wanted, within, _size(reader, kind, wanted, within))
    return wanted, fetch(reader, made, wanted, within)


def understand(
    kind: str, query: Mapping[str, Any], *, lookup: bool = True, whole: bool = True
) -> Wanted:
    """Returns what the parameters of a request ask for. Raises Problem.

    :param lookup: whether labels are looked up in their table, which pays in long lists
    :param whole: whether the list covers all resources of the kind
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
    if only := query.get("kind"):
        if only not in RESOURCES:
            raise unknown_kind(only)
        condition = condition.joined(f"{KINDS[ALL].table}.kind = %(of_kind)s::text", {"of_kind": only})
    after = following(query["continue_"], ordered) if "continue_" in query else None
    counted = query.get("total") != "none"
    return Wanted(after.number if after else number, size, ordered, condition, after, counted)


def number_and_size(query: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the number and the size of the page that a query asks for.

    Raises Problem if ``pageSize`` and its alias ``size`` differ.
    """
    sizes = {query[name] for name in ("page_size", "size") if name in query}
    if len(sizes) > 1:
        raise bad_parameter("size", "must not differ from pageSize", query["size"])
    return query.get("page", 1), sizes.pop() if sizes else DEFAULT_SIZE


def _size(reader: Reader, kind: str, wanted: Wanted, within: Within) -> int | None:
    """Returns the size of a list if the page is so deep that asking pays; otherwise None."""
    whole = not within.where and not wanted.search.sql
    if not whole or wanted.offset <= DEEP or any(key.nullable for key in wanted.order.keys):
        return None
    of = KINDS[kind]
    statement = f"/* {{table}}_count */ {COUNT}".format(table=of.table, counted=of.counted)
    [(count,)] = reader.rows(statement, {})
    return int(count)


def plan(kind: str, wanted: Wanted, within: Within, count: int | None) -> Plan:
    """Returns the statement that finds the page.

    :param count: the size of the list, if known: a page in the second half is searched for from the end
    """
    of, ordered, size, offset = KINDS[kind], wanted.order, wanted.size, wanted.offset
    parts = [part for part in (within.where, wanted.search.sql) if part]
    condition = f"{' AND '.join(f'({part})' for part in parts) or 'true'} {of.only}"
    skip, limit, backward = offset, size + 1, count is not None and offset > count // 2
    if backward:
        assert count is not None
        # The last page may be short, and pages after it are empty.
        skip, limit = max(0, count - offset - size - 1), max(0, min(size + 1, count - offset))
    # OFFSET 0 keeps the planner from using any index but the one for within.where.
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
        # The feed is only about resources.
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
        # The number of rows before a page that continues another one is not known.
        "least": size + 1 if wanted.after else min(offset, 1),
    }
    return Plan(statement, values, backward, wanted.search.prepare if within.steady else False)


def _by_age(order: Order) -> bool:
    """Returns whether an index of labels has their owners in this order, or in its opposite."""
    first, *rest = order.keys
    others = [(key.name, key.descending) for key in rest]
    return first.name == "created_time" and others == [("id", first.descending)]


def most(limit: int) -> int:
    """Returns a literal ``LIMIT`` that is at least ``limit``, with a tenth of it no larger.

    A tenth is what the planner expects of a limit that it does not know.
    """
    return MOST[bisect_left(MOST, limit)]


def _total(wanted: Wanted, within: Within) -> str:
    if not wanted.counted:
        return "NULL::bigint"
    if not wanted.search.sql and (known := within.counted or ("" if within.where else COUNT)):
        return f"({known})"
    matching = "" if within.where else wanted.search.count
    return TOTAL.replace("{matching}", matching or MATCHING)


def fetch(reader: Reader, made: Plan, wanted: Wanted, within: Within) -> Found:
    """Returns the rows of a page. Raises Problem for parameters that only the database can reject."""
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
        row[5] if row[6] is None else Unread(row[6][0], int(row[6][1]))
        for row in rows[: wanted.size]
        if row[4] is not None
    ]
    last = rows[wanted.size - 1][4] if 0 < wanted.size < len(rows) else None
    return Found(total, moment, documents, last, Place.parse(place) if place else None)


def documents(reader: Reader, kind: str, identities: list[str], within: Within) -> dict[str, bytes]:
    """Returns documents of a list by their identities.

    They come from the primary, since a standby may lack some of a page that another one has shown; what
    the primary does not show yet comes from a standby.
    """
    of = KINDS[kind]
    stored = STORED.get(columns(kind)[of.identity], "text")
    statement = LATER.format(table=of.table, row=of.row, document=of.document, type=stored)
    found: dict[str, bytes] = dict(reader.newest(statement, {**within.values, "identities": identities}))
    if missing := [one for one in identities if one not in found]:
        found |= dict(reader.rows(statement, {**within.values, "identities": missing}))
    return found
