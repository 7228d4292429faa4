"""What settings that are lists of mappings have in common: how they are written, and what is not set."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperfleet.nearest import hint

# Values that mean "not set" in YAML or JSON.
EMPTY = (None, "", "~", "null")
# How a file or JSON says yes and no, in lower case.
BOOLEANS = {"true": True, "false": False}


def items_of(value: Any, what: str) -> Sequence[Any]:
    """Returns the items of a list, or of its JSON. Raises ValueError, with a sentence.

    :param what: the noun for the items in messages
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("this is not JSON.") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"this is not a list of {what}.")
    return value


def members_of(
    given: Mapping[Any, Any], members: Iterable[str], which: str, what: str
) -> dict[str, Any]:
    """Returns the members of a mapping that are set. Raises ValueError for an unknown one.

    :param which: the item in messages; ``what`` is its noun
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in members:
            meant = hint(name, members) or "."
            raise ValueError(f"{which}: {name[:100]} is not a member of {what}{meant}")
        if value not in EMPTY:
            found[name] = value
    return found
