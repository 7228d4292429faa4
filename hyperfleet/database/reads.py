"""Reads by hot standbys, as far as these are not too far behind the primary; all others by the primary.

How far a standby is, is asked of the standby itself, in the session that reads; what the primary had
written is asked of the primary. So no clocks are compared, and it does not matter which server a name
leads to.
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
# Null: it is a standby no more, and no other server may be behind it.
REPLAYED = "/* replayed */ SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END"

PROMOTED = "the server is no standby"

# How many times within the staleness that is allowed each server is asked how far it is.
SAMPLES = 4
# Seconds that a request waits for a standby to have what it must see, and between two looks.
PATIENCE = 0.1
PAUSE = 0.01
# Seconds for which a standby that failed, or is too far behind, is left alone.
IDLE = 1.0
# A standby that gives no connection within so many seconds is passed by.
CONNECTION = 0.5
# Seconds in which a server must say how far it is.
ASKED = 1.0
# What no server has.
NEVER = "FFFFFFFF/FFFFFFFF"


def position(text: str) -> int:
    """A position in the log of changes, as a number, from PostgreSQL's text ``16/B374D848``."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


@dataclass
class Standby:
    """A hot standby.

    :param name: its host and port
    :param probe: a connection that requests do not use
    :param staleness: seconds after which a session is asked again whether it is of a standby
    :param idle_until: it is not asked before
    :param trouble: why, if it failed; ``behind`` where it is too far behind
    """

    name: str
    pool: Pool
    probe: Pool
    staleness: float
    idle_until: float = float("-inf")
    trouble: str = ""
    # How far the server behind a connection was, and when it said so.
    replayed: dict[Session, tuple[int, float]] = field(default_factory=dict)

    async def fetch(
        self, statement: str, values: Mapping[str, Any], prepare: bool | None, least: int, wanted: int
    ) -> list[TupleRow] | None:
        """The rows of a statement; None where the standby can't answer, or does not have all that was
        written before the position ``wanted``, or even before ``least``.
        """
        try:
            async with (
                self.pool.connection(CONNECTION) as conn,
                # Behind a pooler the next transaction may be with another server.
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
                # What it replays has removed rows that the statement could still see.
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
        """How far the server behind a connection is at least; asked only where that is not enough, and
        now and then, since it may have been promoted.
        """
        now = time.monotonic()
        known, at = self.replayed.get(conn, (-1, 0.0))
        if conn.travelling is None and known >= needed and now - at < self.staleness:
            return known
        [(text,)] = await fetch_on(self.pool, conn, REPLAYED, {}, None)
        if text is None:
            await self.pool.discard(conn)
            raise psycopg.OperationalError(PROMOTED)
        if len(self.replayed) > 2 * self.pool.max_size:
            # Of connections that are gone.
            self.replayed.clear()
        self.replayed[conn] = position(text), now
        return self.replayed[conn][0]

    async def watch(self) -> None:
        """Sees at once where the server says nothing any more, and sends elsewhere those who wait."""
        while True:
            try:
                async with asyncio.timeout(ASKED):
                    [(text,)] = await fetch(self.probe, REPLAYED, {})
                if text is None:
                    raise psycopg.OperationalError(PROMOTED)
            except (psycopg.Error, TimeoutError) as error:
                self._failed(error)
                # Until it answers.
                self.idle_until = float("inf")
                for conn in self.pool.used:
                    if conn.line is not None:
                        conn.line.cut()
            else:
                if self.idle_until == float("inf"):
                    self.idle_until = float("-inf")
            await asyncio.sleep(self.staleness / SAMPLES)

    def _failed(self, error: Exception) -> None:
        self.idle_until = max(self.idle_until, time.monotonic() + IDLE)
        if connection.busy(error) and self.pool.used:
            # It has too much to do.
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
    """Where rows are read that need not be the newest.

    :param primary: takes what no standby can
    :param standbys: none: the primary serves all
    :param probe: a connection to the primary that requests do not use
    :param staleness: seconds that a read may be behind the writes that others were acknowledged
    :param at_once: how many lists the primary is given at the same time in the place of standbys
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
        # When the primary was asked, and how far it was.
        self.samples: deque[tuple[float, int]] = deque()
        self.turn = 0
        # What goes on as long as the connections are open.
        self.works: list[Callable[[], Coroutine[Any, Any, None]]] = []
        # Told who has served a read.
        self.told: Callable[[str], None] = lambda _node: None
        self.positions: Rounds[None, str | None] = Rounds(self._position)

    async def __aenter__(self) -> Self:
        """Opens the connections; they are closed at the end of the block."""
        self.stack = AsyncExitStack()
        probes = [self.probe, *(one.probe for one in self.standbys)] if self.standbys else []
        for pool in (*self.pools(), *probes):
            await self.stack.enter_async_context(pool)
        works = [self._watch(), *(one.watch() for one in self.standbys)] if self.standbys else []
        works += [work() for work in self.works]
        self.watching = [asyncio.create_task(work) for work in works]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections."""
        for task in self.watching:
            task.cancel()
        await self.stack.aclose()

    def pools(self) -> list[Pool]:
        """The connections to all servers that requests use."""
        return [self.primary, *(one.pool for one in self.standbys)]

    def states(self) -> dict[str, tuple[str, float | None]]:
        """How each standby is doing, by its name: ``ok`` or what is wrong with it; and its age, which is
        not known.
        """
        return {f"standby {one.name}": (one.trouble or "ok", None) for one in self.standbys}

    async def written(self) -> str:
        """A position that all acknowledged writes are before; one that no standby ever reaches where the
        primary does not tell.
        """
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
            text = await self.written()
            if text != NEVER:
                self.samples.append((asked, position(text)))
            await asyncio.sleep(self.staleness / SAMPLES)

    def _least(self) -> int | None:
        """What a standby must have that is not too far behind; None: the primary does not tell."""
        oldest = time.monotonic() - self.staleness
        while self.samples and self.samples[0][0] < oldest:
            self.samples.popleft()
        return self.samples[0][1] if self.samples else None

    def _in_turn(self) -> list[Standby]:
        """The standbys that are not left alone; who comes first takes turns."""
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
        """The rows of one statement that only reads.

        :param prepare: ``False`` for one that is planned each time, for the very values
        :param few: whether it may take long, so that the primary is given few at once
        :param after: a position that what is read must not be before; standbys are waited for that have
            not come so far, but not for long
        Raises PoolTimeout where the primary has too many already.
        """
        wanted, deadline = position(after) if after else 0, time.monotonic() + PATIENCE
        while self.standbys and (least := self._least()) is not None and (some := self._in_turn()):
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
        """The rows of a statement as the primary has them; ``prepare`` and ``few`` as :meth:`fetch` has
        them.
        """
        if not self.standbys:
            return await fetch(self.primary, statement, values, prepare)
        self.told("primary")
        if not few:
            return await fetch(self.primary, statement, values, prepare)
        async with slot(self.slots):
            return await fetch(self.primary, statement, values, prepare)


@dataclass(frozen=True)
class Reader:
    """Reads for one request, in a greenlet; ``after`` as :meth:`Reads.fetch` has it."""

    reads: Reads
    after: str = ""

    @property
    def statement_timeout(self) -> float:
        """Seconds after which a statement is ended; 0: never."""
        return self.reads.primary.statement_timeout

    def rows(
        self, statement: str, values: Mapping[str, Any], *, prepare: bool | None = False
    ) -> list[TupleRow]:
        """The rows of a statement that may take long; ``prepare`` as :meth:`Reads.fetch` has it."""
        return wait_for(self.reads.fetch(statement, values, prepare, self.after, few=True))

    def one(self, statement: str, values: Mapping[str, Any]) -> TupleRow | None:
        """The first row of a statement that takes no time."""
        rows = wait_for(self.reads.fetch(statement, values, after=self.after))
        return rows[0] if rows else None

    def newest(self, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
        """As :meth:`rows`, by the primary, which has what any standby lags behind with."""
        return wait_for(self.reads.newest(statement, values, prepare=False, few=True))


def standbys(
    conninfo: str, size: int, statement_timeout: float, staleness: float, *, shared: bool
) -> list[Standby]:
    """The standbys that a connection string names, one for each of its hosts.

    A server that is no standby, as after its promotion, is not connected to unless the string says so.

    :param shared: whether a pooler is taken to be in between where that can't be found out now
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
        # Whoever is not ended by a server that is there is not heard by it.
        pool.patience = statement_timeout + ASKED if statement_timeout else pool.patience
        made.append(Standby(name, pool, probe, staleness))
    return made
