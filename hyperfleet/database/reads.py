"""Reads by hot standbys, as far as these are not too far behind the primary; all others by the primary.

How far a standby is, is asked of the standby itself, in the session that reads; what the primary had
written is asked of the primary. So no clocks are compared, and it does not matter which server a name
leads to.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from hyperfleet.database import connection
from hyperfleet.database.pool import Pool, new_pool
from hyperfleet.database.session import Session
from hyperfleet.database.statements import fetch, fetch_on
from hyperfleet.database.together import Rounds
from hyperfleet.greenlets import wait_for

logger = logging.getLogger(__name__)

WRITTEN = "/* position */ SELECT pg_current_wal_lsn()"
# Null: it is a standby no more, and no other server may be behind it.
REPLAYED = "/* replayed */ SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END"

# How many times within the staleness that is allowed the primary is asked how far it is.
SAMPLES = 4
# Seconds that a request waits for a standby to have what it must see, and between two looks.
PATIENCE = 0.25
PAUSE = 0.01
# Seconds for which a standby that failed, or is too far behind, is left alone.
IDLE = 1.0
# A standby that gives no connection within so many seconds is passed by.
CONNECTION = 0.5
# Seconds in which the answer to a write must learn how far the primary is.
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
    :param idle_until: it is not asked before
    :param trouble: why, if it failed; ``behind`` where it is too far behind
    """

    name: str
    pool: Pool
    idle_until: float = float("-inf")
    trouble: str = ""
    # How far the server behind a connection was.
    replayed: dict[Session, int] = field(default_factory=dict)

    async def fetch(
        self, statement: str, values: Mapping[str, Any], prepare: bool | None, least: int, wanted: int
    ) -> list[TupleRow] | None:
        """The rows of a statement; None where the standby can't answer, or does not have all that was
        written before the position ``wanted``, or even before ``least``.
        """
        try:
            async with self.pool.connection(CONNECTION) as conn:
                replayed = await self._replayed(conn, max(least, wanted))
                if replayed < least:
                    self._behind()
                if replayed < max(least, wanted):
                    return None
                rows = await fetch_on(self.pool, conn, statement, values, prepare)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
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
        """How far the server behind a connection is at least; asked only where that is not enough."""
        # Behind a pooler the next transaction may be with another server.
        if conn.travelling is None and (known := self.replayed.get(conn, -1)) >= needed:
            return known
        [(text,)] = await fetch_on(self.pool, conn, REPLAYED, {}, None)
        if text is None:
            await self.pool.discard(conn)
            raise psycopg.OperationalError("the server is no standby")
        if len(self.replayed) > 2 * self.pool.max_size:
            # Of connections that are gone.
            self.replayed.clear()
        self.replayed[conn] = position(text)
        return self.replayed[conn]

    def _failed(self, error: psycopg.Error) -> None:
        self.idle_until = time.monotonic() + IDLE
        if isinstance(error, PoolTimeout) and error.__cause__ is None:
            # It has too much to do.
            return
        if self.trouble in ("", "behind"):
            logger.warning("standby %s does not serve: %s", self.name, connection.reason(error))
        self.trouble = connection.reason(error)

    def _behind(self) -> None:
        self.idle_until = time.monotonic() + IDLE
        if not self.trouble:
            logger.warning("standby %s is too far behind", self.name)
            self.trouble = "behind"


class Reads:
    """Where rows are read that need not be the newest.

    :param primary: takes what no standby can
    :param standbys: none: the primary serves all
    :param staleness: seconds that a read may be behind the writes that others were acknowledged
    :param at_once: how many reads the primary is given at the same time in the place of standbys
    """

    def __init__(
        self, primary: Pool, standbys: Sequence[Standby] = (), staleness: float = 0, at_once: int = 1
    ) -> None:
        self.primary, self.standbys, self.staleness = primary, standbys, staleness
        self.slots = asyncio.Semaphore(at_once)
        # When the primary was asked, and how far it was.
        self.samples: deque[tuple[float, int]] = deque()
        self.turn = 0
        # Told who has served a read.
        self.told: Callable[[str], None] = lambda _node: None
        self.positions: Rounds[None, str | None] = Rounds(self._position)

    async def __aenter__(self) -> Self:
        """Opens the connections; they are closed at the end of the block."""
        self.stack = AsyncExitStack()
        for pool in self.pools():
            await self.stack.enter_async_context(pool)
        self.watch = asyncio.create_task(self._watch()) if self.standbys else None
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections."""
        if self.watch is not None:
            self.watch.cancel()
        await self.stack.aclose()

    def pools(self) -> list[Pool]:
        """The connections to all servers."""
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
        [(text,)] = await fetch(self.primary, WRITTEN, {})
        return dict.fromkeys(asked, text)

    async def _watch(self) -> None:
        while True:
            asked = time.monotonic()
            with suppress(psycopg.Error):
                text = await self.positions.get(None)
                self.samples.append((asked, position(text or NEVER)))
            await asyncio.sleep(self.staleness / SAMPLES)

    def _least(self) -> int | None:
        """What a standby must have that is not too far behind; None: the primary does not tell."""
        oldest = time.monotonic() - self.staleness
        while self.samples and self.samples[0][0] < oldest:
            self.samples.popleft()
        return self.samples[0][1] if self.samples else None

    def _in_turn(self) -> Iterator[Standby]:
        self.turn += 1
        now, count = time.monotonic(), len(self.standbys)
        for index in range(count):
            one = self.standbys[(self.turn + index) % count]
            if one.idle_until < now:
                yield one

    async def fetch(
        self, statement: str, values: Mapping[str, Any], prepare: bool | None = None, after: str = ""
    ) -> list[TupleRow]:
        """The rows of one statement that only reads.

        :param after: a position that what is read must not be before; standbys are waited for that have
            not come so far, but not for long
        """
        if not self.standbys:
            return await fetch(self.primary, statement, values, prepare)
        wanted, deadline = position(after) if after else 0, time.monotonic() + PATIENCE
        while (least := self._least()) is not None:
            for one in self._in_turn():
                rows = await one.fetch(statement, values, prepare, least, wanted)
                if rows is not None:
                    self.told(one.name)
                    return rows
            if wanted <= least or time.monotonic() > deadline:
                break
            await asyncio.sleep(PAUSE)
        async with self.slots:
            self.told("primary")
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

    def rows(self, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
        """The rows of a statement that is planned each time, for the very values: how to search for a
        label depends on which one.
        """
        return wait_for(self.reads.fetch(statement, values, prepare=False, after=self.after))


def standbys(conninfo: str, size: int, statement_timeout: float, *, shared: bool) -> list[Standby]:
    """The standbys that a connection string names, one for each of its hosts.

    A server that is no standby, as after its promotion, is not connected to unless the string says so.
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
        pool = new_pool(make_conninfo(**own), size, statement_timeout, shared=shared)  # type: ignore[arg-type]
        made.append(Standby(f"{host or 'localhost'}:{own['port']}", pool))
    return made
