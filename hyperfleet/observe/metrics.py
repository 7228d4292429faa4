"""Metrics of the process, the connections and the provider's schema, for Prometheus."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
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


class PoolCollector(Collector):
    """How the connections to the database are doing."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def collect(self) -> Any:
        """The pool's numbers at this moment."""
        stats = self.pool.get_stats()
        for key, description in (
            ("pool_size", "Connections that are open."),
            ("pool_available", "Connections that are idle."),
            ("requests_waiting", "Requests that wait for a connection."),
        ):
            name = "hyperfleet_database_" + key
            yield GaugeMetricFamily(name, description, value=stats.get(key, 0))


class ProviderCollector(Collector):
    """Whether specs are validated, and whether the provider's file is in order."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def collect(self) -> Any:
        """The state at this moment."""
        validated = GaugeMetricFamily(
            "hyperfleet_spec_validation",
            "1 where specs of the kind are held against the provider's schema.",
            labels=["kind"],
        )
        for kind in RESOURCES:
            validated.add_metric([kind], int(self.provider.validated(kind)))
        yield validated
        if self.provider.path:
            yield GaugeMetricFamily(
                "hyperfleet_provider_schema_ok",
                "0 where the provider's schema could not be read when it was last tried.",
                value=int(not self.provider.trouble),
            )


def new_registry(pool: Pool, provider: Provider | None = None) -> CollectorRegistry:
    """Where metrics are kept: those of the process and the pool, and what the application adds."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(PoolCollector(pool))
    if provider is not None:
        registry.register(ProviderCollector(provider))
    return registry


def metrics_app(registry: CollectorRegistry) -> Starlette:
    """``/metrics`` in the formats of Prometheus."""

    exporter = PrometheusMetrics(None, path=None, export_defaults=False, registry=registry)

    def metrics(request: Request) -> Response:
        content, kind = exporter.generate_metrics(request.headers.get("accept"))
        return Response(content, headers={"content-type": kind})

    return Starlette(routes=[Route("/metrics", metrics)])
