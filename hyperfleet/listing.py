"""Lists: one page of documents and the total, read in one statement."""

from collections.abc import Mapping
from typing import Any, LiteralString

import flask

from hyperfleet import database, search
from hyperfleet.errors import BAD_PARAMETER, BAD_SEARCH, Fault, Problem
from hyperfleet.resource import answer

DEFAULT_SIZE = 100

TABLES: dict[str, tuple[LiteralString, LiteralString]] = {
    "Cluster": ("clusters", "created_time DESC, id DESC"),
    "NodePool": ("node_pools", "created_time DESC, id DESC"),
    "AdapterStatus": ("adapter_statuses", "created_time DESC, adapter DESC"),
}

# An empty page is one row without a document, so that the total is there all the same.
LIST = """
WITH page AS (
    SELECT document FROM {table} WHERE {where} ORDER BY {order} LIMIT %(size)s OFFSET %(offset)s
)
SELECT counted.found, counted.total, page.document
FROM (
    SELECT EXISTS ({exists}) AS found, (SELECT count(*) FROM {table} WHERE {where}) AS total
) AS counted LEFT JOIN page ON true
"""


def page_of(query: Mapping[str, Any]) -> tuple[int, int]:
    """Number and size of the page that a query asks for.

    Raises Problem when ``pageSize`` and its alias ``size`` differ.
    """
    sizes = {query[name] for name in ("page_size", "size") if name in query}
    if len(sizes) > 1:
        fault: Fault = {
            "field": "size",
            "message": "must not differ from pageSize",
            "constraint": "alias",
        }
        raise Problem(BAD_PARAMETER, faults=[fault])
    return query.get("page", 1), sizes.pop() if sizes else DEFAULT_SIZE


def respond(
    kind: str,
    query: Mapping[str, Any],
    where: LiteralString = "true",
    values: Mapping[str, Any] | None = None,
    *,
    exists: LiteralString = "SELECT 1",
    otherwise: Problem | None = None,
) -> flask.Response:
    """The page of a list that a query asks for.

    :param kind: ``Cluster``, ``NodePool`` or ``AdapterStatus``
    :param where: the condition that makes the list, before the search
    :param values: what the parameters of ``where`` and ``exists`` stand for
    :param exists: a query that finds the list's owner
    :param otherwise: raised when it finds none
    """
    number, size = page_of(query)
    table, order = TABLES[kind]
    bound = {**(values or {}), "size": size, "offset": (number - 1) * size}
    if query.get("search", "").strip():
        try:
            condition = search.translate(query["search"], kind)
        except search.SearchError as error:
            fault: Fault = {"field": "search", "message": error.message, "constraint": "syntax"}
            raise Problem(BAD_SEARCH, faults=[fault]) from None
        where = f"({where}) AND ({condition.sql})"  # type: ignore[assignment]
        bound |= condition.values
    statement = LIST.format(table=table, where=where, order=order, exists=exists)
    rows = database.fetch_all(statement, bound)
    found, total, _ = rows[0]
    if not found and otherwise:
        raise otherwise
    return answer(render(kind, number, total, [row[2] for row in rows if row[2] is not None]))


def render(kind: str, number: int, total: int, documents: list[str]) -> str:
    """The JSON text of a list; the documents go in as they are."""
    head = f'{{"kind":"{kind}List","page":{number},"size":{len(documents)},"total":{total},"items":['
    return head + ",".join(documents) + "]}"
