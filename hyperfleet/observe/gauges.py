"""What is looked at when Prometheus asks: connections, queues, and the fleet as the tables have it."""

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
from hyperfleet.kinds import RESOURCES, both
from hyperfleet.observe.metrics import OWN, resource_type

logger = logging.getLogger(__name__)

# Seconds for which the fleet's figures are shown again, and in which they must be there.
KEPT = 15.0
TIMEOUT = 0.8

# Of each kind how many resources there are by phase, from the index of phases alone; and those that are
# not as they are wanted: how many, how many for too long, and for how many seconds at most.
OF_KIND = both("""
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
    """How the connections to the database, the requests under way and the provider's schema are doing;
    of several processes together, as far as they have looked lately.
    """

    def __init__(self, registry: CollectorRegistry, pool: Pool, provider: Provider) -> None:
        self.pool, self.provider = pool, provider
        # How many requests are under way, and how many wait for the resource that most wait for.
        self.under_way: Callable[[], int] = lambda: 0
        self.longest: Callable[[], int] = lambda: 0
        # How many clients wait for changes, and for how many seconds the oldest one has been held back.
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
        """Sets them to what they are at this moment."""
        stats = self.pool.get_stats()
        for gauge, at in self.looks:
            gauge.set(at(self, stats))
        for kind in RESOURCES:
            self.validated.labels(kind).set(int(self.provider.validated(kind)))
        if self.read:
            self.read.set(int(not self.provider.trouble))


class Look(NamedTuple):
    """What a gauge shows, in words and of the gauges' parts and the pool's figures; and how it comes
    together of several processes.
    """

    told: str
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
    made = Gauge(name, look.told, [*OWN], registry=registry, multiprocess_mode=look.mode)
    return made.labels(*OWN.values())


class Fleet(Collector):
    """How many resources there are, and how many are not as they are wanted: with one statement, that is
    not sent again within some seconds, by whichever process of the group is asked.

    :param stuck: seconds after which a resource that is not as it is wanted is stuck
    """

    def __init__(self, pool: Pool, stuck: float) -> None:
        self.pool = pool
        self.stuck = stuck
        self.looked = float("-inf")
        self.rows: list[Any] = []
        self.lock = asyncio.Lock()
        group = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        # What the processes of a group have found, for each other.
        self.shared = Path(group) / "fleet.json" if group else None

    async def look(self) -> None:
        """Asks the database, unless it was just asked. What can't be had in time is not shown."""
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
                    # Another process asks at this moment; what was found before is shown again.
                    return
                if not self._fresh():
                    await self._ask()
                    new = self.shared.with_suffix(".new")
                    # Where there is no room for it, who is asked next asks again.
                    with suppress(OSError):
                        new.write_text(json.dumps([self.looked, self.rows]))
                        new.replace(self.shared)

    def _fresh(self) -> bool:
        """Whether what was found last, by whichever process, need not be asked for again."""
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
        """What was found. Nothing is shown of what there is none of, as in the original."""
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
