"""``hyperfleet serve``."""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import psycopg

from hyperfleet import __version__
from hyperfleet.commands import options
from hyperfleet.database import connection, embedded, migration
from hyperfleet.database.pool import new_pool
from hyperfleet.errors import StartError
from hyperfleet.http.workers import Workers, cores
from hyperfleet.kinds import BASE
from hyperfleet.observe import log, tracing
from hyperfleet.observe.folder import shared as shared_folder
from hyperfleet.settings.catalogue import Settings

logger = logging.getLogger(__name__)
# The addresses are logged at every level.
logger.setLevel(logging.INFO)

# The maximum number of worker processes, unless more are configured.
MOST_WORKERS = 4


@options.options()
@click.command()
def serve(**values: Any) -> None:
    """Serve the API, its health checks and its metrics."""
    # Checks every setting before a port is taken.
    chosen = options.from_options(values)
    options.check(chosen)
    conninfo, folder = embedded.place(chosen)
    count = chosen.workers or (min(cores(), MOST_WORKERS) if conninfo else 1)
    hung_up = _hung_up()
    _stop_on_signals()
    # Ignored until they are handled, since by default they end the process.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(0) if hung_up() else None)
    with contextlib.ExitStack() as stack:
        if count > 1:
            # The directory in which processes share metrics; read when the library is imported.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(shared_folder())
        _serve(chosen, conninfo, folder, count, hung_up, stack)


def _hung_up() -> Callable[[], bool]:
    """Returns a function that tells whether the terminal of a foreground command has been closed.

    SIGHUP may mean that instead of a reload. With nohup, it always returns False.
    """

    def foreground() -> int:
        with contextlib.suppress(OSError), Path("/dev/tty").open("rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno())
        return 0

    on = foreground()
    # A script's background command shares the script's process group, but ignores SIGINT.
    left = signal.SIG_IGN in (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT))
    attended = on == os.getpgrp() and not left
    return lambda: attended and not foreground()


