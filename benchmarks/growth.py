"""Whether the service keeps its speed: with more rows, and over a working day's worth of requests."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import psycopg

from benchmarks import search
from benchmarks.load import Target, family, memory_of, served

# The operations whose speed must not depend on the number of rows.
FLAT = ("get one", "list 20", "list 100", "search by name", "report", "create")
CLUSTERS = "SELECT id FROM clusters LIMIT 1000"
CHANNELS = "SELECT id FROM resources LIMIT 1000"
# The kind measured alongside clusters; declared kinds share a table.
DECLARED = "entities: [{kind: Channel, plural: channels}]\n"
# What clients send all day, in roughly these proportions: Sentinel's lists, adapters' reads and reports.
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
    """Measures clusters and a declared kind with tables of several sizes; prints the rates."""
    figures: list[dict[str, Any]] = []
    with psycopg.connect(conninfo, autocommit=True) as conn, tempfile.NamedTemporaryFile("w") as kinds:
        kinds.write(DECLARED)
        kinds.flush()
        for before, size in zip([0, *sizes], sizes, strict=False):
            began = time.monotonic()
            search.load(conn, before + 1, size)
            search.load_channels(conn, before + 1, size)
            click.echo(f"{size:,} of each, loaded in {time.monotonic() - began:.0f} s", err=True)
            with served(conninfo, 1, more=["--config", kinds.name]) as target:
                for segment, found in (("clusters", CLUSTERS), ("channels", CHANNELS)):
                    target.segment = segment
                    target.ids = [str(row[0]) for row in conn.execute(found)]
                    figures += _measured(target, size, clients, seconds)
    for name in {one["operation"]: None for one in figures}:
        rates = [one["rate"] for one in figures if one["operation"] == name]
        click.echo(f"{name:32}" + " ".join(f"{rates[0] / rate:6.2f}" for rate in rates))
    return figures


def _measured(target: Target, size: int, clients: int, seconds: float) -> Iterator[dict[str, Any]]:
    for name in FLAT:
        found = target.measure(name, clients, seconds)
        operation = f"{target.segment}: {name}"
        yield {"rows": size, "operation": operation, **found._asdict()}
        click.echo(f"  {operation:30}{found.rate:7.0f}/s  p99 {found.p99:6.1f} ms")


def descriptors_of(target: Target) -> int:
    """Returns the number of open descriptors in all processes of the service."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid, _ in family(target.process))


def soak(conninfo: str, rows: int, clients: int, minutes: float) -> list[dict[str, Any]]:
    """Lets clients send :data:`DAY` at full speed; after each round, prints what the service uses."""
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
