"""An import as ``hyperfleet import`` runs it: its passes, its progress and its report."""

import contextlib
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

import click
import psycopg

from hyperfleet.commands import options
from hyperfleet.commands.bearer import checked
from hyperfleet.database import connection, embedded, migration
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.kinds import NATIVE
from hyperfleet.status.conditions import foldings
from hyperfleet.takeover.api import Api
from hyperfleet.takeover.database import Database
from hyperfleet.takeover.passes import Counts, Source, Takeover
from hyperfleet.takeover.rows import Rows, Unreadable

# Exit status if the import has finished, but not everything was imported.
INCOMPLETE = 3
# Seconds between passes of --follow; at least as long as the pass took, to spare the source.
PAUSE = 2.0
# Seconds between full passes, which is at least SHARE times as long as one takes.
WHOLE, SHARE = 60.0, 20


def run(values: dict[str, Any]) -> None:
    """Imports what the command's options name.

    Raises StartError or ConfigurationError for options that cannot work, and click's Exit or
    ClickException depending on how the import ended.
    """
    chosen = options.from_options(values)
    source = _source(values)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        conninfo = stack.enter_context(embedded.reached(chosen))
        rows = Rows(derive=values["derive_ids"], tenants=chosen.tenant_enabled)
        dry, most = values["dry_run"], values["remove_most"]
        takeover = Takeover(conninfo, source, foldings(chosen), rows, dry=dry, remove_most=most)
        stack.callback(takeover.close)
        try:
            _open(source, conninfo)
            counts = _follow(takeover) if values["follow"] else _whole(takeover)
        except psycopg.Error as error:
            raise click.ClickException(f"The import failed: {connection.reason(error)}") from None
        except Unreadable as error:
            raise click.ClickException(str(error)) from None
    _report(counts, dry=values["dry_run"])
    if counts.refusals:
        raise click.exceptions.Exit(INCOMPLETE)


def _source(values: dict[str, Any]) -> Source:
    database, token = (options.value_of(name, values) for name in ("from_database", "token"))
    api = values["from_api"].strip()
    if bool(database) == bool(api):
        raise ConfigurationError("Name the original: either --from-database or --from-api.")
    if values["follow"] and values["dry_run"]:
        raise ConfigurationError("Give either --follow or --dry-run, not both.")
    if database:
        return Database(options.database_url("--from-database", database))
    return Api(api, checked(token))


def _open(source: Source, conninfo: str) -> None:
    """Shows the source and the target. Raises StartError if they cannot be used."""
    where = connection.describe(conninfo)
    with connection.connect(conninfo) as conn:
        pending = migration.pending(conn)
        if pending:
            raise StartError(
                f"The database {where} lacks migrations ({', '.join(pending)}): run hyperfleet migrate."
            )
        name = source.open(conn)
    click.echo(f"From {name} to {where}.")


def _no_bar(_total: int, _done: int) -> None:
    pass


def _whole(takeover: Takeover) -> Counts:
    """Makes a full pass, with a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        return takeover.once(None, _no_bar)
    with click.progressbar(length=0, label="Importing", file=sys.stderr) as bar:

        def progress(total: int, done: int) -> None:
            bar.length = total
            bar.update(done)

        return takeover.once(None, progress)


def _follow(takeover: Takeover) -> Counts:
    """Runs passes until a signal arrives, and then a last full one."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            sys.exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    total, since, whole_at, last = Counts(), "", 0.0, 0.0
    while True:
        ending, started = stop.is_set(), time.monotonic()
        whole = ending or not since or started > whole_at + max(WHOLE, SHARE * last)
        try:
            counts = _whole(takeover) if whole else takeover.once(since, _no_bar)
        except (psycopg.OperationalError, Unreadable) as error:
            if ending or not since:
                raise
            told = f"{_clock()}  not possible at the moment: {connection.reason(error)}"
            click.echo(told, err=True)
            stop.wait(PAUSE)
            continue
        took = time.monotonic() - started
        since = takeover.at
        if whole:
            whole_at, last = started, took
        total.take(Counts(counts.of, [], counts.elsewhere))
        _tell(counts, whole=whole, took=took)
        if ending:
            total.refusals = counts.refusals
            for kind in NATIVE:
                # Every pass counts these again.
                total.of.setdefault(kind, Counter())["same"] = counts.number("same", kind)
            return total
        stop.wait(max(PAUSE, took))


def _tell(counts: Counts, *, whole: bool, took: float) -> None:
    """Prints a line about a pass."""
    number = {name: counts.number(name) for name in ("new", "changed", "removed")}
    looked = sum(number.values()) - number["removed"] + counts.number("same")
    line = ", ".join(f"{value} {name}" for name, value in number.items())
    stored = counts.number("stored", "AdapterStatus")
    click.echo(
        f"{_clock()}  {'all' if whole else 'changes'}: {looked} looked at, {line}, {stored} reports, "
        f"{len(counts.refusals)} not imported ({took:.1f} s)"
    )


def _report(counts: Counts, *, dry: bool) -> None:
    click.echo("Nothing was written; this is what would have been:" if dry else "Done:")
    for kind, of in NATIVE.items():
        numbers = (
            f"{counts.number(name, kind)} {name}" for name in ("new", "changed", "same", "removed")
        )
        click.echo(f"  {of.noun + 's':11} {', '.join(numbers)}")
    click.echo(f"  {'reports':11} {counts.number('stored', 'AdapterStatus')} stored")
    if counts.elsewhere:
        click.echo(f"Left alone, as they came from another original: {counts.elsewhere} resources")
    if not counts.refusals:
        click.echo("Everything was imported.")
        return
    click.echo(f"Not imported: {len(counts.refusals)}")
    for refusal in counts.refusals:
        name = f" {refusal.name!r}" if refusal.name else ""
        click.echo(f"  {refusal.kind} {refusal.id}{name}: {refusal.reason}")


def _clock() -> str:
    return time.strftime("%H:%M:%S")
