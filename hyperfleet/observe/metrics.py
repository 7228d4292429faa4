"""What is counted and timed for Prometheus: requests, statements, and the progress of resources."""

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

# The series with the time at which each counter was created are of no use.
disable_created_metrics()  # type: ignore[no-untyped-call]

# The path of requests without a route, so that clients cannot create new series.
UNKNOWN = "unknown"
# Labels of every metric of the API.
OWN = {"component": "api", "version": __version__}
# Seconds in which a file that a process has created must have contents.
PATIENCE = 1.0
# Seconds; the same as in the original, whose dashboards compare with them.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
STATEMENT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Requests:
    """The number of requests and their durations by route, including refused ones.

    :param first: whether to count them by the first generation's names, too
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
        # A gauge, since the library would append _total to the name of a counter.
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
        # The children for labels, since looking them up takes longer than counting.
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
    """The durations of statements and their errors, by name."""

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

    def count(self, name: str, seconds: float, error: psycopg.Error | None) -> None:
        """Counts a statement; a callback for :attr:`hyperfleet.database.pool.Pool.on_statement`."""
        if error is not None:
            self.errors.labels(name, type(error).__name__, *OWN.values()).inc()
            return
        known = self.known.get(name)
        if known is None:
            known = self.known[name] = self.seconds.labels(name, *OWN.values())
        known.observe(seconds)


class Events:
    """Counts what happens to resources and reports; a :class:`hyperfleet.service.Events`."""

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
        """Counts a resource that is no longer in its desired state."""
        self.begun.labels(resource_type(kind), str(deleting).lower(), *OWN.values()).inc()

    def reported(self, kind: str, outcome: str) -> None:
        """Counts a report."""
        self.reports.labels(resource_type(kind), outcome, *OWN.values()).inc()


def resource_type(kind: str) -> str:
    """Returns the name of a kind in metrics, such as ``cluster`` or ``nodepool``."""
    return kind.lower()


def reads(registry: CollectorRegistry) -> Callable[[str], None]:
    """Returns a function to call with the server of each read: ``primary``, or a standby's host:port."""
    counter = Counter(
        "hyperfleet_db_reads",
        "Read-only statements, by the server that ran them.",
        ["node", *OWN],
        registry=registry,
    )
    return lambda node: counter.labels(node, *OWN.values()).inc()


def build_info(registry: CollectorRegistry) -> None:
    """Adds a metric with the version that is running."""
    Gauge(
        "hyperfleet_api_build_info",
        "Always 1; the labels say which build it is.",
        [*OWN, "commit", "python_version"],
        registry=registry,
        multiprocess_mode="max",
    ).labels(*OWN.values(), __commit__, platform.python_version()).set(1)


class Processes(Collector):
    """The resources of the machine that the service's processes use together."""

    def collect(self) -> Iterator[Metric]:
        """Yields their current sums; of start times and file limits, the lowest."""
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
    """Returns the ids of the processes that write metrics, including this one."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return {os.getpid()}
    names = (path.stem.rpartition("_")[2] for path in Path(folder).glob("*.db"))
    return {int(name) for name in names if Path(f"/proc/{name}").exists()}


def go_on_from(pid: int) -> None:
    """Takes over an ended process's files; otherwise each scrape would read those of all ended ones.

    Call it before anything is counted in this process.
    """
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob(f"*_{pid}.db"):
        path.rename(path.with_stem(path.stem.removesuffix(str(pid)) + str(os.getpid())))


def _counted(exporter: PrometheusMetrics) -> tuple[str, str]:
    """Returns what all processes have counted, as text, and its media type."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            content, kind = exporter.generate_metrics()
        except (struct.error, FileNotFoundError):
            # A process has just created a file that is still empty, or has taken one over.
            if time.monotonic() > until:
                raise
            time.sleep(0.005)
        else:
            return content, kind


def metrics_app(registry: CollectorRegistry, update: Callable[[], Awaitable[Collector]]) -> Starlette:
    """Returns the application with ``/metrics``, in Prometheus's text format, for all processes.

    :param registry: metrics that are counted
    :param update: called before each scrape to set the others; returns a collector to be shown, too
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
