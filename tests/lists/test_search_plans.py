"""The searches that clients repeat all day read indexes, whatever the size of the fleet."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import declared_kinds
import psycopg
import pytest

from hyperfleet import declared, kinds
from hyperfleet.lists import page

pytestmark = pytest.mark.slow

CLUSTERS = 20_000

Search = tuple[str, str]
SEARCHES: dict[str, Search] = {
    "nothing": ("Cluster", ""),
    "frequent label": ("Cluster", "labels.env='prod'"),
    "label": ("Cluster", "labels.region='region-3'"),
    "rare label": ("Cluster", "labels.customer='customer-50'"),
    "no such label": ("Cluster", "labels.customer='nobody'"),
    "two labels": ("Cluster", "labels.env='prod' and labels.tier='gold'"),
    "two labels, one rare": ("Cluster", "labels.env='prod' and labels.customer='customer-50'"),
    "three labels": ("Cluster", "labels.env='prod' and labels.tier='gold' and labels.region='region-1'"),
    "name": ("Cluster", "name='cluster-500'"),
    "names": ("Cluster", "name in ('cluster-500','cluster-501')"),
    "id": ("Cluster", "id='0199a000-0000-7000-8000-000000000000'"),
    "not reconciled": ("Cluster", "status.conditions.Reconciled='False'"),
    "not ready": ("Cluster", "status.conditions.Ready='False'"),
    "not reconciled, old news": (
        "Cluster",
        "status.conditions.Reconciled='False'"
        " and status.conditions.Reconciled.last_updated_time < '2026-09-30T23:59:50Z'",
    ),
    "reconciled, next to none old": (
        "Cluster",
        "status.conditions.Ready='True'"
        " and status.conditions.Ready.last_updated_time < '2026-09-30T23:30:00Z'",
    ),
    "not reconciled, none old": (
        "Cluster",
        "status.conditions.Reconciled='False'"
        " and status.conditions.Reconciled.last_updated_time < '2020-01-01T00:00:00Z'",
    ),
    "unavailable": ("Cluster", "status.conditions.Available='False'"),
    "no such status": ("Cluster", "status.conditions.LastKnownReconciled='Unknown'"),
    "phase": ("Cluster", "status.phase='Failed'"),
    "no such phase": ("Cluster", "status.phase='Lost'"),
    "label and condition": ("Cluster", "labels.region='region-3' and status.conditions.Ready='False'"),
    "deleted": ("Cluster", "deleted_time is not null"),
    "created": ("Cluster", "created_time < '2026-01-01T00:10:00Z'"),
    "owner": ("NodePool", "owner_id='{owner}'"),
    "owner's reference": ("NodePool", "owner_references.id='{owner}'"),
    "owner and label": ("NodePool", "owner_id='{owner}' and labels.env='prod'"),
    "name of node pools": ("NodePool", "name='workers'"),
    "label of node pools": ("NodePool", "labels.region='region-3'"),
    "node pools not reconciled": ("NodePool", "status.conditions.Reconciled='False'"),
    "node pools with old news": (
        "NodePool",
        "status.conditions.Reconciled='False'"
        " and status.conditions.Reconciled.last_updated_time < '2026-09-30T23:59:50Z'",
    ),
    "phase of node pools": ("NodePool", "status.phase='Failed'"),
}
# A declared kind, which shares its table with others, is as quick to search as clusters are.
OF_CHANNELS: dict[str, Search] = {
    f"{name} of channels": ("Channel", search)
    for name, (kind, search) in SEARCHES.items()
    if kind == "Cluster"
}


@pytest.fixture
def channels() -> Iterator[None]:
    """Makes the kind Channel known for the test."""
    kinds.declare(declared.kinds_of(declared_kinds.parsed(list(declared_kinds.LIKE))))
    yield
    kinds.declare(declared.kinds_of(declared_kinds.of({})))


@pytest.fixture
def benchmark(root: Path) -> dict[str, Any]:
    """The functions of the benchmark, which makes the same rows in larger numbers."""
    return runpy.run_path(str(root / "benchmarks" / "search.py"))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def test_first_pages_are_read_from_indexes(sql: psycopg.Connection, benchmark: dict[str, Any]) -> None:
    benchmark["load"](sql, 1, CLUSTERS)
    assert scanned(sql, benchmark, SEARCHES) == {}


def test_totals_of_labels_are_counted_without_a_look_at_the_resources(
    sql: psycopg.Connection, benchmark: dict[str, Any]
) -> None:
    benchmark["load"](sql, 1, CLUSTERS)
    for search in (
        "labels.env='prod'",
        "labels.env in ('prod', 'none') and labels.tier='gold'",
        "(labels.env='prod' and labels.tier='gold') and labels.region='region-1'",
    ):
        counted = page.understand("Cluster", {"search": search, "page_size": 20})
        uncounted = page.understand("Cluster", {"search": search, "page_size": 20, "total": "none"})
        looked = "SELECT count(*) FROM clusters WHERE " + counted.search.sql
        [(total,)] = sql.execute(looked, counted.search.values).fetchall()
        assert total > 100
        made, other = (page.plan("Cluster", one, page.Within(), None) for one in (counted, uncounted))
        assert sql.execute(made.statement, made.values).fetchall()[0][1] == total
        assert clusters_read(sql, made) == clusters_read(sql, other), search


def clusters_read(sql: psycopg.Connection, plan: page.Plan) -> float:
    explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {plan.statement}"
    [(found,)] = sql.execute(explained, plan.values, prepare=False).fetchall()
    steps = [one for one in nodes(found[0]["Plan"]) if one.get("Relation Name") == "clusters"]
    return sum(one["Actual Rows"] * one["Actual Loops"] for one in steps)


@pytest.mark.usefixtures("channels")
def test_first_pages_of_declared_kinds_are_read_from_indexes(
    sql: psycopg.Connection, benchmark: dict[str, Any]
) -> None:
    benchmark["load_channels"](sql, 1, CLUSTERS)
    assert scanned(sql, benchmark, OF_CHANNELS) == {}


def scanned(
    sql: psycopg.Connection, benchmark: dict[str, Any], searches: dict[str, Search]
) -> dict[str, Any]:
    """The searches that read whole tables, or much of one, and their plans."""
    bad = {}
    for name, (kind, search) in searches.items():
        query, values = benchmark["statement"](sql, kind, search)
        row = sql.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", values, prepare=False).fetchone()
        assert row
        steps = list(nodes(row[0][0]["Plan"]))
        scans = [step["Relation Name"] for step in steps if step["Node Type"].endswith("Seq Scan")]
        # What a step reads, and throws away, is more than the page, but no share of the table.
        read = max(
            (step["Actual Rows"] + step.get("Rows Removed by Filter", 0)) * step["Actual Loops"]
            for step in steps
        )
        # With a third label the planner's sample of the table decides in which order they are looked
        # up, and at times all owners of the first are read from its index: a quarter of the table.
        share = 2 if name.startswith("three labels") else 8
        if scans or read > CLUSTERS // share:
            bad[name] = (scans, read, json.dumps(row[0][0]["Plan"], indent=1))
    return bad
