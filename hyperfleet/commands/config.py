"""``hyperfleet config``."""

import itertools
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hyperfleet.commands import options
from hyperfleet.commands.serve import parts, places
from hyperfleet.contract import document
from hyperfleet.database import connection, embedded
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.lists import columns, projection
from hyperfleet.observe.log import HIDDEN
from hyperfleet.settings import entities
from hyperfleet.settings.catalogue import FIELDS, Settings
from hyperfleet.settings.issuers import Issuer
from hyperfleet.settings.tenancy import Dimension

SECRET = ("db_password", "ocm_client_secret")
# Parts of a connection string that may be secret; ``options`` may set anything in PostgreSQL.
WORDS = ("password", "sslpassword", "options", "oauth_client_secret", "scram_client_key")
# The password in a URL, which ends at the last @, after what precedes it.
IN_URL = re.compile(r"(://[^/@\s:]*:)[^/\s]*(?=@)")


@options.options()
@click.command()
@click.option(
    "--output",
    type=click.Choice(["table", "yaml", "json"]),
    default="table",
    show_default=True,
    help="How to show the settings.",
)
@click.option("--check", is_flag=True, help="Only check whether the service would start with them.")
def config(output: str, check: bool, **values: Any) -> None:
    """Show the settings in force, and where each comes from."""
    chosen = options.from_options(values)
    if check:
        _check(chosen)
        click.echo("The service would start.")
        return
    sources = options.sources()
    found = {
        name: {"value": _shown(name, getattr(chosen, name)), "from": sources[name]} for name in FIELDS
    }
    found["entities"] = {"value": entities.shown(chosen.entities), "from": sources["entities"]}
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    elif output == "yaml":
        click.echo(yaml.safe_dump(found, sort_keys=False).rstrip())
    else:
        width = max(map(len, FIELDS))
        for name, one in found.items():
            value = one["value"]
            if name == "entities":
                value = json.dumps(value, ensure_ascii=False) if value else ""
            elif isinstance(value, list):
                value = ",".join(part if isinstance(part, str) else json.dumps(part) for part in value)
            text = str(value)
            click.echo(f"{name:{width}}  {one['from']:24}  {text}".rstrip())


def _shown(name: str, value: Any) -> Any:
    """Returns a setting without its passwords."""
    if name in SECRET and value:
        return HIDDEN
    if name in ("database_url", "read_database_url") and value:
        parts: dict[str, Any] = conninfo_to_dict(value)
        return make_conninfo(**{name: HIDDEN if name in WORDS else one for name, one in parts.items()})
    if isinstance(value, tuple):
        return [_shown("", one) for one in value]
    if isinstance(value, Issuer | Dimension):
        return {member: _shown("", one) for member, one in asdict(value).items() if one != ""}
    value = str(value) if isinstance(value, Path) else value
    return IN_URL.sub(rf"\1{HIDDEN}", value) if isinstance(value, str) else value


def _meet(host: str, other: str) -> bool:
    """Returns whether one port cannot be used on both addresses, as when one of them is 0.0.0.0."""
    # Slow to import.
    from hyperfleet.http.server import listen  # noqa: PLC0415

    with listen(host, 0) as held:
        try:
            listen(other, held.getsockname()[1]).close()
        except StartError:
            return True
    return False


def _check(chosen: Settings) -> None:
    """Raises StartError or ConfigurationError for whatever would prevent the service from starting."""
    # Slow to import.
    from hyperfleet.http.server import listen  # noqa: PLC0415

    options.check(chosen)
    # The contract may already use the names of declared kinds.
    document.load()
    columns.check_barred()
    projection.defaults(chosen.default_fields)
    parts(chosen)
    # Any port will do: the configured ones may be in use by the service that is to be restarted.
    for host, _ in places(chosen):
        listen(host, 0).close()
    for (host, port), (other, other_port) in itertools.combinations(places(chosen), 2):
        if port and port == other_port and _meet(host, other):
            raise ConfigurationError("--port, --health-port and --metrics-port must differ.")
    conninfo, folder = embedded.place(chosen)
    if conninfo:
        connection.wait(conninfo, 0)
        return
    try:
        existing = next(one for one in (folder, *folder.resolve().parents) if one.exists())
        possible = os.access(existing, os.W_OK | os.X_OK)
    except OSError:
        possible = False
    if not possible:
        raise StartError(f"The folder of the embedded PostgreSQL, {folder}, can't be made.")
