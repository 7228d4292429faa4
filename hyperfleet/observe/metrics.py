"""What is counted and timed, for Prometheus: requests, statements, what becomes of resources."""

import asyncio
import os
import platform
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_flask_exporter import PrometheusMetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hyperfleet import __commit__, __version__
from hyperfleet.kinds import KINDS

# A series for each counter that says when it was made is of no use to anybody.
disable_created_metrics()  # type: ignore[no-untyped-call]

# The path of what no route was found for, so that nobody can make up new ones.
UNKNOWN = "unknown"
# What every metric of the API says of itself.
OWN = {"component": "api", "version": __version__}
# Seconds in which a file that a process has made must have something in it.
PATIENCE = 1.0
# Seconds; the same as those of the original, whose dashboards compare with them.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
STATEMENT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Requests:
    """How many requests there were, and how long they took: refusals included, by route.

    :param first: also as the first generation called them
    """

    def __init__(self, registry: CollectorRegistry, *, first: bool = False) -> None:
        names = ["method", "path", "code"]
        self.total = Counter("hyperfleet_api_requests", "Requests.", [*names, *OWN], registry=registry)
        self.seconds = Histogram(
            "hyperfleet_api_request_duration_seconds",
            "Seconds from a request to the end of its answer.",
            [*names, *OWN],
            registry=registry,
            buckets=BUCKETS,
        )
        # A counter of that name can't be had from the library, which puts _total behind it.
        self.first = first and (
            Gauge(
                "api_inbound_request_count",
                "Requests.",
                names,
                registry=registry,
                multiprocess_mode="sum",
            ),
            Histogram(
                "api_inbound_request_duration",
                "Seconds from a request to the end of its answer.",
                names,
                registry=registry,
                buckets=(0.1, 1, 10, 30),
            ),
        )
        self.refused = Counter(
            "hyperfleet_api_requests_refused",
            "Requests that were refused because too many were under way.",
            [*OWN],
            registry=registry,
        ).labels(*OWN.values())
        # What labels lead to; to look it up takes longer than to count.
        self.known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str, path: str, code: int, seconds: float) -> None:
        """Counts a request."""
        found = self.known.get((method, path, code))
        if found is None:
            labels = {"method": method, "path": path, "code": str(code), **OWN}
            found = self.total.labels(**labels), self.seconds.labels(**labels)
            self.known[method, path, code] = found
        found[0].inc()
        found[1].observe(seconds)
        if self.first:
            self.first[0].labels(method, path, str(code)).inc()
            self.first[1].labels(method, path, str(code)).observe(seconds)


class Statements:
    """How long statements take, by their names, and what they fail of."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "hyperfleet_db_query_duration_seconds",
            "Seconds from sending a statement to receiving its rows.",
            ["operation", *OWN],
            registry=registry,
            buckets=STATEMENT_BUCKETS,
        )
        self.errors = Counter(
            "hyperfleet_db_errors",
            "Statements and transactions that failed.",
            ["operation", "error_type", *OWN],
            registry=registry,
        )
        self.known: dict[str, Histogram] = {}

    def told(self, name: str, seconds: float, error: psycopg.Error | None) -> None:
        """Hears of a statement, as :meth:`hyperfleet.database.pool.Pool.saw` does."""
        if error is not None:
            self.errors.labels(name, type(error).__name__, *OWN.values()).inc()
            return
        known = self.known.get(name)
        if known is None:
            known = self.known[name] = self.seconds.labels(name, *OWN.values())
        known.observe(seconds)


class Events:
    """What becomes of resources and of reports, as :class:`hyperfleet.service.Events` wants it told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.begun = Counter(
            "hyperfleet_api_reconciliation_started",
            "Resources that were created, marked as deleted, or changed while in their desired state.",
            ["resource_type", "is_delete", *OWN],
            registry=registry,
        )
        self.reports = Counter(
            "hyperfleet_api_reports",
            "Reports of adapters: accepted, or discarded for a reason.",
            ["resource_type", "outcome", *OWN],
            registry=registry,
        )

    def started(self, kind: str, *, deleting: bool) -> None:
        """Counts a resource that is no longer as it is wanted."""
        self.begun.labels(resource_type(kind), str(deleting).lower(), *OWN.values()).inc()

    def reported(self, kind: str, outcome: str) -> None:
        """Counts a report."""
        self.reports.labels(resource_type(kind), outcome, *OWN.values()).inc()