def _stop_on_signals() -> None:
    """Exits on a signal, so that whatever has been started is stopped, even during startup."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


def parts(chosen: Settings) -> tuple[list[Any], Any, Any]:
    """Returns what depends on the settings alone: certificates, guard and provider document.

    The certificates are those of the API, the health checks and the metrics, None without TLS; the guard
    is None without authentication. Raises StartError or ConfigurationError if nothing could be served.
    """
    # Not needed by the other commands, and slow to import.
    from hyperfleet.auth.guard import Guard  # noqa: PLC0415
    from hyperfleet.contract import provider  # noqa: PLC0415
    from hyperfleet.http.certificate import Certificate  # noqa: PLC0415

    if tracing.wanted(chosen.tracing_enabled, os.environ):
        tracing.check()
    secure = (chosen.enable_https, chosen.enable_health_check_https, chosen.enable_metrics_https)
    tls = Certificate(chosen.https_cert_file, chosen.https_key_file) if any(secure) else None
    guard = Guard(chosen) if chosen.authenticated else None
    return [tls if wanted else None for wanted in secure], guard, provider.load(chosen)


def places(chosen: Settings) -> list[tuple[str, int]]:
    """Returns the host and port of the API, the health checks and the metrics."""
    host = chosen.host or ("0.0.0.0" if chosen.authenticated else "127.0.0.1")  # noqa: S104
    return [
        (host, chosen.port),
        (chosen.health_host or host, chosen.health_port),
        (chosen.metrics_host or host, chosen.metrics_port),
    ]


def _serve(
    chosen: Settings,
    conninfo: str,
    folder: Path,
    count: int,
    hung_up: Callable[[], bool],
    stack: contextlib.ExitStack,
) -> None:
    # Not needed by the other commands, and slow to import.
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from hyperfleet.app import create_app  # noqa: PLC0415
    from hyperfleet.http.meanwhile import meanwhile  # noqa: PLC0415
    from hyperfleet.http.server import App, Ending, Servers, address, listen, spread  # noqa: PLC0415
    from hyperfleet.observe.health import Health, health_app  # noqa: PLC0415
    from hyperfleet.observe.metrics import go_on_from  # noqa: PLC0415

    traced = tracing.wanted(chosen.tracing_enabled, os.environ)
    certificates, guard, schemas = parts(chosen)
    listeners = [stack.enter_context(listen(*place)) for place in places(chosen)]
    conninfo, shared, lines = _database(
        chosen, conninfo, folder, stack, lambda work: meanwhile(listeners, certificates, work)
    )
    reads = _reads(chosen, conninfo, count, shared=shared)
    if reads.standbys:
        lines["Standbys"] = ", ".join(one.name for one in reads.standbys)
    registry = CollectorRegistry()
    gauges, metrics, died = _metrics(chosen, registry, reads, schemas)
    ending = Ending(chosen.shutdown_timeout, chosen.shutdown_delay)
    api = create_app(chosen, reads, registry, schemas, guard, gauges)
    keys = guard.verifier.keys if guard else dict
    health = health_app(Health(reads.primary, schemas, lambda: keys() | reads.states(), ending.begun))
    addresses = [
        address(listener, secure=bool(tls))
        for listener, tls in zip(listeners, certificates, strict=True)
    ]

    first = os.getpid()

    async def reload() -> None:
        if hung_up():
            os.kill(first, signal.SIGTERM)
        else:
            await schemas.reload()

    def work(listener: socket.socket, watched: int | None = None) -> None:
        served = zip((api, health, metrics), (listener, *listeners[1:]), certificates, strict=True)
        apps = [App(*one, refused=api.refused) for one in served]
        apps[0] = apps[0]._replace(farewell=api.farewell)
        with contextlib.closing(_trace(api, reads)) if traced else contextlib.nullcontext():
            Servers(apps, ending, reads, reload=reload, settings=chosen, beat=gauges.update).run(watched)

    _settle_memory()
    if count > 1:
        own = spread(listeners[0], count)
        patience = chosen.shutdown_timeout + chosen.shutdown_delay
        workers = Workers(own, work, died, go_on_from, patience)
    _banner(addresses, lines, count, chosen)
    if count > 1:
        workers.run()
    else:
        work(listeners[0])


def _reads(chosen: Settings, conninfo: str, count: int, *, shared: bool) -> Any:
    """Returns where rows are written and read: by the configured standbys, or else by the primary.

    :param count: how many processes share the allowed connections
    :param shared: whether there is a pooler in between
    """
    from hyperfleet.database.reads import Reads  # noqa: PLC0415
    from hyperfleet.database.standby import standbys  # noqa: PLC0415

    size, timeout, staleness = chosen.db_pool_size, chosen.statement_timeout, chosen.max_staleness
    if chosen.db_max_connections:
        size = min(size, max(1, chosen.db_max_connections // count))
    pool = new_pool(conninfo, size, timeout, shared=shared, history=chosen.history)
    read = connection.read_conninfo(chosen)
    if not read:
        return Reads(pool)
    found = standbys(read, size, timeout, staleness, shared=shared)
    probe = new_pool(conninfo, 1, timeout, shared=shared)
    return Reads(pool, found, probe, staleness, max(1, size // 2))


def _metrics(chosen: Settings, registry: Any, reads: Any, schemas: Any) -> tuple[Any, Any, Any]:
    """Returns the gauges, updated each second, the metrics app, and a callback for dead workers."""
    from prometheus_client import Counter, multiprocess  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    from hyperfleet.observe import counts  # noqa: PLC0415
    from hyperfleet.observe.gauges import Fleet, Gauges  # noqa: PLC0415
    from hyperfleet.observe.metrics import OWN, Statements, build_info, metrics_app  # noqa: PLC0415
    from hyperfleet.observe.metrics import reads as counted  # noqa: PLC0415

    counts.install()
    primary = reads.primary
    gauges, fleet = Gauges(registry, primary, schemas), Fleet(primary, chosen.stuck_after)
    build_info(registry)
    statements = Statements(registry)
    for pool in reads.pools():
        pool.on_statement = statements.count
        pool.slow = chosen.slow_statement or float("inf")
    if reads.standbys:
        reads.on_read = counted(registry)
    restarts = Counter(
        "hyperfleet_api_worker_restarts", "Workers that died.", [*OWN], registry=registry
    ).labels(*OWN.values())

    async def looked() -> Collector:
        await fleet.look()
        # Only afterwards, since the look itself has waited for a connection.
        gauges.update()
        return fleet

    def died(pid: int, wanted: bool) -> None:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        restarts.inc(int(not wanted))

    return gauges, metrics_app(registry, looked), died


def _trace(api: Any, reads: Any) -> "tracing.Tracing":
    """Enables tracing in this process; the exporter does not survive a fork."""
    from hyperfleet.database.together import sharers  # noqa: PLC0415

    made, count = tracing.Tracing(), reads.primary.on_statement

    def count_and_trace(name: str, seconds: float, error: Any) -> None:
        count(name, seconds, error)
        contexts = sharers.get()
        for context in contexts:
            context.run(made.statement, name, seconds, error)
        if not contexts:
            made.statement(name, seconds, error)

    api.tracing = made
    for pool in reads.pools():
        pool.on_statement = count_and_trace
    return made


def _settle_memory() -> None:
    """Freezes long-lived objects: the garbage collector's scans delay requests by 10 ms or more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def _banner(addresses: list[str], database: Mapping[str, str], count: int, chosen: Settings) -> None:
    """Shows all addresses; ``database`` holds the lines about the database."""
    api, health, metrics = addresses
    access = "bearer tokens" if chosen.authenticated else "everybody: authentication is off"
    told = {
        "API": f"{api}{BASE}",
        "UI": f"{api}/openapi-ui",
        "Health": f"{health}/healthcheck",
        "Metrics": f"{metrics}/metrics",
        **database,
        **({"Workers": str(count)} if count > 1 else {}),
        "Access": access,
    }
    if log.is_json():
        more = {name.lower(): what for name, what in told.items()}
        logger.info("HyperFleet API %s serves", __version__, extra=more)
        return
    lines = [f"HyperFleet API {__version__}", *(f"  {name:10}{what}" for name, what in told.items())]
    # A full disk must not keep the service from running, as with the log.
    with contextlib.suppress(OSError):
        click.echo("\n".join(lines))


