"""Metrics of the process, the connections and the provider's schema, for Prometheus."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hyperfleet.contract.provider import Provider
from hyperfleet.database.pool import Pool
from hyperfleet.kinds import RESOURCES


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
    """``/metrics`` in the text format of Prometheus."""

    def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return Starlette(routes=[Route("/metrics", metrics)])
