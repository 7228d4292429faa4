"""Lists: a page of documents, the total, and where the next page begins, in one statement."""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, LiteralString
from urllib.parse import urlencode

import flask
import psycopg

from hyperfleet import database, order, projection, search
from hyperfleet.errors import BAD_SEARCH, Problem, bad_parameter
from hyperfleet.kinds import KINDS
from hyperfleet.order import Order
from hyperfleet.resource import answer
from hyperfleet.validation import storable

DEFAULT_SIZE = 100
STRANGE = "must come from the next link of a page in this order"


# The page is found by keys alone, which an index holds, however deep it lies; their text and the
# documents are made for its rows only. One row more than asked for tells whether there is a next page.
# An empty page is one row without a document, so that the total is there all the same.
LIST = """
WITH page AS (
    SELECT {table}.{identity} AS identity, {keys}
    FROM {table} WHERE {where} AND {after} ORDER BY {order} LIMIT %(limit)s OFFSET %(skip)s
)
SELECT counted.found, counted.total, ARRAY[{texts}] AS keys,
       (SELECT item.document FROM {table} AS item WHERE {row}) AS document
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


def page_of(query: Mapping[str, Any]) -> tuple[int, int]:
    """Number and size of the page that a query asks for.

    Raises Problem when ``pageSize`` and its alias ``size`` differ.
    """
    sizes = {query[name] for name in ("page_size", "size") if name in query}
    if len(sizes) > 1:
        raise bad_parameter("size", "must not differ from pageSize", query["size"])
    return query.get("page", 1), sizes.pop() if sizes else DEFAULT_SIZE


def respond(
    kind: str,
    query: Mapping[str, Any],
    where: LiteralString | None = None,
    values: Mapping[str, Any] | None = None,
    *,
    exists: LiteralString = "SELECT 1",
    otherwise: Problem | None = None,
) -> flask.Response:
    """The page of a list that a query asks for.

    :param kind: ``Cluster``, ``NodePool`` or ``AdapterStatus``
    :param where: the condition that makes the list, before the search; None: the whole table
    :param values: what the parameters of ``where`` and ``exists`` stand for
    :param exists: a query that finds the list's owner
    :param otherwise: raised when it finds none
    """
    number, size = page_of(query)
    try:
        ordered = order.order_by(query.get("order_by"), query.get("order"), kind)
    except order.OrderError as error:
        raise bad_parameter("orderBy", error.message, query.get("order_by") or query["order"]) from None
    shape = projection.asked(kind)
    searched, searched_values = _condition(query.get("search"), kind)
    condition = " AND ".join(f"({part})" for part in (where, searched) if part) or "true"
    after, after_values, number = _after(query.get("continue_"), ordered, number)
    table = KINDS[kind]
    names = {"table": table.table, "identity": table.identity, "row": table.row, "where": condition}
    total = f"({COUNT})" if condition == "true" else TOTAL
    offset = 0 if after_values else (number - 1) * size
    skip, limit, backward = offset, size + 1, False
    if condition == "true" and offset > DEEP and not any(key.nullable for key in ordered.keys):
        [(count,)] = database.fetch_all(COUNT.format(table=table.table), {})
        if offset > count // 2:
            skip, limit, backward = max(0, count - offset - size - 1), size + 1, True
            # The last page is not full, and what is behind it is empty.
            limit = max(0, min(limit, count - offset))
    keys = [f"k{index}" for index in range(len(ordered.keys))]
    statement = LIST.format(
        **names,
        keys=", ".join(f"{key.sql} AS {k}" for key, k in zip(ordered.keys, keys, strict=True)),
        texts=", ".join(f"page.{k}::text" for k in keys),
        order=ordered.reversed().sql if backward else ordered.sql,
        after=after,
        exists=exists,
        total=total.format(table=table.table, where=condition),
    )
    bound = {
        **(values or {}),
        **ordered.values,
        **searched_values,
        **after_values,
        "size": size,
        "limit": limit,
        "offset": offset,
        "skip": skip,
        # A page that continues another one does not know how many come before it.
        "least": size + 1 if after_values else min(offset, 1),
    }
    try:
        rows = database.fetch_all(statement, bound)
    except psycopg.errors.InvalidRegularExpression as error:
        raise _bad_search(f"the regular expression is not valid: {error.diag.message_primary}") from None
    except psycopg.DataError:
        if not after_values:
            raise
        raise bad_parameter("continue", STRANGE) from None
    except psycopg.errors.QueryCanceled:
        if not searched:
            raise
        raise _bad_search("takes too long; ask for less, or by fields that are indexed") from None
    if backward:
        rows.reverse()
    found, total_count, *_ = rows[0]
    if not found and otherwise:
        raise otherwise
    items = [row[3] for row in rows if row[3] is not None][:size]
    # A client whose answers are shortened unasked does not know the link either.
    more = size > 0 and len(rows) > size and not shape.agent
    link = _next(number, rows[size - 1][2]) if more else ""
    text = render(kind, number, total_count, [shape.text(item) for item in items], link)
    return answer(text, 200, **shape.headers)


def render(kind: str, number: int, total: int, documents: list[str], link: str = "") -> str:
    """The JSON text of a list; the documents go in as they are."""
    head = f'{{"kind":"{kind}List","page":{number},"size":{len(documents)},"total":{total},'
    tail = f'],"next":{json.dumps(link)}}}' if link else "]}"
    return head + '"items":[' + ",".join(documents) + tail


def _condition(expression: str | None, kind: str) -> tuple[str, dict[str, Any]]:
    if not expression or not expression.strip():
        return "", {}
    try:
        condition = search.translate(expression, kind)
    except search.SearchError as error:
        raise _bad_search(error.message) from None
    return condition.sql, condition.values


def _bad_search(message: str) -> Problem:
    return Problem(BAD_SEARCH, faults=[{"field": "search", "message": message, "constraint": "search"}])


def _next(number: int, keys: list[str | None]) -> str:
    """The link that goes on behind the row with these keys, with the query that led here."""
    token = base64.urlsafe_b64encode(json.dumps([number + 1, *keys]).encode()).decode().rstrip("=")
    kept = [(k, v) for k, v in flask.request.args.items(multi=True) if k not in ("page", "continue")]
    return f"{flask.request.path}?{urlencode([*kept, ('continue', token)])}"


def _after(token: str | None, ordered: Order, number: int) -> tuple[str, dict[str, Any], int]:
    """The condition for what comes behind a row, by its keys: rows that are added or removed before
    it shift nothing.

    Raises Problem for a token that this API has not made for this order.
    """
    if token is None:
        return "true", {}, number
    try:
        number, *keys = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if type(number) is not int or not 1 < number <= 2**31 or len(keys) != len(ordered.keys):
            raise ValueError
        for key, value in zip(ordered.keys, keys, strict=True):
            if not (value is None and key.nullable) and not (isinstance(value, str) and storable(value)):
                raise ValueError
    except (ValueError, TypeError, UnicodeDecodeError, binascii.Error, RecursionError):
        raise bad_parameter("continue", STRANGE) from None
    values = {f"after{index}": value for index, value in enumerate(keys)}
    # (a, b) > (x, y) is a > x OR a = x AND b > y; written out, since directions may differ.
    condition = "false"
    for index, key in reversed(list(enumerate(ordered.keys))):
        bound = f"%(after{index})s::{key.cast}"
        if keys[index] is None:
            condition = f"({key.sql} IS NULL AND {condition})"
            continue
        sign = "<" if key.descending else ">"
        behind = f"{key.sql} {sign} {bound}"
        if key.nullable:
            behind = f"({behind} OR {key.sql} IS NULL)"
        condition = f"({behind} OR {key.sql} = {bound} AND {condition})"
        if not key.nullable:
            # Says the same of the first key alone, in the form that an index can start from.
            condition = f"({key.sql} {sign}= {bound} AND {condition})"
    return condition, values, number