def resource_type(kind: str) -> str:
    """What metrics call a kind: ``cluster``, ``nodepool``."""
    return KINDS[kind].name.lower()


def reads(registry: CollectorRegistry) -> Callable[[str], None]:
    """What is told who has served a read: a standby, by its host and port, or the primary."""
    counter = Counter(
        "hyperfleet_db_reads",
        "Read-only statements, by the server that ran them.",
        ["node", *OWN],
        registry=registry,
    )
    return lambda node: counter.labels(node, *OWN.values()).inc()


def build_info(registry: CollectorRegistry) -> None:
    """Says which version runs."""
    Gauge(
        "hyperfleet_api_build_info",
        "Always 1; the labels say which build it is.",
        [*OWN, "commit", "python_version"],
        registry=registry,
        multiprocess_mode="max",
    ).labels(*OWN.values(), __commit__, platform.python_version()).set(1)


class Processes(Collector):
    """What the service's processes use of the machine, all together."""

    def collect(self) -> Iterator[Metric]:
        """The sums at this moment; the oldest process's start."""
        found: dict[str, Metric] = {}
        for pid in _processes():
            for metric in ProcessCollector(pid=pid.__int__, registry=None).collect():
                known = found.setdefault(metric.name, metric)
                if known is not metric:
                    [one], [other] = known.samples, metric.samples
                    least = "start_time" in metric.name or "max_fds" in metric.name
                    value = min(one.value, other.value) if least else one.value + other.value
                    known.samples = [one._replace(value=value)]
        yield from found.values()


def _processes() -> set[int]:
    """The processes that write metrics, this one among them."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return {os.getpid()}
    names = (path.stem.rpartition("_")[2] for path in Path(folder).glob("*.db"))
    return {int(name) for name in names if Path(f"/proc/{name}").exists()}


def go_on_from(pid: int) -> None:
    """Takes over the files of a process that has ended, before anything is counted in this one: else the
    files of all that ever ended would be kept, and read by each scrape.
    """
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob(f"*_{pid}.db"):
        path.rename(path.with_stem(path.stem.removesuffix(str(pid)) + str(os.getpid())))


def _counted(exporter: PrometheusMetrics) -> tuple[str, str]:
    """What all processes have counted, as text, and its media type."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            content, kind = exporter.generate_metrics()
        except (struct.error, FileNotFoundError):
            # A process has just made a file, in which there is nothing yet, or taken one over.
            if time.monotonic() > until:
                raise
            time.sleep(0.005)
        else:
            return content, kind


def metrics_app(registry: CollectorRegistry, update: Callable[[], Awaitable[Collector]]) -> Starlette:
    """``/metrics`` in the text format of Prometheus, of all processes that share the work.

    :param registry: what is counted
    :param update: called before, to set what is not counted but looked at; what it returns is shown too
    """
    exporter = PrometheusMetrics(None, path=None, export_defaults=False, registry=registry)
    own = CollectorRegistry()
    own.register(Processes())
    PlatformCollector(registry=own)
    GCCollector(registry=own)

    def written(more: Collector) -> tuple[bytes, str]:
        content, kind = _counted(exporter)
        seen = CollectorRegistry()
        seen.register(more)
        return content.encode() + generate_latest(own) + generate_latest(seen), kind

    async def metrics(_request: Request) -> Response:
        content, kind = await asyncio.to_thread(written, await update())
        return Response(content, headers={"content-type": kind})

    return Starlette(routes=[Route("/metrics", metrics)])
