"""The command line: ``hyperfleet serve``, ``migrate``, ``schema``, ``token``, ``version``."""

import contextlib
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from hyperfleet import __version__, database, embedded, migration, options
from hyperfleet.schema_command import schema_group
from hyperfleet.settings import Settings
from hyperfleet.token_command import token


@click.version_option(__version__, message="%(version)s")
@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """HyperFleet API: the REST data layer of a fleet of Kubernetes clusters."""
    if not sys.warnoptions:
        # Libraries speak to their developers in warnings; an operator can do nothing about them.
        warnings.simplefilter("ignore")


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


main.add_command(token)
main.add_command(schema_group)


@options.options()
@main.command()
def serve(**values: Any) -> None:
    """Serve the API, its health checks and its metrics."""
    # Not needed by the other commands, and slow to import.
    from hyperfleet import provider  # noqa: PLC0415
    from hyperfleet.access import Guard  # noqa: PLC0415
    from hyperfleet.app import create_app  # noqa: PLC0415
    from hyperfleet.health import health_app, metrics_app, new_registry  # noqa: PLC0415
    from hyperfleet.http.limits import Limits  # noqa: PLC0415
    from hyperfleet.http.server import Ending, Servers, address, certificate, listen  # noqa: PLC0415

    # Every setting is looked at before a port is taken.
    chosen = options.from_options(values)
    if chosen.enable_authz and not chosen.enable_jwt and not chosen.no_auth:
        raise click.UsageError("--enable-authz needs to know who asks: leave out --enable-jwt=false.")
    secure = (chosen.enable_https, chosen.enable_health_check_https, chosen.enable_metrics_https)
    tls = certificate(chosen.https_cert_file, chosen.https_key_file) if any(secure) else {}
    guard = Guard(chosen) if chosen.authenticated else None
    conninfo, folder = embedded.place(chosen)
    holder = provider.load(chosen)
    # Whatever is started below is stopped again, also when the signal comes before it all runs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    # Until there is something to read anew; unhandled, it would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        host = chosen.host or ("0.0.0.0" if chosen.authenticated else "127.0.0.1")  # noqa: S104
        listeners = [
            stack.enter_context(listen(own or host, port))
            for own, port in (
                (host, chosen.port),
                (chosen.health_host, chosen.health_port),
                (chosen.metrics_host, chosen.metrics_port),
            )
        ]
        conninfo, shared, lines = _database(chosen, conninfo, folder, stack)
        pool = stack.enter_context(
            database.open_pool(conninfo, chosen.db_pool_size, chosen.statement_timeout, shared=shared)
        )
        registry = new_registry(pool, holder)
        ending = Ending(chosen.shutdown_timeout, chosen.shutdown_delay)
        servers = Servers(
            [
                (create_app(chosen, pool, registry, holder, guard), listeners[0]),
                (health_app(pool, holder, ending.begun), listeners[1]),
                (metrics_app(registry), listeners[2]),
            ],
            ending,
            holder.reload,
            Limits(chosen.max_header_size, chosen.max_body_size, chosen.read_timeout),
            [tls if wanted else {} for wanted in secure],
        )
        api, health, metrics = (
            address(listener, secure=wanted) for listener, wanted in zip(listeners, secure, strict=True)
        )
        click.echo(f"HyperFleet API {__version__}")
        click.echo(f"  API       {api}/api/hyperfleet/v1")
        click.echo(f"  UI        {api}/openapi-ui")
        click.echo(f"  Health    {health}/healthcheck")
        click.echo(f"  Metrics   {metrics}/metrics")
        for line in lines:
            click.echo(f"  {line}")
        click.echo(
            "  Access    bearer tokens"
            if chosen.authenticated
            else "  Access    everybody: authentication is off"
        )
        sys.stdout.flush()
        servers.run()


