"""``hyperfleet import``: takes over what a running original holds."""

from typing import Any

import click

from hyperfleet.commands import options
from hyperfleet.settings.values import FILE


@options.options("database_", "db_", "data_dir", "log_level", "required_adapters_", "tenant_enabled")
@click.command(name="import")
@click.option(
    "--from-database",
    default="",
    metavar="URL",
    envvar="HYPERFLEET_FROM_DATABASE",
    show_envvar=True,
    help="Database of the original: postgresql:// URL or key=value string.",
)
@click.option("--from-database-file", type=FILE, help="File that holds --from-database.")
@click.option("--from-api", default="", metavar="URL", help="Address of the original's REST API.")
@click.option(
    "--token",
    default="",
    envvar="HYPERFLEET_TOKEN",
    show_envvar=True,
    help="Bearer token for --from-api.",
)
@click.option("--token-file", type=FILE, help="File that holds --token.")
@click.option("--derive-ids", is_flag=True, help="Make a UUID of each id that is none.")
@click.option("--dry-run", is_flag=True, help="Read everything, write nothing, report the same.")
@click.option(
    "--remove-most",
    is_flag=True,
    help="Remove here what is gone there, even if it is most of what was imported, or all.",
)
@click.option("--follow", is_flag=True, help="Go on with what changes, until SIGINT or SIGTERM.")
def import_(**values: Any) -> None:
    """Take over what a running original holds, from its database or over its API.

    May be run again at any time: it goes on, and changes nothing that is the same already. Nothing is
    written to the original. Exits with 0 when all was taken, with 3 when something was not, which is
    listed with the reasons.
    """
    # Not needed by the other commands, and slow to import.
    from hyperfleet.commands import transfer  # noqa: PLC0415

    transfer.run(values)
