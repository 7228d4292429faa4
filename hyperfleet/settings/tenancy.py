"""What identifies a tenant: the headers in which a gateway sends it, and their possible values."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperfleet.settings.headers import HEADER, NO_NAMES, taken
from hyperfleet.settings.members import BOOLEANS, EMPTY, items_of, members_of

# The syntax of a dimension's key, and of a caller's value for it.
WORD = re.compile(r"[A-Za-z0-9._-]{1,63}", re.ASCII)
# The most dimensions; the keys of indexes contain them all.
MOST = 8


@dataclass(frozen=True)
class Dimension:
    """A dimension of tenants, such as the organization.

    :param header: the header in which a gateway sends it
    :param key: its name in a resource's tenancy
    :param required: whether callers without it are refused
    """

    header: str
    key: str
    required: bool


MEMBERS = tuple(Dimension.__dataclass_fields__)


def parse(value: Any) -> tuple[Dimension, ...]:
    """Parses a list of mappings, or its JSON, into dimensions. Raises ValueError, with a sentence."""
    if value in EMPTY:
        return ()
    given = items_of(value, "dimensions")
    if len(given) > MOST:
        raise ValueError(f"there are {len(given)} dimensions; at most {MOST} are possible.")
    found: dict[str, Dimension] = {}
    keys: set[str] = set()
    for number, one in enumerate(given, 1):
        dimension = _dimension(number, one)
        if dimension.header.lower() in found:
            raise ValueError(f"dimension {number}: another has the header {dimension.header}.")
        if dimension.key in keys:
            raise ValueError(f"dimension {number}: another has the key {dimension.key}.")
        found[dimension.header.lower()] = dimension
        keys.add(dimension.key)
    return tuple(found.values())


def _dimension(number: int, members: Any) -> Dimension:
    if not isinstance(members, Mapping):
        raise ValueError(f"dimension {number} is not a mapping with header and key.")
    given = members_of(members, MEMBERS, f"dimension {number}", "a dimension")
    for name in ("header", "key"):
        if not given.get(name):
            raise ValueError(f"dimension {number} has no {name}.")
    header = _header(f"dimension {number}: header", given["header"])
    key, required = given["key"], BOOLEANS.get(str(given.get("required", False)).lower())
    if not isinstance(key, str) or not WORD.fullmatch(key):
        raise ValueError(
            f"dimension {number}: key cannot be {str(key)[:100]!r}: at most 63 letters, digits, '.', "
            "'_' and '-'."
        )
    if required is None:
        raise ValueError(f"dimension {number}: required must be true or false.")
    return Dimension(header, key, required)


def _header(what: str, value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    name = text.lower()
    if taken(name):
        raise ValueError(f"{what} cannot be {text}, which requests use for something else.")
    if not HEADER.fullmatch(text) or name in NO_NAMES:
        raise ValueError(f"{what} cannot be {str(value)[:100]!r}.")
    return text


def contradictions(system_header: str, dimensions: Sequence[Dimension]) -> Iterator[str]:
    """Yields a sentence for each reason why tenants cannot be told apart with these settings."""
    if not system_header:
        yield "--tenant-enabled needs --tenant-system-header, with which a gateway marks system callers."
    else:
        try:
            _header("--tenant-system-header", system_header)
        except ValueError as error:
            yield str(error)
    if not dimensions:
        yield "--tenant-enabled needs --tenant-dimensions: the headers that name a request's tenant."
    elif not any(one.required for one in dimensions):
        yield "--tenant-dimensions: at least one dimension must be required: else callers may have none."
    if system_header.lower() in {one.header.lower() for one in dimensions}:
        yield "--tenant-dimensions: the header of --tenant-system-header is also that of a dimension."


def faults(tenancy: Any) -> str:
    """Returns why something from elsewhere cannot be a tenancy here; empty if it can."""
    if not isinstance(tenancy, Mapping) or len(tenancy) > MOST:
        return f"its tenancy is not a mapping of at most {MOST} strings"
    for key, value in tenancy.items():
        if not (isinstance(value, str) and WORD.fullmatch(key) and WORD.fullmatch(value)):
            return "its tenancy has a key or a value that no tenant can have here"
    return ""


def text(tenancy: Mapping[str, str]) -> str:
    """Returns a tenancy as text: equal for equal tenancies, empty for none."""
    return json.dumps(tenancy, sort_keys=True) if tenancy else ""
