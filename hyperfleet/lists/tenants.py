"""Lists of what a tenant sees.

A caller sees what has all of the caller's dimensions, and maybe more. Which tenancies these are is
remembered, since an index gives the rows with one tenancy in the order of a list, and those that contain
something not. Each list looks whether there are more by now, in the statement that reads it.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from hyperfleet import errors, tenancy
from hyperfleet.database.reads import Reader
from hyperfleet.errors import Problem
from hyperfleet.lists import page
from hyperfleet.lists.page import Found, Wanted, Within

# Tenancies are never forgotten, so a primary knows all that a standby does. The last condition is that
# of the indexes.
SEEN = "/* tenants_seen */ SELECT tenancy FROM tenants WHERE tenancy @> %(tenancy)s"
ONE: LiteralString = "tenancy = %(only)s AND tenancy <> '{}'"
SEVERAL: LiteralString = "tenancy = ANY(%(tenancies)s::jsonb[]) AND tenancy <> '{}'"
ALL_KNOWN: LiteralString = """
SELECT 1 WHERE NOT EXISTS (
    SELECT FROM tenants WHERE tenancy @> %(tenancy)s AND tenancy <> ALL(%(tenancies)s::jsonb[])
)"""
COUNT: LiteralString = """
SELECT coalesce(sum(difference), 0)::bigint FROM tenant_counts
WHERE table_name IN ({counted}) AND tenancy = ANY(%(tenancies)s::jsonb[])"""

# Callers whose tenancies are remembered.
CALLERS = 10_000
# Each try but the last one has met a tenant who had come just then.
TRIES = 10


class More(Exception):
    """There are more tenancies than those that are remembered."""


class Tenants:
    """Reads pages for callers of tenants."""

    def __init__(self) -> None:
        # By the text of the caller's tenancy.
        self.known: OrderedDict[str, list[Jsonb]] = OrderedDict()

    def page(
        self, reader: Reader, kind: str, query: Mapping[str, Any], tenant: Mapping[str, str]
    ) -> tuple[Wanted, Found]:
        """As :func:`hyperfleet.lists.page.page`, of all that a tenant sees of a kind."""
        caller = tenancy.text(tenant)
        for _ in range(TRIES):
            seen = self.known.get(caller)
            if seen is None:
                rows = reader.newest(SEEN, {"tenancy": Jsonb(tenant)})
                seen = self.known[caller] = [Jsonb(one) for (one,) in rows]
            self.known.move_to_end(caller)
            if len(self.known) > CALLERS:
                self.known.popitem(last=False)
            try:
                return page.page(reader, kind, query, _within(tenant, seen))
            except More:
                self.known.pop(caller, None)
        raise Problem(errors.BUSY)


def _within(tenant: Mapping[str, str], seen: list[Jsonb]) -> Within:
    values = {"tenancy": Jsonb(tenant), "tenancies": seen}
    if len(seen) == 1:
        return Within(ONE, {**values, "only": seen[0]}, ALL_KNOWN, More(), COUNT)
    return Within(SEVERAL, values, ALL_KNOWN, More(), COUNT)
