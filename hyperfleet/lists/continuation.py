"""Where the next page of a list begins: after a given row, whatever is added or removed before it."""

import base64
import json
from typing import Any, NamedTuple

from hyperfleet.errors import bad_parameter
from hyperfleet.lists.order import Order
from hyperfleet.storable import storable

STRANGE = "must be taken from the next link of a page in the same order"


class Continuation(NamedTuple):
    """A page that continues another one.

    :param number: the page's number
    :param sql: the condition for rows after the other page's last one, by their keys
    :param values: the values of the condition
    """

    number: int
    sql: str
    values: dict[str, Any]

    @staticmethod
    def token(number: int, keys: list[str | None]) -> str:
        """Returns the token that :func:`following` takes: a page number and the last row's keys."""
        text = json.dumps([number, *keys], ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def following(token: str, ordered: Order) -> Continuation:
    """Returns what a token stands for.

    Raises Problem if this API has not made the token for this order.
    """
    try:
        number, *keys = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if type(number) is not int or not 1 < number <= 2**31 or len(keys) != len(ordered.keys):
            raise ValueError
        for key, value in zip(ordered.keys, keys, strict=True):
            if not (value is None and key.nullable) and not (isinstance(value, str) and storable(value)):
                raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise bad_parameter("continue", STRANGE) from None
    values = {f"after{index}": value for index, value in enumerate(keys)}
    # (a, b) > (x, y) means a > x OR a = x AND b > y; written out, since directions may differ.
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
            # Implied by the above, but in a form from which an index scan can start.
            condition = f"({key.sql} {sign}= {bound} AND {condition})"
    return Continuation(number, condition, values)
