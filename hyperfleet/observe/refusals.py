"""Refused writes in the audit: recorded after the response, at a limited rate."""

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

# How many refusals each process records of one caller, and of all, within how many seconds.
OF_ONE, OF_ALL, SECONDS = 20, 300, 60.0
# How many old records are removed at a time, and how many times every SECONDS.
BATCH, BATCHES = 1000, 20
# The most characters of a path that are recorded.
LONGEST = 500

# A record gets the tenancy of the resource if the caller may see that, otherwise the caller's own. So it
# does not reveal whether another tenant's resource exists. The rows are sorted by tenancy, since the
# trigger of migrations/0013.history.sql may add several tenants, and then in the order of the refusals.
RECORD = """/* audit_refused */
INSERT INTO audit (time, actor, action, resource_type, resource_id, request, method, path, status, code,
                   tenancy)
SELECT now(), by, action, refused.kind, refused.id, request, method, path, status, code,
       coalesce(seen.tenancy, refused.tenancy, '{}') AS whose
FROM ROWS FROM (jsonb_to_recordset(%(rows)s) AS
    (by text, action text, kind text, id uuid, request text, method text, path text, status integer,
     code text, tenancy jsonb)) WITH ORDINALITY AS refused
    (by, action, kind, id, request, method, path, status, code, tenancy, number)
LEFT JOIN LATERAL (
    SELECT tenancy FROM all_resources AS one
    WHERE one.id = refused.id AND one.tenancy @> refused.tenancy LIMIT 1
) AS seen ON true
ORDER BY whose, number
RETURNING 1
"""

FORGET = """/* audit_forget */
DELETE FROM audit WHERE id IN (
    SELECT id FROM audit WHERE time < now() - make_interval(days => %(days)s)
    ORDER BY time LIMIT %(batch)s FOR UPDATE SKIP LOCKED
) RETURNING 1
"""


class Refused(NamedTuple):
    """A refused request.

    :param route: its path with ``-`` for each parameter
    :param tenancy: the caller's; None if it is unknown or nobody asks for it
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
    """What an operation would do; ``at`` is the index of the path segment with the resource's id."""

    action: str
    kind: str
    at: int | None


def writes(document: dict[str, Any]) -> dict[tuple[str, str], Write]:
    """Returns the operations that write, by method and route, except reports, which transitions show."""
    found = {}
    for path, method, operation in contract.operations(document):
        asked: Mapping[str, str] = operation.get("x-access-review", {})
        if asked.get("action", "get") == "get" or asked["resource_type"] == "AdapterStatus":
            continue
        segments = path.split("/")
        ids = [at for at, text in enumerate(segments) if text.startswith("{")]
        said = {"force-delete": "force-delete", "rollback": "rollback"}.get(segments[-1])
        # A resource to be created has no id yet.
        own = ids[-1] if ids and (said or ids[-1] == len(segments) - 1) else None
        action = said or {"post": "create"}.get(method, method)
        route = re.sub(r"\{[^}]*\}", "-", path)
        found[method.upper(), route] = Write(action, asked["resource_type"], own)
    return found


class Refusals:
    """Records refused writes.

    :param nobody: the caller's name without authentication; if empty, anonymous requests are left out
    """

    def __init__(
        self, pool: Pool, document: dict[str, Any], registry: CollectorRegistry, nobody: str
    ) -> None:
        self.pool, self.nobody = pool, nobody
        self.writes = writes(document)
        self.dropped = prometheus_client.Counter(
            "hyperfleet_audit_dropped",
            "Refused writes missing from the audit because there were too many.",
            [*OWN],
            registry=registry,
        ).labels(*OWN.values())
        self.rows: list[dict[str, Any]] = []
        # How many records were made of each caller, and since when.
        self.counts, self.since = Counter[tuple[str, str]](), time.monotonic()
        self.storing: asyncio.Task[None] | None = None

    def saw(self, refused: Refused) -> None:
        """Records an answered request, if it is a write that was refused."""
        write = self.writes.get((refused.method, refused.route))
        by = refused.by or self.nobody
        if write is None or not by or not 400 <= refused.status < 500:
            return
        whose = tenancy.text(refused.tenancy or {})
        # Without authentication all callers have one name, but each tenancy has its own share.
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
        """Stores the pending records; those that arrive meanwhile share the next statement."""
        try:
            while self.rows:
                rows, self.rows = self.rows, []
                try:
                    await fetch(self.pool, RECORD, {"rows": Jsonb(rows)})
                except psycopg.Error as error:
                    self.dropped.inc(len(rows))
                    logger.warning(
                        "could not record refused requests in the audit: %s", connection.reason(error)
                    )
        finally:
            self.storing = None


async def forgetting(pool: Pool, days: int) -> None:
    """Removes old records of the audit once a minute, for as long as the service runs.

    :param days: how long records are kept; 0 means for ever
    """
    while days:
        await asyncio.sleep(SECONDS)
        try:
            for _ in range(BATCHES):
                gone = await fetch(pool, FORGET, {"days": days, "batch": BATCH})
                if len(gone) < BATCH:
                    break
                await asyncio.sleep(1)
        except (psycopg.Error, TimeoutError) as error:
            logger.warning("could not delete old audit records for now: %s", connection.reason(error))
