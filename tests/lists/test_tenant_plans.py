"""A tenant's lists read little beyond the tenant's own rows, whatever other tenants have."""

import json
from typing import Any

import plans
import psycopg
import pytest
from conftest import CLUSTERS
from psycopg.types.json import Jsonb

from hyperfleet.kinds import ALL
from hyperfleet.lists import page
from hyperfleet.lists.page import Within
from hyperfleet.lists.tenants import within

pytestmark = pytest.mark.slow

TENANTS = 100
# The clusters of each tenant, and the rows that a step may read, which include tenancies and a page.
OWN = CLUSTERS // TENANTS
MOST = 5 * OWN

GIVE = """
UPDATE clusters SET tenancy = jsonb_build_object(
    'org', 'org-' || substr(name, 9)::int % {tenants}, 'project', 'p')
"""
GIVE_BELOW = """
UPDATE node_pools SET tenancy = clusters.tenancy FROM clusters WHERE clusters.id = owner_id
"""
OWN_SEARCHES = (
    "",
    "labels.env='prod'",
    "labels.env='prod' and labels.tier='gold'",
    "labels.customer='customer-50'",
    "labels.customer='nobody'",
    "status.conditions.Ready='False'",
    "status.conditions.Reconciled='False'"
    " and status.conditions.Reconciled.last_updated_time < '2026-09-30T23:59:50Z'",
    "status.phase='Lost'",
    "name='cluster-500'",
    "spec.nodes > 1000",
    "deleted_time is not null",
    "tenancy.project='q'",
)
ONE, WHOLE = {"org": "org-5", "project": "p"}, {"org": "org-5"}


def read(sql: psycopg.Connection, kind: str, query: dict[str, Any], of: Within) -> tuple[float, Any]:
    """Returns the most rows that a step reads, and the plan, which must not scan a large table."""
    wanted = page.understand(kind, query, lookup=not of.few)
    made = page.plan(kind, wanted, of, None)
    found = plans.steps(sql, made.statement, made.values)
    scanned = {one["Relation Name"] for one in found if one["Node Type"].endswith("Seq Scan")}
    assert not scanned & {"clusters", "node_pools", "labels"}, json.dumps(found[0], indent=1)
    return max(map(plans.rows, found)), found[0]


def test_lists_of_a_tenant_read_at_most_five_times_the_rows_that_it_has(
    large: psycopg.Connection,
) -> None:
    sql = large
    # Each update would add a change to the feed, which lists do not read.
    for table in ("clusters", "node_pools"):
        sql.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_changed")
    sql.execute(GIVE.format(tenants=TENANTS))  # type: ignore[arg-type]
    sql.execute(GIVE_BELOW)
    sql.execute("VACUUM ANALYZE")
    seen = [Jsonb(ONE)]
    bad = {}
    for kind in ("Cluster", "NodePool", ALL):
        for search in OWN_SEARCHES:
            for query in ({}, {"order_by": "name"}, {"page": 2}):
                for tenant in (ONE, WHOLE):
                    given = {"search": search, **query}
                    rows, plan = read(sql, kind, given, within(tenant, seen, few=True))
                    if rows > MOST:
                        bad[kind, search, str(query)] = (rows, json.dumps(plan, indent=1))
    # Callers who see all tenants find the rows of one just as quickly.
    for kind in ("Cluster", "NodePool", ALL):
        for search in ("tenancy.org='org-5'", "tenancy.org='org-5' and tenancy.project='p'"):
            rows, plan = read(sql, kind, {"search": search}, Within())
            if rows > MOST:
                bad[kind, search, "all"] = (rows, json.dumps(plan, indent=1))
    assert [(*one, rows) for one, (rows, _) in bad.items()] == []
