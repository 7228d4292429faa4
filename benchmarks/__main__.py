"""Measures the service.

python -m benchmarks            every operation, as a table, and as a chart and JSON
python -m benchmarks check      a few seconds; fails if an operation is far too slow for its bound
python -m benchmarks growth     with more and more rows
python -m benchmarks followers  clients that wait for changes
python -m benchmarks soak       a working day's worth of requests
python -m benchmarks search     the first page of each search
python -m benchmarks provider   the cost of a provider's schema
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

# The share of its upper bound's rate that each operation must reach with one process and eight clients:
# half of the lowest share seen when this was written.
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
    """Yields a migrated database of an embedded server, in the folder or else in a temporary one."""
    with ExitStack() as stack:
        folder = folder or stack.enter_context(tempfile.TemporaryDirectory())
        conninfo = stack.enter_context(embedded.running(Path(folder)))
        migration.apply(conninfo)
        yield conninfo


def settle(conninfo: str) -> None:
    """Collects statistics, so that the planner knows the contents of the tables."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")


HEAD = f"{'':24}  req/s  p50 ms  p99 ms   service  database  memory   failed"


def line(name: str, found: Measured) -> str:
    return (
        f"{name:24}{found.rate:7.0f} {found.p50:7.1f} {found.p99:7.1f}{found.service:7.0f} us"
        f"{found.database:7.0f} us{found.memory:5.0f} MB{found.failed or '':>9}"
    )


@click.group(invoke_without_command=True)
@click.option("--rows", default=3000, show_default=True, help="Number of clusters.")
@click.option("--seconds", default=2.0, show_default=True, help="Duration of each measurement.")
@click.option("--clients", default="1,8,32", show_default=True, help="Numbers of concurrent clients.")
@click.option("--workers", default="1,0", show_default=True, help="Numbers of workers; 0: the default.")
@click.option("--auth", default="no,yes", show_default=True, help="no: without tokens; yes: with them.")
@click.option("--only", default="", help="Names of operations, comma-separated.")
@click.option("--rounds", default=1, show_default=True, help="Repetitions, of which the median counts.")
@click.option("--against", default="", help="URL of another service, to measure in alternation.")
@click.option("--against-pid", default=0, help="Id of that service's first process, if it is local.")
@click.option("--data", default="", help="Folder of a database to keep.")
@click.option("--json", "output", default="", help="File to write the figures to.")
@click.option("--chart", "picture", default="", help="PNG to draw, for 8 clients or the first number.")
@click.pass_context
def main(ctx: click.Context, **options: Any) -> None:
    """Measure the rate, latency and cost of every operation."""
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
    click.echo(f"\nupper bounds, {shown} clients")
    for name, rate in under.items():
        click.echo(f"{name:34}{rate:7.0f}/s")
    if options["output"]:
        whole = {"machine": machine(), "floors": under, "figures": records}
        Path(options["output"]).write_text(json.dumps(whole, indent=1))
    if options["picture"]:
        chart.draw(Path(options["picture"]), f"{options['rows']:,} clusters, {shown} clients", series)


def turns(rivals: dict[str, Target], name: str, clients: int, options: Any) -> dict[str, Measured]:
    """Measures services in alternation (A B A B); returns the medians for each."""
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
    """Fail if an operation is, in every try, far slower relative to its upper bound than it was."""
    needs_wrk()
    late = {name for name, _ in LEAST}
    with database() as conninfo, served(conninfo, 1) as target:
        target.fill(rows)
        settle(conninfo)
        for _ in range(tries):
            pairs = [pair for pair in LEAST if pair[0] in late]
            late = {name for name, floor in pairs if not kept(name, floor, conninfo, target, seconds)}
    if late:
        raise click.ClickException(f"too slow: {', '.join(sorted(late))}")


def kept(name: str, floor: str, conninfo: str, target: Target, seconds: float) -> bool:
    """Returns whether an operation reaches its share of its upper bound's rate."""
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
    """Measure with more and more rows; creating a million takes 5 GB and ten minutes."""
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
    """Show whether memory, descriptors and connections stay constant under load."""
    needs_wrk()
    with database() as conninfo:
        growth.soak(conninfo, rows, clients, minutes)


@main.command("followers")
@click.option("--clients", default=500, show_default=True)
@click.option("--wait", default=60, show_default=True, help="Seconds; 0: follow a stream.")
@click.option("--minutes", default=1.0, show_default=True)
def followed(clients: int, wait: int, minutes: float) -> None:
    """Show what clients that wait for changes cost, and how long a change takes to reach them."""
    with database() as conninfo:
        followers.follow(conninfo, clients, wait, minutes)


main.add_command(search.main, "search")
main.add_command(click.Command("provider", callback=provider.main, help=provider.__doc__))

if __name__ == "__main__":
    main()
