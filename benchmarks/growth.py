"""Whether it stays as fast as it is: with more rows, and over a working day's worth of requests."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psycopg

from benchmarks import search
from benchmarks.load import Target, family, memory_of, served

# What must not depend on how many rows there are.
FLAT = ("get one", "list 20", "list 100", "search by name", "report", "create")
# What clients send all day, in about these shares: Sentinel's lists, adapters' reads and reports.
DAY = (
    "list 100 by condition",
    "get one",
    "report",
    "get one",
    "report",
    "node pools",
    "patch",
    "create",
)


def grow(conninfo: str, sizes: Sequence[int], clients: int, seconds: float) -> list[dict[str, Any]]:
    """Measures the same at several sizes of the tables, and prints it."""
    figures: list[dict[str, Any]] = []
    with psycopg.connect(conninfo, autocommit=True) as conn:
        for before, size in zip([0, *sizes], sizes, strict=False):
            began = time.monotonic()
            search.load(conn, before + 1, size)
            click.echo(f"{size:,} clusters, loaded in {time.monotonic() - began:.0f} s", err=True)
            with served(conninfo, 1) as target:
                target.ids = [str(row[0]) for row in conn.execute("SELECT id FROM clusters LIMIT 1000")]
                for name in FLAT:
                    found = target.measure(name, clients, seconds)
                    figures.append({"rows": size, "operation": name, **found._asdict()})
                    click.echo(f"  {name:22}{found.rate:7.0f}/s  p99 {found.p99:6.1f} ms")
    for name in FLAT:
        rates = [one["rate"] for one in figures if one["operation"] == name]
        click.echo(f"{name:24}" + " ".join(f"{rates[0] / rate:6.2f}" for rate in rates))
    return figures


def descriptors_of(target: Target) -> int:
    """Descriptors that are open in the service's processes."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid, _ in family(target.process))


def soak(conninfo: str, rows: int, clients: int, minutes: float) -> list[dict[str, Any]]:
    """Lets clients send what they send all day, as fast as they can, and prints what the service holds
    after each round.
    """
    figures: list[dict[str, Any]] = []
    with served(conninfo, 0) as target, psycopg.connect(conninfo, autocommit=True) as conn:
        target.fill(rows)
        requests, end = 0, time.monotonic() + minutes * 60
        while time.monotonic() < end:
            for name in DAY:
                began = time.monotonic()
                found = target.measure(name, clients, 3)
                requests += round(found.rate * (time.monotonic() - began))
                if found.failed:
                    click.echo(f"{found.failed} of {name} failed", err=True)
            [(backends,)] = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hyperfleet'"
            )
            figures.append(
                {
                    "requests": requests,
                    "memory": memory_of(target.process),
                    "descriptors": descriptors_of(target),
                    "connections": backends,
                }
            )
            click.echo("  ".join(f"{name} {value:,.0f}" for name, value in figures[-1].items()))
    return figures
