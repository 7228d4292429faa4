"""``hyperfleet migrate``."""

import signal
import sys
from typing import Any

import click
import psycopg

from hyperfleet.commands import options
from hyperfleet.database import connection, embedded, migration
from hyperfleet.settings.catalogue import Settings


@options.options("database_", "db_", "data_dir", "log_level", "required_adapters_")
@click.command()
@click.option("--list", "show", is_flag=True, help="Only show what is applied and what is pending.")
@click.option("--rollback", type=click.IntRange(1), help="Roll back this many of the newest migrations.")
@click.option("--yes", is_flag=True, help="Roll back without asking.")
@click.option(
    "--refold", is_flag=True, help="Fold every status anew, after required adapters or rules changed."
)
def migrate(show: bool, rollback: int | None, yes: bool, refold: bool, **values: Any) -> None:
    """Bring the database's schema up to date."""
    chosen = options.from_options(values)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with embedded.reached(chosen) as conninfo:
        try:
            if show:
                _show(conninfo)
            elif rollback:
                _confirm_rollback(conninfo, rollback, yes)
                migration.roll_back(conninfo, rollback, lambda name: click.echo(f"rolled back  {name}"))
            else:
                if not migration.apply(conninfo, lambda name: click.echo(f"applied  {name}")):
                    click.echo("The schema is up to date.")
                if refold:
                    _refold(conninfo, chosen)
        except migration.MigrationRefused as error:
            raise click.ClickException(str(error)) from None
        except psycopg.Error as error:
            raise click.ClickException(f"The migration failed: {error}") from error


def _show(conninfo: str) -> None:
    with connection.connect(conninfo) as conn:
        have, strange = migration.applied(conn), migration.unknown(conn)
    for name in migration.names():
        click.echo(f"{'applied' if name in have else 'pending'}  {name}")
    for name in strange:
        click.echo(f"unknown  {name}  (applied by a newer version)")


def _confirm_rollback(conninfo: str, count: int, yes: bool) -> None:
    """Shows what a rollback drops. Raises click.Abort if the user does not confirm it."""
    with connection.connect(conninfo) as conn:
        migration.refuse_unknown(conn)
        known = [name for name in migration.applied(conn) if name in migration.names()]
    for name in known[::-1][:count]:
        click.echo(f"{name} drops: {', '.join(migration.drops(name)) or 'nothing'}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("Everything dropped is lost with its data; add --yes to go ahead.")
    click.confirm(f"Drop all this from {connection.describe(conninfo)}, with all its data?", abort=True)


def _refold(conninfo: str, chosen: Settings) -> None:
    from hyperfleet.resources import refold  # noqa: PLC0415
    from hyperfleet.status.conditions import foldings  # noqa: PLC0415

    with click.progressbar(length=refold.count(conninfo), label="Folding") as bar:
        changed = refold.refold(conninfo, foldings(chosen), bar.update)
    click.echo(f"{changed} statuses changed.")
