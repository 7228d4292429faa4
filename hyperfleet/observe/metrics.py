"""Metrics of the process, the connections and the provider's schema, for Prometheus."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_flask_exporter import PrometheusMetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hyperfleet import __version__
from hyperfleet.contract.provider import Provider
from hyperfleet.database.pool import Pool
from hyperfleet.kinds import RESOURCES

# The path of what no route was found for, so that nobody can make up new ones.
UNKNOWN = "unknown"


class Requests:
    """How many requests there were, and how long they took: refusals included, by route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        own = {"component": "api", "version": __version__}
        names = ["method", "path", "code", *own]
        self.own = own
        self.total = Counter("hyperfleet_api_requests", "Requests.", names, registry=registry)
        self.seconds = Histogram(
            "hyperfleet_api_request_duration_seconds",
            "Seconds from a request to the end of its answer.",
            names,
            registry=registry,
        )
        # What labels lead to; to look it up takes longer than to count.
        self.known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str, path: str, code: int, seconds: float) -> None:
        """Counts a request."""
        found = self.known.get((method, path, code))
        if found is None:
            labels = {"method": method, "path": path, "code": str(code), **self.own}
            found = self.total.labels(**labels), self.seconds.labels(**labels)
            self.known[method, path, code] = found
        found[0].inc()
        found[1].observe(seconds)


class Gauges:
    """How the connections to the database and the provider's schema are doing; of several processes
    together, as far as they have looked lately.
    """

    def __init__(self, registry: CollectorRegistry, pool: Pool, provider: Provider) -> None:
        self.pool, self.provider = pool, provider
        self.connections = {
            key: Gauge(
                f"hyperfleet_database_{key}", told, registry=registry, multiprocess_mode="livesum"
            )
            for key, told in (
                ("pool_size", "Connections that are open."),
                ("pool_available", "Connections that are idle."),
                ("requests_waiting", "Requests that wait for a connection."),
            )
        }
        self.validated = Gauge(
            "hyperfleet_spec_validation",
            "1 where specs of the kind are held against the provider's schema.",
            ["kind"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.read = provider.path and Gauge(
            "hyperfleet_provider_schema_ok",
            "0 where the provider's schema could not be read when it was last tried.",
            registry=registry,
            multiprocess_mode="livemin",
        )

    def update(self) -> None:
        """Sets them to what they are at this moment."""
        stats = self.pool.get_stats()
        for key, gauge in self.connections.items():
            gauge.set(stats.get(key, 0))
        for kind in RESOURCES:
            self.validated.labels(kind).set(int(self.provider.validated(kind)))
        if self.read:
            self.read.set(int(not self.provider.trouble))


class Processes(Collector):
    """What the service's processes use of the machine, all together."""

    def collect(self) -> Iterator[Metric]:
        """The sums at this moment; the oldest process's start."""
        found: dict[str, Metric] = {}
        for pid in _processes():
            for metric in ProcessCollector(pid=pid.__int__, registry=None).collect():
                known = found.setdefault(metric.name, metric)
                for one, other in zip(known.samples, metric.samples, strict=True):
                    if known is not metric:
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


def metrics_app(registry: CollectorRegistry, update: Callable[[], None]) -> Starlette:
    """``/metrics`` in the text format of Prometheus, of all processes that share the work.

    :param registry: what is counted
    :param update: called before, to set what is not counted but looked at
    """
    exporter = PrometheusMetrics(None, path=None, export_defaults=False, registry=registry)
    own = CollectorRegistry()
    own.register(Processes())
    PlatformCollector(registry=own)
    GCCollector(registry=own)

    def metrics(_request: Request) -> Response:
        update()
        content, kind = exporter.generate_metrics()
        return Response(content.encode() + generate_latest(own), headers={"content-type": kind})

    return Starlette(routes=[Route("/metrics", metrics)])
