"""Health checks: whether the process is alive, whether it can work, and what keeps it from that."""

import asyncio
import logging
import mmap
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hyperfleet.auth.remote import is_loopback
from hyperfleet.contract.provider import Provider
from hyperfleet.database import connection, migration
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import PlainConnection
from hyperfleet.engine.greenlets import begin, run, wait_for
from hyperfleet.kinds import RESOURCES

logger = logging.getLogger(__name__)

# Probes allow a second or a few; a busy pool counts as not ready.
TIMEOUT = 2.0

# Also true on a standby, whatever the session's settings.
READ_ONLY = "/* readiness */ SELECT current_setting('transaction_read_only')"


class Health:
    """What keeps the service from working, check by check.

    :param others: the states of anything else, such as each source of keys and each standby: ``ok`` or
        what is wrong, and since when, in monotonic time
    :param ending: set from the moment that the service stops
    """

    def __init__(
        self,
        pool: Pool,
        provider: Provider,
        others: Callable[[], Mapping[str, tuple[str, float | None]]],
        ending: threading.Event,
    ) -> None:
        self.pool, self.provider, self.others, self.ending = pool, provider, others, ending
        # Whether an operator has taken the service out of rotation: one byte shared by all its
        # processes, including any started later.
        self.maintenance = mmap.mmap(-1, 1)
        # The last state of each check, and since when, as far as is known.
        self.said: dict[str, tuple[str, float]] = {}
        self.begun = time.monotonic()

    async def found(self) -> dict[str, Any]:
        """Returns what is wrong with the database, as members of a response."""
        try:
            async with self.pool.connection(TIMEOUT) as conn:
                return await run(self._look, PlainConnection(self.pool, conn))
        except psycopg.Error as error:
            logger.warning("not ready: %s", connection.reason(error))
            return {"database": _word(error)}

    def _look(self, conn: PlainConnection) -> dict[str, Any]:
        if conn.execute(READ_ONLY).fetchone() == ("on",):
            # Maybe only this session has not noticed that the server now takes writes.
            wait_for(self.pool.discard(conn.conn))
            return {"database": "read-only"}
        pending = migration.pending(conn)
        return {"pending_migrations": pending} if pending else {}

    async def database(self) -> dict[str, Any]:
        """Does the same within a time limit."""
        # It outlives the probe, since cancelling a query that hangs takes as long as it hangs.
        looking = begin(self.found())
        done, _ = await asyncio.wait([looking], timeout=TIMEOUT + 1)
        return looking.result() if done else {"database": "not answering"}

    async def ready(self, request: Request) -> JSONResponse:
        """``/readyz``: answers 503 and what is wrong if something keeps the service from working.

        With ``?verbose``, as in Kubernetes, it reports every check.
        """
        own, found = self._own(), await self.database()
        self._note(own, found)
        if "verbose" in request.query_params:
            return self._verbose(own, found)
        wrong = own or found
        if wrong:
            return JSONResponse({"status": "unavailable", **wrong}, 503)
        answer: dict[str, Any] = {"status": "ok", "database": "ok", "pending_migrations": []}
        if self.provider.path:
            answer["provider_schema"] = {
                "status": self.provider.trouble or "ok",
                "validated": [kind for kind in RESOURCES if self.provider.validated(kind)],
            }
        return JSONResponse(answer)

    def _own(self) -> dict[str, Any]:
        if self.ending.is_set():
            return {"draining": True}
        return {"maintenance": True} if self.maintenance[0] else {}

    def _note(self, own: Mapping[str, Any], wrong: Mapping[str, Any]) -> None:
        """Records since when each check has been in its state."""
        database = wrong.get("database", "ok")
        pending = wrong.get("pending_migrations", [])
        lost = "" if database in ("ok", "read-only") else "unknown"
        states = {
            "draining": "draining" if "draining" in own else "ok",
            "maintenance": "down" if "maintenance" in own else "ok",
            "database": "ok" if database == "read-only" else database,
            "writable": lost or ("read-only" if database == "read-only" else "ok"),
            "migrations": lost or (", ".join(pending) + " pending" if pending else "ok"),
        }
        if self.provider.path:
            states["provider_schema"] = self.provider.trouble or "ok"
        now = time.monotonic()
        for name, state in states.items():
            # A check that is ok when first made is taken to have been so from the start.
            said, _ = self.said.setdefault(name, (state, self.begun if state == "ok" else now))
            if said != state:
                self.said[name] = state, now

    def _verbose(self, own: Mapping[str, Any], wrong: Mapping[str, Any]) -> JSONResponse:
        now = time.monotonic()
        checks: dict[str, Any] = {}
        for name, (state, since) in (self.said | dict(self.others())).items():
            age = None if since is None else round(now - since, 3)
            checks[name] = {"state": state, "age_seconds": age}
        ready = not (own or wrong)
        return JSONResponse(
            {"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503
        )

    async def healthcheck(self, _request: Request) -> JSONResponse:
        """``/healthcheck``, as in the first generation: what is wrong, by the name of the check."""
        own = self._own()
        wrong = {"maintenance_status": "maintenance mode"} if "maintenance" in own else own
        wrong = wrong or await self.database()
        return JSONResponse(wrong, 503 if wrong else 200)

    async def switch(self, request: Request) -> JSONResponse:
        """``POST /healthcheck/down`` and ``/up``: takes the service out of rotation, and back."""
        client = request.client.host if request.client else ""
        if not is_loopback(client):
            return JSONResponse({"error": "only from the machine itself"}, 403)
        self.maintenance[0] = down = request.url.path.endswith("/down")
        logger.warning("an operator says: %s", "down" if down else "up")
        return JSONResponse({})


def health_app(health: Health) -> Starlette:
    """Returns the application with ``/healthz``, which always answers ok, and the others of Health."""

    async def alive(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/healthz", alive),
            Route("/readyz", health.ready),
            Route("/healthcheck", health.healthcheck),
            Route("/healthcheck/down", health.switch, methods=["POST"]),
            Route("/healthcheck/up", health.switch, methods=["POST"]),
        ]
    )


def _word(error: psycopg.Error) -> str:
    """Returns what a probe is told about a database error."""
    if connection.busy(error):
        return "busy"
    if connection.refused(error):
        return "refuses connections"
    return "not reachable" if connection.absent(error) else "error"
