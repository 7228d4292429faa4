"""A page of a list: parameters, plan, statement, rows, text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, LiteralString, NamedTuple
from urllib.parse import urlencode

import psycopg

from hyperfleet.database.pool import Pool, fetch_all
from hyperfleet.errors import BAD_SEARCH, Problem, bad_parameter
from hyperfleet.kinds import KINDS
from hyperfleet.lists import order, search
from hyperfleet.lists.continuation import STRANGE, Continuation, following
from hyperfleet.lists.order import Order
from hyperfleet.lists.projection import Shape
from hyperfleet.lists.search import Condition

DEFAULT_SIZE = 100

# The page is found by keys alone, which an index holds, however deep it lies; their text and the
# documents are made for its rows only. One row more than asked for tells whether there is a next page.
# An empty page is one row without a document, so that the total is there all the same.
LIST = """
WITH page AS (
    SELECT {table}.{identity} AS identity, {keys}
    FROM {table} WHERE {where} AND {after} ORDER BY {order} LIMIT %(limit)s OFFSET %(skip)s
)
SELECT counted.found, counted.total, ARRAY[{texts}] AS keys,
       (SELECT item.document::bpchar FROM {table} AS item WHERE {row}) AS document
FROM (SELECT EXISTS ({exists}) AS found, {total} AS total) AS counted LEFT JOIN page ON true
"""

# A page that is not full and not empty is the last one: what comes before it is known.
TOTAL = """
CASE WHEN (SELECT count(*) FROM page) BETWEEN %(least)s AND %(size)s
     THEN %(offset)s + (SELECT count(*) FROM page)
     ELSE (SELECT count(*) FROM {table} WHERE {where}) END
