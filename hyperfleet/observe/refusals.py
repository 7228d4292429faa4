"""Writes that were refused, for the audit: recorded after the answer, as many as a disk can bear."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextvars import Context
from typing import Any, NamedTuple

import prometheus_client
import psycopg
from prometheus_client import CollectorRegistry
from psycopg.types.json import Jsonb

from hyperfleet.contract import document as contract
from hyperfleet.database import connection
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch
from hyperfleet.kinds import known_id
from hyperfleet.observe.metrics import OWN
from hyperfleet.settings import tenancy

logger = logging.getLogger(__name__)

# So many of a caller and of all are recorded in so many seconds, by each process.
OF_ONE, OF_ALL, SECONDS = 20, 300, 60.0
# Old records go so many at a time, and so many times before the next minute.
BATCH, BATCHES = 1000, 20
# Characters of a path.
LONGEST = 500

# A record is of the tenants of the resource, where the caller sees that, and else of the caller's. So
# nobody learns from it whether there is something of another's. In one order, since the trigger of
# migrations/0013.history.sql may add several tenants.
RECORD = """/* audit_refused */
INSERT INTO audit (time, actor, action, resource_type, resource_id, request, method, path, status, code,
                   tenancy)
SELECT now(), by, action, refused.kind, refused.id, request, method, path, status, code,
       coalesce(seen.tenancy, refused.tenancy, '{}') AS whose
FROM jsonb_to_recordset(%(rows)s) AS refused
    (by text, action text, kind text, id uuid, request text, method text, path text, status integer,
     code text, tenancy jsonb)
LEFT JOIN LATERAL (
    SELECT tenancy FROM all_resources AS one
    WHERE one.id = refused.id AND one.tenancy @> refused.tenancy LIMIT 1
) AS seen ON true
ORDER BY whose
RETURNING 1
"""

FORGET = """/* audit_forget */
DELETE FROM audit WHERE id IN (
    SELECT id FROM audit WHERE time < now() - make_interval(days => %(days)s)
    ORDER BY time LIMIT %(batch)s FOR UPDATE SKIP LOCKED
) RETURNING 1
"""


class Refused(NamedTuple):
    """A request that was refused.

    :param route: its path with - for what differs in it
    :param tenancy: of the caller; None where it is not known, or nobody asks
    """

    method: str
    route: str
    path: str
    status: int
    code: str
    by: str
    request: str
    tenancy: Mapping[str, str] | None = None


class Write(NamedTuple):
    """What an operation would have done; ``at`` is the segment of the path with the resource's id."""

    action: str
    kind: str
    at: int | None


def writes(document: dict[str, Any]) -> dict[tuple[str, str], Write]:
    """The operations of the contract that write, by method and route; reports are none: what becomes of
    them is among the transitions.
    """
    found = {}
    for path, method, operation in contract.operations(document):
        asked: Mapping[str, str] = operation.get("x-access-review", {})
        if asked.get("action", "get") == "get" or asked["resource_type"] == "AdapterStatus":
            continue
        segments = path.split("/")
        ids = [at for at, text in enumerate(segments) if text.startswith("{")]
        said = {"force-delete": "force-delete", "rollback": "rollback"}.get(segments[-1])
        # What is posted to a collection has no id yet.
        own = ids[-1] if ids and (said or ids[-1] == len(segments) - 1) else None
        action = said or {"post": "create"}.get(method, method)
        route = re.sub(r"\{[^}]*\}", "-", path)
        found[method.upper(), route] = Write(action, asked["resource_type"], own)
    return found


class Refusals:
    """Records what was refused, and forgets what is old.

    :param nobody: who it was, where nobody has to say it; empty: what nobody has asked for is left out
    :param days: for which records are kept; 0: for ever
    """

    def __init__(
        self,
        pool: Pool,
        document: dict[str, Any],
        registry: CollectorRegistry,
        nobody: str,
        days: int,
    ) -> None:
        self.pool, self.nobody, self.days = pool, nobody, days
        self.writes = writes(document)
        self.dropped = prometheus_client.Counter(
            "hyperfleet_audit_dropped",
            "Refused writes missing from the audit because there were too many.",
            [*OWN],
            registry=registry,
        ).labels(*OWN.values())
        self.rows: list[dict[str, Any]] = []
        # What was recorded since when, by caller.
        self.counts, self.since = Counter[tuple[str, str]](), time.monotonic()
        self.storing: asyncio.Task[None] | None = None
        self.forgetting: asyncio.Task[None] | None = None
        self.forgot = time.monotonic()

    def saw(self, refused: Refused) -> None:
        """Hears of a request that was answered; records it where it is a write that was refused."""
        write = self.writes.get((refused.method, refused.route))
        by = refused.by or self.nobody
        if write is None or not by or not 400 <= refused.status < 500:
            return
        whose = tenancy.text(refused.tenancy or {})
        # Where nobody shows who they are, all tenants are one caller.
        if not self._due((by, whose)):
            self.dropped.inc()
            return
        id_ = refused.path.split("/")[write.at] if write.at is not None else ""
        self.rows.append(
            {
                **{"by": by, "action": write.action, "kind": write.kind, "method": refused.method},
                **{"id": known_id(id_) or None, "path": refused.path[:LONGEST]},
                **{"status": refused.status, "code": refused.code, "request": refused.request},
                "tenancy": refused.tenancy or None,
            }
        )
        if self.storing is None:
            self.storing = asyncio.get_running_loop().create_task(self._store(), context=Context())

    def _due(self, by: tuple[str, str]) -> bool:
        now = time.monotonic()
        if now - self.since > SECONDS:
            self.counts, self.since = Counter(), now
        full = len(self.rows) >= OF_ALL or self.counts.total() >= OF_ALL
        if full or self.counts[by] >= OF_ONE:
            return False
        self.counts[by] += 1
        return True

    async def _store(self) -> None:
        """Stores what there is, all that came meanwhile with the next statement."""
        try:
            while self.rows:
                rows, self.rows = self.rows, []
                try:
                    await fetch(self.pool, RECORD, {"rows": Jsonb(rows)})
                except psycopg.Error as error:
                    self.dropped.inc(len(rows))
                    logger.warning("refusals are not in the audit: %s", connection.reason(error))
        finally:
            self.storing = None

    def beat(self) -> None:
        """Called every second; once a minute it begins to forget what is old."""
        now = time.monotonic()
        if self.days and now - self.forgot > SECONDS and self.forgetting is None:
            self.forgot = now
            self.forgetting = asyncio.get_running_loop().create_task(self._forget())

    async def _forget(self) -> None:
        try:
            for _ in range(BATCHES):
                gone = await fetch(self.pool, FORGET, {"days": self.days, "batch": BATCH})
                if len(gone) < BATCH:
                    break
                await asyncio.sleep(1)
        except psycopg.Error as error:
            logger.warning("old records of the audit stay for now: %s", connection.reason(error))
        finally:
            self.forgetting = None
