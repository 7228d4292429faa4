"""Reads from hot standbys that are not too far behind the primary, and from the primary otherwise.

A standby itself says how far it has replayed, in the session that reads; the primary says how far it had
written. So no clocks are compared, and it does not matter which server a host name leads to.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from hyperfleet.database import connection
from hyperfleet.database.pool import Pool, new_pool
from hyperfleet.database.session import Session
from hyperfleet.database.statements import fetch, fetch_on
from hyperfleet.database.together import Rounds, slot
from hyperfleet.engine.greenlets import wait_for

logger = logging.getLogger(__name__)

WRITTEN = "/* position */ SELECT pg_current_wal_lsn()"
# A position means nothing to a server of another cluster, such as one that the data was moved to.
SYSTEM = "(pg_control_system()).system_identifier"
SAMPLE = f"/* sample */ SELECT pg_current_wal_lsn(), {SYSTEM}"
# Null if the server is no longer a standby, in which case no other server may be behind it.
REPLAYED = (
    f"/* replayed */ SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, {SYSTEM}"
)

PROMOTED = "the server is no standby"
OTHER = "the server is a standby of another primary"
STRAYED = "it has changes that the primary does not have"

# How many times within the allowed staleness each server is asked for its position.
SAMPLES = 4
# Seconds that a request waits for a standby to catch up, and between two attempts.
PATIENCE = 0.1
PAUSE = 0.01
# Seconds for which a standby that failed, or is too far behind, is left alone.
IDLE = 1.0
# Seconds after which a standby that gives no connection is passed over.
CONNECTION = 0.5
# Seconds in which a server must report its position.
ASKED = 1.0
# A position that no server reaches.
NEVER = "FFFFFFFF/FFFFFFFF"


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
    # For each connection, the position that its server reported, and when.
    replayed: dict[Session, tuple[int, float]] = field(default_factory=dict)
    # The same for the probe, and the position at which it was ahead of the primary.
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
            if isinstance(error, psycopg.errors.SerializationFailure):
                # A recovery conflict: replay removed rows that the statement could still see.
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
        known, at = self.replayed.get(conn, (-1, 0.0))
        if conn.travelling is None and known >= needed and now - at < self.staleness:
            return known
        rows = await fetch_on(self.pool, conn, REPLAYED, {}, None)
        try:
            reached = self._reached(rows)
        except psycopg.OperationalError:
            await self.pool.discard(conn)
            raise
        if len(self.replayed) > 2 * self.pool.max_size:
            # Most of these connections are gone.
            self.replayed.clear()
        self.replayed[conn] = reached, now
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


class Reads:
    """Reads rows that need not be the newest.

    :param primary: serves what no standby can
    :param standbys: if there are none, the primary serves everything
    :param probe: a pool to the primary that requests do not use
    :param staleness: seconds by which a read may lag behind acknowledged writes of others
    :param at_once: how many lists the primary may run at the same time in place of standbys
    """

    def __init__(
        self,
        primary: Pool,
        standbys: Sequence[Standby] = (),
        probe: Pool | None = None,
        staleness: float = 0,
        at_once: int = 1,
    ) -> None:
        self.primary, self.standbys, self.staleness = primary, standbys, staleness
        self.probe = probe or primary
        self.slots = asyncio.Semaphore(at_once)
        # When the primary was asked for its position, and the position.
        self.samples: deque[tuple[float, int]] = deque()
        self.turn = 0
        # The system identifier that the primary reported then.
        self.system: int | None = None
        # Run in the background for as long as the connections are open.
        self.works: list[Callable[[], Coroutine[Any, Any, None]]] = []
        # Called with the name of the server that served a read.
        self.told: Callable[[str], None] = lambda _node: None
        self.positions: Rounds[None, str | None] = Rounds(self._position)

    async def __aenter__(self) -> Self:
        """Opens the connections, until the end of the block."""
        self.stack = AsyncExitStack()
        probes = [self.probe, *(one.probe for one in self.standbys)] if self.standbys else []
        for pool in (*self.pools(), *probes):
            await self.stack.enter_async_context(pool)
        works = [self._watch(), *(one.watch() for one in self.standbys)] if self.standbys else []
        works += [work() for work in self.works]
        self.watching = [asyncio.create_task(work) for work in works]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops the background work and closes the connections."""
        for task in self.watching:
            task.cancel()
        await self.stack.aclose()

    def pools(self) -> list[Pool]:
        """Returns the pools that requests use, the primary's first."""
        return [self.primary, *(one.pool for one in self.standbys)]

    def states(self) -> dict[str, tuple[str, float | None]]:
        """Returns each standby's state by name: ``ok`` or what is wrong with it, and None as its age."""
        return {f"standby {one.name}": (one.trouble or "ok", None) for one in self.standbys}

    async def written(self) -> str:
        """Returns a WAL position after all acknowledged writes, or :data:`NEVER` if it is unknown."""
        with suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(ASKED):
                return await self.positions.get(None) or NEVER
        return NEVER

    async def _position(self, asked: Mapping[None, Any]) -> dict[None, str | None]:
        [(text,)] = await fetch(self.probe, WRITTEN, {})
        return dict.fromkeys(asked, text)

    async def _watch(self) -> None:
        while True:
            asked = time.monotonic()
            with suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(ASKED):
                    [(text, system)] = await fetch(self.probe, SAMPLE, {})
                if system != self.system:
                    self.samples.clear()
                    self.system = system
                for one in self.standbys:
                    one.system = system
                    one.compare(position(text), asked)
                self.samples.append((asked, position(text)))
            await asyncio.sleep(self.staleness / SAMPLES)

    def _least(self) -> int | None:
        """Returns the position that a standby must have replayed; None if the primary does not tell."""
        oldest = time.monotonic() - self.staleness
        while self.samples and self.samples[0][0] < oldest:
            self.samples.popleft()
        return self.samples[0][1] if self.samples else None

    def _in_turn(self) -> list[Standby]:
        """Returns the standbys that may be asked now; they take turns at being first."""
        self.turn += 1
        now, first = time.monotonic(), self.turn % len(self.standbys)
        return [one for one in (*self.standbys[first:], *self.standbys[:first]) if one.idle_until < now]

    async def fetch(
        self,
        statement: str,
        values: Mapping[str, Any],
        prepare: bool | None = None,
        after: str = "",
        *,
        few: bool = False,
    ) -> list[TupleRow]:
        """Returns the rows of one read-only statement.

        :param prepare: ``False`` to have it planned each time for the given values
        :param few: whether it may take long, so that the primary runs only a few of these at once
        :param after: a WAL position that the read must include; waits briefly for a standby to reach it
        Raises PoolTimeout if the primary has too many such statements already.
        """
        wanted, deadline = position(after) if after else 0, time.monotonic() + PATIENCE
        able = self.standbys and after != NEVER
        while able and (least := self._least()) is not None and (some := self._in_turn()):
            for one in some:
                rows = await one.fetch(statement, values, prepare, least, wanted)
                if rows is not None:
                    self.told(one.name)
                    return rows
            if wanted <= least or time.monotonic() > deadline:
                break
            await asyncio.sleep(PAUSE)
        return await self.newest(statement, values, prepare, few=few)

    async def newest(
        self,
        statement: str,
        values: Mapping[str, Any],
        prepare: bool | None = None,
        *,
        few: bool = False,
    ) -> list[TupleRow]:
        """Returns the rows of a statement from the primary; parameters as for :meth:`fetch`."""
        if not self.standbys:
            return await fetch(self.primary, statement, values, prepare)
        self.told("primary")
        if not few:
            return await fetch(self.primary, statement, values, prepare)
        async with slot(self.slots):
            return await fetch(self.primary, statement, values, prepare)


