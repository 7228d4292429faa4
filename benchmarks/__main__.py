"""Measures the service.

python -m benchmarks            the table, as a chart and JSON too
python -m benchmarks check      some seconds, against the floors; fails where something is far off
python -m benchmarks growth     at more and more rows
python -m benchmarks followers  those who wait for changes
python -m benchmarks soak       a working day's worth of requests
python -m benchmarks search     the first page of each search
python -m benchmarks provider   what a provider's schema costs
"""

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import psycopg

from benchmarks import chart, floors, followers, growth, provider, search
from benchmarks.load import Measured, Target, needs_wrk, served, token
from hyperfleet.database import embedded, migration

# The share of its floor's rate that each must have, with one process and eight clients: half of the
# least that was seen when this was written.
LEAST = {
    ("compatibility", "empty application"): 0.05,
    ("get one", "compatibility"): 0.25,
    ("404", "compatibility"): 0.30,
    ("list 20", "get one"): 0.35,
    ("list 100", "pgbench list 100"): 0.22,
    ("report", "compatibility"): 0.07,
    ("create", "compatibility"): 0.12,
}


@contextmanager
def database(folder: str = "") -> Iterator[str]:
    """A migrated database on an embedded server: one that stays, or a new one."""
    with ExitStack() as stack:
        folder = folder or stack.enter_context(tempfile.TemporaryDirectory())
        conninfo = stack.enter_context(embedded.running(Path(folder)))
        migration.apply(conninfo)
        yield conninfo


def settle(conninfo: str) -> None:
    """Lets the planner know what there is."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")


HEAD = f"{'':24}  req/s  p50 ms  p99 ms   service  database  memory   failed"


def line(name: str, found: Measured) -> str:
    return (
        f"{name:24}{found.rate:7.0f} {found.p50:7.1f} {found.p99:7.1f}{found.service:7.0f} us"
        f"{found.database:7.0f} us{found.memory:5.0f} MB{found.failed or '':>9}"
    )


@click.group(invoke_without_command=True)
@click.option("--rows", default=3000, show_default=True, help="How many clusters.")
@click.option("--seconds", default=2.0, show_default=True, help="How long each thing is measured.")
@click.option("--clients", default="1,8,32", show_default=True, help="How many send at once, by comma.")
@click.option("--workers", default="1,0", show_default=True, help="By comma; 0: as the service chooses.")
@click.option("--auth", default="no,yes", show_default=True, help="Without tokens, and with them.")
@click.option("--only", default="", help="Names of operations, by comma.")
@click.option("--rounds", default=1, show_default=True, help="How often; the median counts.")
@click.option("--against", default="", help="The URL of another service, measured in turns.")
@click.option("--against-pid", default=0, help="The first of its processes, if it is on this machine.")
@click.option("--data", default="", help="A folder whose database stays.")
@click.option("--json", "output", default="", help="A file for the figures.")
@click.option("--chart", "picture", default="", help="A PNG; of 8 clients, or of the first number.")
@click.pass_context
def main(ctx: click.Context, **options: Any) -> None:
    """Prints rates, waiting times and costs of every operation."""
    if ctx.invoked_subcommand is not None:
        return
    needs_wrk()
    clients = [int(one) for one in options["clients"].split(",")]
    shown = 8 if 8 in clients else clients[0]
    records: list[dict[str, Any]] = []
    series: dict[str, dict[str, float]] = {}
    with database(options["data"]) as conninfo, tempfile.TemporaryDirectory() as folder:
        keys, secret = token(folder)
        for auth in options["auth"].split(","):
            access = (keys, secret) if auth == "yes" else ("", "")
            for workers in options["workers"].split(","):
                with served(conninfo, int(workers), *access) as target:
                    rivals = {"": target}
                    if options["against"]:
                        rivals["against"] = Target(options["against"], options["against_pid"])
                    for one in rivals.values():
                        one.fill(options["rows"])
                    settle(conninfo)
                    label = f"{workers if int(workers) else 'all'} workers, " + (
                        "tokens" if auth == "yes" else "no tokens"
                    )
                    for count in clients:
                        click.echo(f"\n{label}, {count} clients\n{HEAD}")
                        for name in target.operations():
                            if options["only"] and name not in options["only"].split(","):
                                continue
                            for rival, found in turns(rivals, name, count, options).items():
                                click.echo(line(f"{name} {rival}".strip(), found))
                                told = f"{label} {rival}".strip()
                                records.append(
                                    {"of": told, "clients": count, "operation": name, **found._asdict()}
                                )
                                if count == shown:
                                    series.setdefault(told, {})[name] = found.rate
        under = {"an application that does nothing": floors.application(shown, options["seconds"])}
        for name in floors.STATEMENTS:
            under[f"{name} by pgbench"] = floors.statement(conninfo, name, shown, options["seconds"])
    click.echo(f"\nfloors, {shown} clients")
    for name, rate in under.items():
        click.echo(f"{name:34}{rate:7.0f}/s")
    if options["output"]:
        whole = {"machine": machine(), "floors": under, "figures": records}
        Path(options["output"]).write_text(json.dumps(whole, indent=1))
    if options["picture"]:
        chart.draw(Path(options["picture"]), f"{options['rows']:,} clusters, {shown} clients", series)


def turns(rivals: dict[str, Target], name: str, clients: int, options: Any) -> dict[str, Measured]:
    """The medians of what each of several services does, measured in turns: A B A B."""
    found: dict[str, list[Measured]] = {rival: [] for rival in rivals}
    for _ in range(options["rounds"]):
        for rival, target in rivals.items():
            found[rival].append(target.measure(name, clients, options["seconds"]))
    return {
        rival: Measured(*(statistics.median(column) for column in zip(*all_, strict=True)))  # type: ignore[arg-type]
        for rival, all_ in found.items()
    }


def machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.platform()}"


@main.command()
@click.option("--rows", default=300, show_default=True)
@click.option("--seconds", default=1.0, show_default=True)
@click.option("--tries", default=4, show_default=True)
def check(rows: int, seconds: float, tries: int) -> None:
    """Fails where an operation is far slower, beside its floor, than it was, each time it is tried."""
    needs_wrk()
    late = {name for name, _ in LEAST}
    with database() as conninfo, served(conninfo, 1) as target:
        target.fill(rows)
        settle(conninfo)
        for _ in range(tries):
            pairs = [pair for pair in LEAST if pair[0] in late]
            late = {name for name, floor in pairs if not kept(name, floor, conninfo, target, seconds)}
    if late:
        raise click.ClickException(f"slower than it may be: {', '.join(sorted(late))}")


def kept(name: str, floor: str, conninfo: str, target: Target, seconds: float) -> bool:
    """Whether an operation has the share of its floor's rate that it must have."""
    least = LEAST[name, floor]
    if floor == "empty application":
        under = floors.application(8, seconds)
    elif floor.startswith("pgbench"):
        under = floors.statement(conninfo, floor.removeprefix("pgbench "), 8, seconds)
    else:
        under = target.measure(floor, 8, seconds).rate
    rate = target.measure(name, 8, seconds).rate
    click.echo(f"{name:16}{rate:7.0f}/s, {rate / under:5.2f} of {floor}, at least {least}")
    return rate / under >= least


