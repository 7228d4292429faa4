"""``hyperfleet serve``."""

import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

import click

from hyperfleet import __version__, options
from hyperfleet.database import connection, embedded, migration
from hyperfleet.database.pool import new_pool
from hyperfleet.settings import Settings


@options.options()
@click.command()
def serve(**values: Any) -> None:
    """Serve the API, its health checks and its metrics."""
    # Not needed by the other commands, and slow to import.
    from hyperfleet.app import create_app  # noqa: PLC0415
    from hyperfleet.auth.guard import Guard  # noqa: PLC0415
    from hyperfleet.contract import provider  # noqa: PLC0415
    from hyperfleet.http.limits import limits  # noqa: PLC0415
    from hyperfleet.http.server import Ending, Servers, address, certificate, listen  # noqa: PLC0415
    from hyperfleet.observe.health import health_app  # noqa: PLC0415
    from hyperfleet.observe.metrics import metrics_app, new_registry  # noqa: PLC0415

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
        pool = new_pool(conninfo, chosen.db_pool_size, chosen.statement_timeout, shared=shared)
        registry = new_registry(pool, holder)
        ending = Ending(chosen.shutdown_timeout, chosen.shutdown_delay)
        servers = Servers(
            [
                (create_app(chosen, pool, registry, holder, guard), listeners[0]),
                (health_app(pool, holder, ending.begun), listeners[1]),
                (metrics_app(registry), listeners[2]),
            ],
            ending,
            pool,
            holder.reload,
            limits(chosen),
            [tls if wanted else {} for wanted in secure],
        )
        api, health, metrics = (
            address(listener, secure=wanted) for listener, wanted in zip(listeners, secure, strict=True)
        )
        _banner(api, health, metrics, lines, chosen)
        servers.run()


def _banner(api: str, health: str, metrics: str, lines: list[str], chosen: Settings) -> None:
    """Says where everything is; ``lines`` say it of the database."""
    access = "bearer tokens" if chosen.authenticated else "everybody: authentication is off"
    for line in (
        f"HyperFleet API {__version__}",
        f"  API       {api}/api/hyperfleet/v1",
        f"  UI        {api}/openapi-ui",
        f"  Health    {health}/healthcheck",
        f"  Metrics   {metrics}/metrics",
        *(f"  {line}" for line in lines),
        f"  Access    {access}",
    ):
        click.echo(line)
    sys.stdout.flush()


def _database(
    chosen: Settings, conninfo: str, folder: Path, stack: contextlib.ExitStack
) -> tuple[str, bool, list[str]]:
    """The connection string of a database that answers, whether its sessions are shared with other
    clients, and what the banner says of it.
    """
    if conninfo:
        shared = connection.wait(conninfo, chosen.db_connect_timeout)
        where = connection.describe(conninfo) + (", through a pooler" if shared else "")
        return conninfo, shared, [f"Database  {where}", *_pending(conninfo)]
    conninfo = stack.enter_context(embedded.running(folder))
    migration.apply(conninfo)
    return conninfo, False, ["Database  embedded PostgreSQL", f"Data      {folder}"]


def _pending(conninfo: str) -> list[str]:
    """A line of the banner that says which migrations the database lacks; none when it has all."""
    import psycopg  # noqa: PLC0415

    try:
        with connection.connect(conninfo) as conn:
            lacking = migration.pending(conn)
    except psycopg.Error as error:
        return [f"Schema    unknown: {connection.reason(error)}"]
    if not lacking:
        return []
    return [f"Schema    {', '.join(lacking)} pending: run hyperfleet migrate; until then, requests fail"]
