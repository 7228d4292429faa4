"""The order of a list, from the parameters of a request to SQL."""

import re
from dataclasses import dataclass, replace
from typing import Any

from hyperfleet.kinds import KINDS
from hyperfleet.lists import columns
from hyperfleet.nearest import expected

MAX_KEYS = 8
# Members that may be too long for the link to the next page; only this many characters are compared.
LONG = {"reason", "message", "path"}
COUNTED = 100

# Field names of November 2025: clients of that contract send the first one by default.
FORMER = {"created_at": "created_time", "updated_at": "updated_time"}

KEY = re.compile(rf"\s*({columns.NAME})(?:\s+((?ai:asc|desc)))?\s*")
KEYS = "fields separated by commas, each with or without asc or desc, such as name desc,created_time"
# The SQL types to which key values from a continuation token are cast.
CASTS: dict[str, str] = {
    "text": "text",
    "moment": "text",
    "uuid": "uuid",
    "number": "numeric",
    "time": "timestamptz",
}


class OrderError(columns.Wrong):
    """An order that cannot be understood; ``message`` says why."""


@dataclass(frozen=True)
class Key:
    """One key of an order: an SQL expression over the kind's table, and its direction.

    Rows without a value for a ``nullable`` key come last in either direction. ``cast`` is the SQL type
    that a bound value of the key must be cast to.
    """

    name: str
    sql: str
    descending: bool
    nullable: bool
    cast: str


@dataclass(frozen=True)
class Order:
    """An order whose last key is unique in a list, and the values to bind."""

    keys: tuple[Key, ...]
    values: dict[str, Any]

    def reversed(self) -> "Order":
        """Returns the opposite order; valid only if no key is nullable."""
        turned = (replace(key, descending=not key.descending) for key in self.keys)
        return replace(self, keys=tuple(turned))

    @property
    def sql(self) -> str:
        """The SQL to follow ORDER BY."""
        return ", ".join(
            key.sql + (" DESC" if key.descending else " ASC") + (" NULLS LAST" if key.nullable else "")
            for key in self.keys
        )


def order_by(order: str | None, direction: str | None, kind: str) -> Order:
    """Returns the order that a list request asks for; newest first by default. Raises OrderError.

    :param order: the value of ``orderBy``, such as ``name desc,created_time``
    :param direction: the value of its alias ``order``: the same, or asc or desc as the default direction
    """
    order, direction = columns.given(order or ""), columns.given(direction or "")
    if order.lower() in ("asc", "desc"):
        if direction and direction.lower() != order.lower():
            raise OrderError(f"must name fields, not only {order}, if order is given too")
        order, direction = "", order
    if direction and direction.lower() not in ("asc", "desc"):
        if order and order != direction:
            raise OrderError("orderBy and order must not both name fields")
        order, direction = direction, ""
    default = direction.lower() or ("asc" if order else "desc")
    values, bind = columns.collector("o")
    identity, usual = KINDS[kind].identity, KINDS[kind].order
    keys: dict[str, Key] = {}
    found = columns.separated(order or usual, KEY, OrderError, KEYS)
    for said, given in [one.groups() for one in found]:
        former = FORMER.get(said, said)
        name = former if former in columns.columns(kind) else said
        key = _key(name, (given or default).lower() == "desc", kind, bind)
        keys.setdefault(name, key)
    if len(keys) > MAX_KEYS:
        raise OrderError(f"an order has at most {MAX_KEYS} fields")
    keys.setdefault(identity, _key(identity, next(iter(keys.values())).descending, kind, bind))
    # Keys after the unique one make no difference.
    last = list(keys).index(identity)
    return Order(tuple(keys.values())[: last + 1], values)


def _key(name: str, descending: bool, kind: str, bind: columns.Bind) -> Key:
    try:
        field = columns.resolve(name, kind, bind)
    except columns.UnknownField:
        field = None
    if field is None or field.type in ("any", "reference"):
        good = [
            good
            for good in columns.names(kind)
            if good != "spec.PATH" and not good.startswith("references.")
        ]
        raise OrderError(f"cannot order by {name}; {expected(name, good)}")
    # By code point, whatever the database's locale.
    collation = ' COLLATE "C"' if field.type == "text" else ""
    # Labels stored before their syntax was checked may be long.
    long = field.type == "text" and (field.label or columns.segments(name)[-1] in LONG)
    sql = f"left({field.sql}, {COUNTED}){collation}" if long else f"{field.sql}{collation}"
    return Key(name, sql, descending, field.nullable, CASTS[field.type])
