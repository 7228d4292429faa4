"""Where the next page of a list begins: behind a row, whatever is added or removed before it."""

import base64
import binascii
import json
from typing import Any, NamedTuple

from hyperfleet.errors import bad_parameter
from hyperfleet.lists.order import Order
from hyperfleet.storable import storable

STRANGE = "must be taken from the next link of a page in the same order"


class Continuation(NamedTuple):
    """The page that continues another one.

    :param number: of the page
    :param sql: the condition for what comes behind the other one's last row, by its keys
    :param values: of the condition
    """

    number: int
    sql: str
    values: dict[str, Any]

    @staticmethod
    def token(number: int, keys: list[str | None]) -> str:
        """What :func:`following` takes: the number of the page, and the keys of the row before it."""
        text = json.dumps([number, *keys], ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def following(token: str, ordered: Order) -> Continuation:
    """What a token stands for.

    Raises Problem for one that this API has not made for this order.
    """
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
    return Continuation(number, condition, values)