def _database(
    chosen: Settings, conninfo: str, folder: Path, stack: contextlib.ExitStack
) -> tuple[str, bool, list[str]]:
    """The connection string of a database that answers, whether its sessions are shared with other
    clients, and what the banner says of it.
    """
    if conninfo:
        shared = database.wait(conninfo, chosen.db_connect_timeout)
        where = database.describe(conninfo) + (", through a pooler" if shared else "")
        return conninfo, shared, [f"Database  {where}", *_pending(conninfo)]
    conninfo = stack.enter_context(embedded.running(folder))
    migration.apply(conninfo)
    return conninfo, False, ["Database  embedded PostgreSQL", f"Data      {folder}"]


def _pending(conninfo: str) -> list[str]:
    """A line of the banner that says which migrations the database lacks; none when it has all."""
    import psycopg  # noqa: PLC0415

    try:
        with database.connect(conninfo) as conn:
            lacking = migration.pending(conn)
    except psycopg.Error as error:
        return [f"Schema    unknown: {' '.join(str(error).split())}"]
    if not lacking:
        return []
    return [f"Schema    {', '.join(lacking)} pending: run hyperfleet migrate; until then, requests fail"]


@options.options("database_", "db_", "data_dir", "log_level", "required_adapters_")
@main.command()
@click.option("--list", "show", is_flag=True, help="Only show what is applied and what is pending.")
@click.option("--rollback", type=click.IntRange(1), help="Take back so many of the newest migrations.")
@click.option("--yes", is_flag=True, help="Take back without asking.")
@click.option("--refold", is_flag=True, help="Fold every status anew, after required adapters changed.")
def migrate(show: bool, rollback: int | None, yes: bool, refold: bool, **values: Any) -> None:
    """Bring the database's schema up to date."""
    import psycopg  # noqa: PLC0415

    chosen = options.from_options(values)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        conninfo, folder = embedded.place(chosen)
        if conninfo:
            database.wait(conninfo, chosen.db_connect_timeout)
        else:
            conninfo = stack.enter_context(embedded.running(folder))
        try:
            if show:
                _show(conninfo)
            elif rollback:
                _confirm_rollback(conninfo, rollback, yes)
                for name in migration.roll_back(conninfo, rollback):
                    click.echo(f"rolled back  {name}")
            else:
                done = migration.apply(conninfo)
                for name in done:
                    click.echo(f"applied  {name}")
                if not done:
                    click.echo("The schema is up to date.")
                if refold:
                    _refold(conninfo, chosen)
        except migration.MigrationRefused as error:
            raise click.ClickException(str(error)) from None
        except psycopg.Error as error:
            raise click.ClickException(f"The migration failed: {error}") from error


def _show(conninfo: str) -> None:
    with database.connect(conninfo) as conn:
        have, strange = migration.applied(conn), migration.unknown(conn)
    for name in migration.names():
        click.echo(f"{'applied' if name in have else 'pending'}  {name}")
    for name in strange:
        click.echo(f"unknown  {name}  (applied by a newer version)")


def _confirm_rollback(conninfo: str, count: int, yes: bool) -> None:
    """Says what goes, and with it what it holds; raises click.Abort for who doesn't want that."""
    with database.connect(conninfo) as conn:
        migration.refuse_unknown(conn)
        known = [name for name in migration.applied(conn) if name in migration.names()]
    for name in known[::-1][:count]:
        click.echo(f"{name} drops: {', '.join(migration.drops(name)) or 'nothing'}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("What is dropped is lost with all that it holds; if so, add --yes.")
    click.confirm(
        f"Drop all this from {database.describe(conninfo)}, with all that it holds?", abort=True
    )


def _refold(conninfo: str, chosen: Settings) -> None:
    from hyperfleet import refold  # noqa: PLC0415

    with click.progressbar(length=refold.count(conninfo), label="Folding") as bar:
        changed = refold.refold(conninfo, chosen.required_adapters, bar.update)
    click.echo(f"{changed} statuses changed.")


if __name__ == "__main__":
    main()
