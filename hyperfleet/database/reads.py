"""Reads from hot standbys that are not too far behind the primary, and from the primary otherwise.

A standby itself says how far it has replayed, in the session that reads; the primary says how far it had
written. So no clocks are compared, and it does not matter which server a host name leads to.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from psycopg.rows import TupleRow

from hyperfleet.database.pool import Pool
from hyperfleet.database.standby import ASKED, SAMPLES, SYSTEM, Standby, position
from hyperfleet.database.statements import fetch
from hyperfleet.database.together import Rounds, slot
from hyperfleet.engine.greenlets import wait_for

WRITTEN = "/* position */ SELECT pg_current_wal_lsn()"
SAMPLE = f"/* sample */ SELECT pg_current_wal_lsn(), {SYSTEM}"

# Seconds that a request waits for a standby to catch up, and between two attempts.
PATIENCE = 0.1
PAUSE = 0.01
# A position that no server reaches.
NEVER = "FFFFFFFF/FFFFFFFF"


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
        self.on_read: Callable[[str], None] = lambda _node: None
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
                    self.on_read(one.name)
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
        self.on_read("primary")
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
