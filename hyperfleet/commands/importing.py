"""``hyperfleet import``: imports what a running original holds."""

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
@click.option("--derive-ids", is_flag=True, help="Derive a UUID from each id that is not one.")
@click.option("--dry-run", is_flag=True, help="Read and report everything, but write nothing.")
@click.option(
    "--remove-most",
    is_flag=True,
    help="Remove here what is gone from the original, even if that is most or all of the import.",
)
@click.option("--follow", is_flag=True, help="Keep importing changes until SIGINT or SIGTERM.")
def import_(**values: Any) -> None:
    """Import what a running original holds, from its database or through its API.

    Can be run again at any time: it continues, and leaves alone what is already the same. Nothing is
    written to the original. Exits with 0 if everything was imported, with 3 if something was not, and
    lists that with the reasons.
    """
    # Not needed by the other commands, and slow to import.
    from hyperfleet.commands import transfer  # noqa: PLC0415

    transfer.run(values)
