"""Hot standbys: how far each of them is, and whether it may serve reads."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from hyperfleet.database import connection
from hyperfleet.database.pool import Pool, new_pool
from hyperfleet.database.session import Session
from hyperfleet.database.statements import fetch, fetch_on

logger = logging.getLogger(__name__)

# A position means nothing to a server of another cluster, such as one that the data was moved to.
SYSTEM = "(pg_control_system()).system_identifier"
# Null if the server is no longer a standby, in which case no other server may be behind it.
REPLAYED = (
    f"/* replayed */ SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, {SYSTEM}"
)

PROMOTED = "the server is no standby"
OTHER = "the server is a standby of another primary"
STRAYED = "it has changes that the primary does not have"

# How many times within the allowed staleness each server is asked for its position.
SAMPLES = 4
# Seconds for which a standby that failed, or is too far behind, is left alone.
IDLE = 1.0
# Seconds after which a standby that gives no connection is passed over.
CONNECTION = 0.5
# Seconds in which a server must report its position.
ASKED = 1.0

# Recovery conflicts: replay removed rows that the statement could still see, or waited for what it held
# while it waited for replay.
CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


def position(text: str) -> int:
    """Returns a WAL position as a number, from PostgreSQL's text form, such as ``16/B374D848``."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


@dataclass
class Standby:
    """A hot standby.

    :param name: its host and port
    :param probe: a pool of one connection that requests do not use
    :param staleness: seconds after which a session is asked again whether its server is still a standby
    :param system: the system identifier of the primary and all its standbys; None if not known yet
    :param idle_until: no reads are sent to it before this time
    :param trouble: why it failed; ``behind`` if it is too far behind; empty if all is well
    """

    name: str
    pool: Pool
    probe: Pool
    staleness: float
    system: int | None = None
    idle_until: float = float("-inf")
    trouble: str = ""
    # The position that the probe's server reported and when, and the one at which it was ahead of the
    # primary.
    probed: tuple[int, float] = (-1, 0.0)
    strayed: int | None = None

    async def fetch(
        self, statement: str, values: Mapping[str, Any], prepare: bool | None, least: int, wanted: int
    ) -> list[TupleRow] | None:
        """Returns the rows of a statement, or None if the standby cannot answer or has not caught up.

        It must have replayed ``least`` and ``wanted``; if it lacks ``least``, it is too far behind.
        """
        try:
            async with (
                self.pool.connection(CONNECTION) as conn,
                # Behind a pooler, the next transaction may be on another server.
                nullcontext() if conn.travelling is None else conn.transaction(),
            ):
                replayed = await self._replayed(conn, max(least, wanted))
                if replayed < least:
                    self._behind()
                if replayed < max(least, wanted):
                    return None
                rows = await fetch_on(self.pool, conn, statement, values, prepare)
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
            if isinstance(error, CONFLICTS):
                return None
            if not connection.absent(error):
                raise
            self._failed(error)
            return None
        if self.trouble:
            logger.info("standby %s serves again", self.name)
            self.trouble = ""
        return rows

    async def _replayed(self, conn: Session, needed: int) -> int:
        """Returns a position that the connection's server has replayed at least.

        It is asked only if the known one is not enough, and now and then in case it was promoted.
        """
        now = time.monotonic()
        known, at = conn.replayed
        if conn.travelling is None and known >= needed and now - at < self.staleness:
            return known
        rows = await fetch_on(self.pool, conn, REPLAYED, {}, None)
        try:
            reached = self._reached(rows)
        except psycopg.OperationalError:
            await self.pool.discard(conn)
            raise
        conn.replayed = reached, now
        return reached

    def _reached(self, rows: list[TupleRow]) -> int:
        """Returns a server's position; raises OperationalError if it is no standby of this primary."""
        [(text, system)] = rows
        if text is None:
            raise psycopg.OperationalError(PROMOTED)
        if self.system not in (None, system):
            raise psycopg.OperationalError(OTHER)
        return position(text)

    async def watch(self) -> None:
        """Notices at once if the server stops answering, and sends waiting requests elsewhere."""
        while True:
            try:
                async with asyncio.timeout(ASKED):
                    reached = self._reached(await fetch(self.probe, REPLAYED, {}))
                self.probed = reached, time.monotonic()
                if reached == self.strayed:
                    # It stays there, and would count as recent once the primary has come as far.
                    raise psycopg.OperationalError(STRAYED)
            except (psycopg.Error, TimeoutError) as error:
                self._out(error)
                for conn in self.pool.used:
                    if conn.line is not None:
                        conn.line.cut()
            else:
                if self.idle_until == float("inf"):
                    self.idle_until = float("-inf")
            await asyncio.sleep(self.staleness / SAMPLES)

    def compare(self, written: int, asked: float) -> None:
        """Skips the standby if it was ahead of the position that the primary reported later.

        Then it is no standby of this primary: after a failover to another standby, it has changes that
        were lost, and lacks new ones.
        """
        replayed, at = self.probed
        if at < asked and replayed > written and replayed != self.strayed:
            self.strayed = replayed
            self._out(psycopg.OperationalError(STRAYED))

    def _out(self, error: Exception) -> None:
        """Skips the standby until its probe is answered."""
        self._failed(error)
        self.idle_until = float("inf")

    def _failed(self, error: Exception) -> None:
        self.idle_until = max(self.idle_until, time.monotonic() + IDLE)
        if connection.busy(error) and self.pool.used:
            # It is merely busy.
            return
        reason = connection.reason(error) or "no answer"
        if self.trouble in ("", "behind"):
            logger.warning("standby %s does not serve: %s", self.name, reason)
        self.trouble = reason

    def _behind(self) -> None:
        self.idle_until = max(self.idle_until, time.monotonic() + IDLE)
        if not self.trouble:
            logger.warning("standby %s is too far behind", self.name)
            self.trouble = "behind"


def standbys(
    conninfo: str, size: int, statement_timeout: float, staleness: float, *, shared: bool
) -> list[Standby]:
    """Returns the standbys that a connection string names, one for each of its hosts.

    Unless the string says otherwise, a server that is no longer a standby is not connected to.

    :param shared: whether to assume a pooler if that cannot be found out now
    """
    known = {"target_session_attrs": "standby", **conninfo_to_dict(conninfo)}
    hosts = str(known.get("host") or "").split(",")
    addresses = str(known.get("hostaddr") or "").split(",")
    ports = str(known.get("port") or "5432").split(",")
    made = []
    for index, host in enumerate(hosts if known.get("host") else addresses):
        own = {**known, "port": ports[index if len(ports) > 1 else 0]}
        own |= {"host": hosts[index]} if hosts != [""] else {}
        own |= {"hostaddr": addresses[index]} if addresses != [""] else {}
        text = make_conninfo(**own)  # type: ignore[arg-type]
        name = f"{host or 'localhost'}:{own['port']}"
        pooled = connection.pooled(text, shared)
        pool, probe = (
            new_pool(text, most, statement_timeout, shared=pooled, name=f"standby {name}")
            for most in (size, 1)
        )
        # A live server would have cancelled the statement by then, so no answer means that it is gone.
        pool.patience = statement_timeout + ASKED if statement_timeout else pool.patience
        made.append(Standby(name, pool, probe, staleness))
    return made
