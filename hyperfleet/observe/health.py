"""What operators ask: is the process alive, can it do its work, what has it done."""

import asyncio
import logging
import threading
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hyperfleet.contract.provider import Provider
from hyperfleet.database import connection, migration
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import session
from hyperfleet.greenlets import run, wait_for
from hyperfleet.kinds import RESOURCES

logger = logging.getLogger(__name__)

# A probe has a second or a few; a busy pool counts as not ready.
TIMEOUT = 2.0

# Also of a standby, whatever its sessions were told.
READ_ONLY = "/* readiness */ SELECT current_setting('transaction_read_only')"


def health_app(
    pool: Pool, provider: Provider | None = None, ending: threading.Event | None = None
) -> Starlette:
    """``/healthz``: the process answers. ``/readyz`` and ``/healthcheck``: it has its database, in the
    schema that it needs, and may write; else 503, and the answer says what is missing. Specs that the
    provider's schema does not guard are mentioned, but no reason to send requests elsewhere. From the
    moment that ``ending`` is set, nothing is ready.
    """

    under_way: set[asyncio.Task[JSONResponse]] = set()

    def look() -> JSONResponse:
        try:
            with session(pool, TIMEOUT) as conn:
                read_only = conn.execute(READ_ONLY).fetchone() == ("on",)
                if read_only:
                    # It may be the session alone that has not heard of the end yet.
                    wait_for(pool.discard(conn.conn))
                else:
                    pending = migration.pending(conn)
        except psycopg.Error as error:
            logger.warning("not ready: %s", connection.reason(error))
            return JSONResponse({"status": "unavailable", "database": _word(error)}, 503)
        if read_only:
            return JSONResponse({"status": "unavailable", "database": "read-only"}, 503)
        if pending:
            return JSONResponse({"status": "unavailable", "pending_migrations": pending}, 503)
        answer: dict[str, Any] = {"status": "ok", "database": "ok", "pending_migrations": []}
        if provider is not None and provider.path:
            answer["provider_schema"] = {
                "status": provider.trouble or "ok",
                "validated": [kind for kind in RESOURCES if provider.validated(kind)],
            }
        return JSONResponse(answer)

    async def ready(_request: Request) -> JSONResponse:
        if ending is not None and ending.is_set():
            return JSONResponse({"status": "unavailable", "draining": True}, 503)
        # Not ended with the probe: to cancel what hangs takes as long as it hangs.
        looking = asyncio.create_task(run(look))
        under_way.add(looking)
        looking.add_done_callback(under_way.discard)
        done, _ = await asyncio.wait([looking], timeout=TIMEOUT + 1)
        if not done:
            return JSONResponse({"status": "unavailable", "database": "not answering"}, 503)
        return looking.result()

    async def alive(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/healthz", alive),
            Route("/readyz", ready),
            Route("/healthcheck", ready),
        ]
    )


def _word(error: psycopg.Error) -> str:
    """What a probe is told of a database that fails."""
    if connection.busy(error):
        return "busy"
    if connection.refused(error):
        return "refuses connections"
    return "not reachable" if connection.absent(error) else "error"