def _database(
    chosen: Settings,
    conninfo: str,
    folder: Path,
    stack: contextlib.ExitStack,
    meanwhile: Callable[[Callable[[], bool]], bool | None],
) -> tuple[str, bool, dict[str, str]]:
    """Returns a database's connection string, whether a pooler shares its sessions, and banner lines.

    :param meanwhile: does work that may take long, such as waiting for the database, and answers probes
    """
    if conninfo:
        shared = meanwhile(lambda: connection.wait(conninfo, chosen.db_connect_timeout))
        if shared is None:
            sys.exit(0)
        _stop_on_signals()
        where = connection.describe(conninfo) + (", through a pooler" if shared else "")
        return conninfo, shared, {"Database": where, **_pending(conninfo)}
    conninfo = stack.enter_context(embedded.running(folder))
    try:
        migration.apply(conninfo)
    except psycopg.Error as error:
        raise StartError(
            f"The schema of the embedded PostgreSQL in {folder} could not be created: "
            f"{connection.reason(error)}"
        ) from error
    return conninfo, False, {"Database": "embedded PostgreSQL", "Data": str(folder)}


def _pending(conninfo: str) -> dict[str, str]:
    """Returns the banner's line about missing migrations; nothing if there are none."""
    try:
        with connection.connect(conninfo) as conn, connection.answering(conn):
            lacking = migration.pending(conn)
    except psycopg.Error as error:
        return {"Schema": f"unknown: {connection.reason(error)}"}
    if not lacking:
        return {}
    return {"Schema": f"{', '.join(lacking)} pending: run hyperfleet migrate; until then, requests fail"}