@dataclass(frozen=True)
class Reader:
    """Reads for one request, in a greenlet; ``after`` as for :meth:`Reads.fetch`."""

    reads: Reads
    after: str = ""

    @property
    def statement_timeout(self) -> float:
        """Seconds after which the server cancels a statement; 0 means never."""
        return self.reads.primary.statement_timeout

    def rows(
        self, statement: str, values: Mapping[str, Any], *, prepare: bool | None = False
    ) -> list[TupleRow]:
        """Returns the rows of a statement that may take long; ``prepare`` as for :meth:`Reads.fetch`."""
        return wait_for(self.reads.fetch(statement, values, prepare, self.after, few=True))

    def one(self, statement: str, values: Mapping[str, Any]) -> TupleRow | None:
        """Returns the first row of a quick statement, or None."""
        rows = wait_for(self.reads.fetch(statement, values, after=self.after))
        return rows[0] if rows else None

    def of_primary(self) -> "Reader":
        """Returns the same, without standbys."""
        return Reader(self.reads, NEVER)

    def newest(self, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
        """Like :meth:`rows`, but from the primary, which has what standbys have yet to replay."""
        return wait_for(self.reads.newest(statement, values, prepare=False, few=True))


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
    for index, host in enumerate(hosts if len(hosts) >= len(addresses) else addresses):
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