@main.command("growth")
@click.option("--rows", default="1000,100000,1000000", show_default=True)
@click.option("--clients", default=8, show_default=True)
@click.option("--seconds", default=3.0, show_default=True)
@click.option("--json", "output", default="")
def grown(rows: str, clients: int, seconds: float, output: str) -> None:
    """Measures at more and more rows; a million take 5 GB and ten minutes to make."""
    needs_wrk()
    with database() as conninfo:
        sizes = sorted(int(one) for one in rows.split(","))
        figures = growth.grow(conninfo, sizes, clients, seconds)
    if output:
        Path(output).write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1))


@main.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--rows", default=1000, show_default=True)
@click.option("--clients", default=16, show_default=True)
def soak(minutes: float, rows: int, clients: int) -> None:
    """Shows whether memory, descriptors and connections stay where they are."""
    needs_wrk()
    with database() as conninfo:
        growth.soak(conninfo, rows, clients, minutes)


@main.command("followers")
@click.option("--clients", default=500, show_default=True)
@click.option("--wait", default=60, show_default=True, help="Seconds; 0: each follows a stream.")
@click.option("--minutes", default=1.0, show_default=True)
def followed(clients: int, wait: int, minutes: float) -> None:
    """Shows what those cost who wait for changes, and how long one takes to reach them."""
    with database() as conninfo:
        followers.follow(conninfo, clients, wait, minutes)


main.add_command(search.main, "search")
main.add_command(click.Command("provider", callback=provider.main, help=provider.__doc__))

if __name__ == "__main__":
    main()
