"""Metrics that are read when Prometheus asks: connections, queues, and the fleet from its tables."""

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hyperfleet.contract.provider import Provider
from hyperfleet.database import connection
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch
from hyperfleet.kinds import RESOURCES, PerKind
from hyperfleet.observe.metrics import OWN, resource_type

logger = logging.getLogger(__name__)

# Seconds for which the fleet's figures are reused, and within which they must be read.
KEPT = 15.0
TIMEOUT = 0.8

# For each kind, the number of resources by phase, from the index of phases alone; and of those not in
# their desired state, the number, the number stuck in that, and the longest time of these in seconds.
OF_KIND = PerKind("""
(SELECT '{kind}', phase, NULL::boolean, count(*), NULL::bigint, NULL::float8 FROM {table}
 WHERE true {only} GROUP BY phase)
UNION ALL
(SELECT '{kind}', NULL, deleted, count(*), count(*) FILTER (WHERE seconds > %(stuck)s),
        max(seconds) FILTER (WHERE seconds > %(stuck)s)
 FROM (SELECT deleted_time IS NOT NULL AS deleted, extract(epoch FROM now() - (
           jsonb_path_query_first(status, '$.conditions[*] ? (@.type == "Reconciled")')
           ->> 'last_transition_time')::timestamptz)::float8 AS seconds
       FROM {table} WHERE reconciled = 'False' {only}) AS pending
 GROUP BY deleted)
""")


class Gauges:
    """Gauges for database connections, requests in flight and the provider's schema.

    With several processes, they combine what each last set.
    """

    def __init__(self, registry: CollectorRegistry, pool: Pool, provider: Provider) -> None:
        self.pool, self.provider = pool, provider
        # How many requests are in flight, and how many wait for the resource with the longest queue.
        self.under_way: Callable[[], int] = lambda: 0
        self.longest: Callable[[], int] = lambda: 0
        # How many clients wait for changes, and for how many seconds the oldest change is held back.
        self.waiting: Callable[[], int] = lambda: 0
        self.delay: Callable[[], float] = lambda: 0.0
        self.looks = [(_gauge(name, look, registry), look.at) for name, look in LOOKS.items()]
        self.validated = Gauge(
            "hyperfleet_spec_validation",
            "1 if specs of the kind are validated by the provider's schema.",
            ["kind"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.read = provider.path and Gauge(
            "hyperfleet_provider_schema_ok",
            "0 if the last attempt to read the provider's schema failed.",
            registry=registry,
            multiprocess_mode="livemin",
        )

    def update(self) -> None:
        """Sets the gauges to their current values."""
        stats = self.pool.get_stats()
        for gauge, at in self.looks:
            gauge.set(at(self, stats))
        for kind in RESOURCES:
            self.validated.labels(kind).set(int(self.provider.validated(kind)))
        if self.read:
            self.read.set(int(not self.provider.trouble))


class Look(NamedTuple):
    """A gauge: its help text, its value, and how the values of several processes are combined."""

    help: str
    at: Callable[[Gauges, Mapping[str, int]], float]
    mode: Any = "livesum"


LOOKS = {
    "hyperfleet_db_connections_open": Look(
        "Connections to the database.", lambda _, stats: stats.get("pool_size", 0)
    ),
    "hyperfleet_db_connections_in_use": Look(
        "Connections in use by a statement.",
        lambda _, stats: stats.get("pool_size", 0) - stats.get("pool_available", 0),
    ),
    "hyperfleet_db_connections_waiting": Look(
        "Statements that wait for a connection.", lambda _, stats: stats.get("requests_waiting", 0)
    ),
    "hyperfleet_api_requests_in_flight": Look(
        "Requests not answered yet.", lambda gauges, _: gauges.under_way()
    ),
    "hyperfleet_api_resource_queue_longest": Look(
        "Requests waiting to change the resource with the longest queue.",
        lambda gauges, _: gauges.longest(),
        "livemax",
    ),
    "hyperfleet_api_changes_waiting": Look(
        "Clients that wait for changes.", lambda gauges, _: gauges.waiting()
    ),
    "hyperfleet_api_changes_delay_seconds": Look(
        "For how long an older transaction that still runs has held back the oldest change; measured "
        "while a client waits.",
        lambda gauges, _: gauges.delay(),
        "livemax",
    ),
}


def _gauge(name: str, look: Look, registry: CollectorRegistry) -> Gauge:
    made = Gauge(name, look.help, [*OWN], registry=registry, multiprocess_mode=look.mode)
    return made.labels(*OWN.values())


class Fleet(Collector):
    """The numbers of resources, and of those not in their desired state, from one statement.

    It is run again only after some seconds, whichever process of the group is asked.

    :param stuck: seconds after which a resource not in its desired state counts as stuck
    """

    def __init__(self, pool: Pool, stuck: float) -> None:
        self.pool = pool
        self.stuck = stuck
        self.looked = float("-inf")
        self.rows: list[Any] = []
        self.lock = asyncio.Lock()
        group = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        # The results, shared by the processes of a group.
        self.shared = Path(group) / "fleet.json" if group else None

    async def look(self) -> None:
        """Queries the database unless its results are recent; shows nothing without a timely answer."""
        async with self.lock:
            if self._fresh():
                return
            if self.shared is None:
                await self._ask()
                return
            with self.shared.with_suffix(".lock").open("w") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # Another process is querying at this moment; the previous results are shown again.
                    return
                if not self._fresh():
                    await self._ask()
                    new = self.shared.with_suffix(".new")
                    # Without space for the file, the process that is asked next queries again.
                    with suppress(OSError):
                        new.write_text(json.dumps([self.looked, self.rows]))
                        new.replace(self.shared)

    def _fresh(self) -> bool:
        """Returns whether the last results, by whichever process, are recent enough to be reused."""
        if self.shared and self.shared.exists():
            self.looked, self.rows = json.loads(self.shared.read_text())
        return 0 <= time.monotonic() - self.looked < KEPT

    async def _ask(self) -> None:
        statement = "/* fleet */" + "UNION ALL".join(OF_KIND[kind] for kind in RESOURCES)
        try:
            async with asyncio.timeout(TIMEOUT):
                self.rows = await fetch(self.pool, statement, {"stuck": self.stuck})
        except (psycopg.Error, TimeoutError) as error:
            self.rows = []
            told = connection.reason(error) or f"no answer within {TIMEOUT:g} s"
            logger.warning("the metrics of the fleet could not be read: %s", told)
        self.looked = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """Yields the results, without series for what there is none of, as in the original."""
        prefix, pending = "hyperfleet_api_resource", "hyperfleet_api_resource_pending_reconciliation"
        names = ["resource_type", "is_delete", *OWN]
        resources = GaugeMetricFamily(
            f"{prefix}s", "Resources by their phase.", labels=["resource_type", "phase", *OWN]
        )
        waiting = GaugeMetricFamily(pending, "Resources not in their desired state.", labels=names)
        stuck = GaugeMetricFamily(
            f"{pending}_stuck", "Resources that have long not been in their desired state.", labels=names
        )
        longest = GaugeMetricFamily(
            f"{pending}_stuck_duration_seconds", "Seconds for the longest of these.", labels=names
        )
        for kind, phase, deleted, count, late, seconds in self.rows:
            of = resource_type(kind)
            if deleted is None:
                resources.add_metric([of, phase or "", *OWN.values()], count)
                continue
            labels = [of, str(deleted).lower(), *OWN.values()]
            waiting.add_metric(labels, count)
            if late:
                stuck.add_metric(labels, late)
                longest.add_metric(labels, seconds)
        yield from (resources, waiting, stuck, longest)