"""

# A page this deep in a whole table is looked for from the nearer end.
DEEP = 10_000
# Kept by the database as rows come and go.
COUNT = "SELECT coalesce(sum(difference), 0)::bigint FROM row_counts WHERE table_name = '{table}'"


class Within(NamedTuple):
    """What a list is of, where it is not a whole table.

    :param where: the condition that makes it, before the search
    :param values: what the parameters of ``where`` and ``exists`` stand for
    :param exists: a query that finds the list's owner
    :param missing: raised when it finds none
    """

    where: LiteralString = ""
    values: Mapping[str, Any] = {}
    exists: LiteralString = "SELECT 1"
    missing: Problem | None = None


class Wanted(NamedTuple):
    """What the parameters of a request ask for."""

    number: int
    size: int
    order: Order
    search: Condition
    after: Continuation | None

    @property
    def offset(self) -> int:
        """How many rows are before the page; unknown, and not asked, for one that continues another."""
        return 0 if self.after else (self.number - 1) * self.size


class Plan(NamedTuple):
    """A statement that finds a page, and its values; ``backward``: from the last row to the first."""

    statement: str
    values: dict[str, Any]
    backward: bool


class Found(NamedTuple):
    """The rows of a page: their documents, and the keys of the last one where another page follows."""

    total: int
    documents: list[bytes]
    last: list[str | None] | None


def page(pool: Pool, kind: str, query: Mapping[str, Any], within: Within) -> tuple[Wanted, Found]:
    """What a request for a list asks for, and the rows that it gets.

    :param kind: ``Cluster``, ``NodePool`` or ``AdapterStatus``
    :param query: the parameters of the request, by the names of their handlers' arguments
    Raises Problem for parameters that cannot be understood, and ``within.missing``.
    """
    wanted = understand(kind, query)
    return wanted, fetch(
        pool, plan(kind, wanted, within, _size(pool, kind, wanted, within)), wanted, within
    )


def understand(kind: str, query: Mapping[str, Any]) -> Wanted:
    """What the parameters of a request ask for. Raises Problem."""
    number, size = number_and_size(query)
    try:
        ordered = order.order_by(query.get("order_by"), query.get("order"), kind)
    except order.OrderError as error:
        given = query.get("order_by") or query.get("order")
        raise bad_parameter("orderBy", error.message, given) from None
    expression = (query.get("search") or "").strip()
    try:
        condition = search.translate(query["search"], kind) if expression else Condition("", {})
    except search.SearchError as error:
        raise _bad_search(error.message) from None
    after = following(query["continue_"], ordered) if "continue_" in query else None
    return Wanted(after.number if after else number, size, ordered, condition, after)


def number_and_size(query: Mapping[str, Any]) -> tuple[int, int]:
    """Number and size of the page that a query asks for.

    Raises Problem when ``pageSize`` and its alias ``size`` differ.
    """
    sizes = {query[name] for name in ("page_size", "size") if name in query}
    if len(sizes) > 1:
        raise bad_parameter("size", "must not differ from pageSize", query["size"])
    return query.get("page", 1), sizes.pop() if sizes else DEFAULT_SIZE


def _size(pool: Pool, kind: str, wanted: Wanted, within: Within) -> int | None:
    """The size of a list in which the page lies so deep that it pays to ask; None: it does not."""
    whole = not within.where and not wanted.search.sql
    if not whole or wanted.offset <= DEEP or any(key.nullable for key in wanted.order.keys):
        return None
    [(count,)] = fetch_all(pool, COUNT.format(table=KINDS[kind].table), {})
    return int(count)


def plan(kind: str, wanted: Wanted, within: Within, count: int | None) -> Plan:
    """How the page is found.

    :param count: the size of the list where that is known: a page in its second half is looked for
        from the end
    """
    of, ordered, size, offset = KINDS[kind], wanted.order, wanted.size, wanted.offset
    parts = [part for part in (within.where, wanted.search.sql) if part]
    condition = " AND ".join(f"({part})" for part in parts) or "true"
    skip, limit, backward = offset, size + 1, count is not None and offset > count // 2
    if backward:
        assert count is not None
        # The last page is not full, and what is behind it is empty.
        skip, limit = max(0, count - offset - size - 1), max(0, min(size + 1, count - offset))
    keys = [f"k{index}" for index in range(len(ordered.keys))]
    statement = LIST.format(
        table=of.table,
        identity=of.identity,
        row=of.row,
        where=condition,
        keys=", ".join(f"{key.sql} AS {k}" for key, k in zip(ordered.keys, keys, strict=True)),
        texts=", ".join(f"page.{k}::text" for k in keys),
        order=ordered.reversed().sql if backward else ordered.sql,
        after=wanted.after.sql if wanted.after else "true",
        exists=within.exists,
        total=(TOTAL if parts else f"({COUNT})").format(table=of.table, where=condition),
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
    return Plan(statement, values, backward)


def fetch(pool: Pool, made: Plan, wanted: Wanted, within: Within) -> Found:
    """The rows of a page. Raises Problem for what only the database can tell of the parameters."""
    try:
        rows = fetch_all(pool, made.statement, made.values)
    except psycopg.errors.InvalidRegularExpression as error:
        raise _bad_search(f"the regular expression is not valid: {error.diag.message_primary}") from None
    except psycopg.DataError:
        if not wanted.after:
            raise
        raise bad_parameter("continue", STRANGE) from None
    except psycopg.errors.QueryCanceled:
        if not wanted.search.sql:
            raise
        raise _bad_search("takes too long; ask for less, or by fields that are indexed") from None
    if made.backward:
        rows.reverse()
    found, total, *_ = rows[0]
    if not found and within.missing:
        raise within.missing
    documents = [row[3] for row in rows if row[3] is not None][: wanted.size]
    last = rows[wanted.size - 1][2] if 0 < wanted.size < len(rows) else None
    return Found(total, documents, last)


def text(
    kind: str, wanted: Wanted, found: Found, shape: Shape, path: str, query: Sequence[tuple[str, str]]
) -> bytes:
    """The JSON text of a page.

    :param shape: what is shown of its items
    :param path: of the request, and its ``query``, which lead to the next page
    """
    link = ""
    # A client whose answers are shortened unasked does not know the link either.
    if found.last is not None and not shape.agent:
        token = Continuation.token(wanted.number + 1, found.last)
        kept = [(name, value) for name, value in query if name not in ("page", "continue")]
        link = f"{path}?{urlencode([*kept, ('continue', token)])}"
    return render(kind, wanted.number, found.total, [shape.text(one) for one in found.documents], link)


def render(kind: str, number: int, total: int, documents: list[bytes], link: str = "") -> bytes:
    """The JSON text of a list; the documents go in as they are."""
    head = f'{{"kind":"{kind}List","page":{number},"size":{len(documents)},"total":{total},'
    tail = f'],"next":{json.dumps(link)}}}' if link else "]}"
    # Joined once: a page may have megabytes.
    return b"".join([head.encode(), b'"items":[', *_commas(documents), tail.encode()])


def _commas(documents: list[bytes]) -> Iterator[bytes]:
    for index, one in enumerate(documents):
        if index:
            yield b","
        yield one


def _bad_search(message: str) -> Problem:
    return Problem(BAD_SEARCH, faults=[{"field": "search", "message": message, "constraint": "search"}])
