"""Lists of what a tenant sees.

A caller sees the resources that have all of the caller's dimensions, and maybe more. The tenancies that
these resources have are remembered: an index yields the rows of one tenancy in the order of a list, but
not those of all that contain some dimensions. Each list checks, in its own statement, for new tenancies.

Most tenants have so few resources that a search should look at all of these; the planner would combine
their index with one of the whole table, which takes longer the more other tenants have.
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

# The last part of the conditions is that of the indexes.
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

# How many callers' tenancies are remembered, and for how many seconds, since their resources increase.
CALLERS, MEMORY = 10_000, 60.0
# The most resources that count as few.
FEW = 10_000
# Each retry means that another tenant has appeared just then.
TRIES = 10


class More(Exception):
    """There are tenancies that are not remembered yet."""


class Seen(NamedTuple):
    """What a caller sees.

    :param few: whether there are only a few resources
    :param until: when this expires, in monotonic time
    """

    tenancies: list[Jsonb]
    few: bool
    until: float


class TenantLists:
    """Reads pages for the callers of tenants."""

    def __init__(self) -> None:
        # By the text of the caller's tenancy.
        self.known: OrderedDict[str, Seen] = OrderedDict()

    def page(
        self, reader: Reader, kind: str, query: Mapping[str, Any], tenant: Mapping[str, str]
    ) -> tuple[Wanted, Found]:
        """Does the same as :func:`hyperfleet.lists.page.page`, for what a tenant sees of a kind."""
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
                    # The counts are of resources, not of these, which are not counted.
                    mine = mine._replace(counted="", few=False)
                return page.page(reader, kind, query, mine)
            except More:
                self.known.pop(caller, None)
                # A standby may show a new tenancy before the primary does.
                reader = reader.of_primary()
        raise Problem(errors.BUSY)


def within(tenant: Mapping[str, str], seen: list[Jsonb], *, few: bool) -> Within:
    """Returns the part of a list that a caller sees; the list raises More if there are new tenancies.

    :param seen: the tenancies that have all dimensions of the caller
    """
    values: dict[str, Any] = {"tenancy": Jsonb(tenant), "tenancies": seen}
    where = SEVERAL
    if len(seen) == 1:
        where, values["only"] = ONE, seen[0]
    # A plan for any tenant would scan all resources, newest first, for those of this one, which looks
    # cheap if there are few tenants or one has most of the resources.
    return Within(where, values, ALL_KNOWN, More(), COUNT, few, steady=False)
