"""Lists of what a tenant sees.

A caller sees what has all of the caller's dimensions, and maybe more. Which tenancies these are is
remembered, since an index gives the rows with one tenancy in the order of a list, and those that contain
something not. Each list looks whether there are more by now, in the statement that reads it.

Most tenants have so few resources that a search best looks at all of these; what the planner would do,
combine their index with one of the whole table, takes longer the more others have.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, LiteralString, NamedTuple

from psycopg.types.json import Jsonb

from hyperfleet import errors
from hyperfleet.database.reads import Reader
from hyperfleet.errors import Problem
from hyperfleet.kinds import LISTED
from hyperfleet.lists import page
from hyperfleet.lists.page import Found, Wanted, Within
from hyperfleet.settings import tenancy

# Tenancies are never forgotten, so a primary knows all that a standby does. The last condition is that
# of the indexes.
SEEN = """/* tenants_seen */
SELECT tenancy, (SELECT coalesce(sum(difference), 0)::bigint FROM tenant_counts
                 WHERE tenant_counts.tenancy = tenants.tenancy)
FROM tenants WHERE tenancy @> %(tenancy)s
"""
ONE: LiteralString = "tenancy = %(only)s AND tenancy <> '{}'"
SEVERAL: LiteralString = "tenancy = ANY(%(tenancies)s::jsonb[]) AND tenancy <> '{}'"
ALL_KNOWN: LiteralString = """
SELECT 1 WHERE NOT EXISTS (
    SELECT FROM tenants WHERE tenancy @> %(tenancy)s AND tenancy <> ALL(%(tenancies)s::jsonb[])
)"""
COUNT: LiteralString = """
SELECT coalesce(sum(difference), 0)::bigint FROM tenant_counts
WHERE table_name IN ({counted}) AND tenancy = ANY(%(tenancies)s::jsonb[])"""

# Callers whose tenancies are remembered, and for how many seconds, since they grow.
CALLERS, MEMORY = 10_000, 60.0
# Resources that are few.
FEW = 10_000
# Each try but the last one has met a tenant who had come just then.
TRIES = 10


class More(Exception):
    """There are more tenancies than those that are remembered."""


class Seen(NamedTuple):
    """What a caller sees.

    :param few: whether that are few resources
    :param until: when it is asked anew
    """

    tenancies: list[Jsonb]
    few: bool
    until: float


class Tenants:
    """Reads pages for callers of tenants."""

    def __init__(self) -> None:
        # By the text of the caller's tenancy.
        self.known: OrderedDict[str, Seen] = OrderedDict()

    def page(
        self, reader: Reader, kind: str, query: Mapping[str, Any], tenant: Mapping[str, str]
    ) -> tuple[Wanted, Found]:
        """As :func:`hyperfleet.lists.page.page`, of all that a tenant sees of a kind."""
        caller = tenancy.text(tenant)
        for _ in range(TRIES):
            seen = self.known.get(caller)
            if seen is None or seen.until < time.monotonic():
                rows = reader.newest(SEEN, {"tenancy": Jsonb(tenant)})
                few = sum(count for _, count in rows) <= FEW
                seen = Seen([Jsonb(one) for one, _ in rows], few, time.monotonic() + MEMORY)
            self.known[caller] = seen
            self.known.move_to_end(caller)
            if len(self.known) > CALLERS:
                self.known.popitem(last=False)
            try:
                mine = within(tenant, seen.tenancies, few=seen.few)
                if kind in LISTED:
                    # How many resources there are says nothing of these, and nobody counts them.
                    mine = mine._replace(counted="", few=False)
                return page.page(reader, kind, query, mine)
            except More:
                self.known.pop(caller, None)
        raise Problem(errors.BUSY)


def within(tenant: Mapping[str, str], seen: list[Jsonb], *, few: bool) -> Within:
    """What a caller sees of a kind; the list raises More where that is more by now.

    :param seen: the tenancies that have all dimensions of the caller
    """
    values: dict[str, Any] = {"tenancy": Jsonb(tenant), "tenancies": seen}
    where = SEVERAL
    if len(seen) == 1:
        where, values["only"] = ONE, seen[0]
    # A plan for any tenant would look for the resources of each among all, the newest first: where there
    # are few tenants, or one has most, that looks good.
    return Within(where, values, ALL_KNOWN, More(), COUNT, few, steady=False)
