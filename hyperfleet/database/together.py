"""Statements that several callers ask for at the same moment, run once for all of them.

No caller gets data read before it asked: what is asked for while a statement runs waits for the next.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from hyperfleet.database.pool import POOL_TIMEOUT
from hyperfleet.engine.greenlets import begin

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Seconds after which a caller no longer waits for a running statement, and another begins beside it.
OVERDUE = 0.02
# The most that share a statement, so that neither its values nor its rows grow without bound.
LARGEST = 32

# Errors that one of those sharing a statement can cause, and that leave nothing behind.
BLAMED = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)


# The contexts of the callers for whom the current statement runs. It has no context of its own, since it
# belongs to none of them more than to the others.
sharers: ContextVar[tuple[Context, ...]] = ContextVar("sharers", default=())


class Asked(NamedTuple, Generic[V]):
    """A request for one row.

    :param values: what to write
    :param contexts: those of the callers that wait for the answer
    """

    values: Any
    answer: asyncio.Future[V | None]
    contexts: list[Context]


class Rounds(Generic[K, V]):
    """Reads or writes rows in rounds: one statement does all that was asked for since the last began.

    If it fails because of one row, it is run again for each row.

    :param work: runs the statement and returns rows by key; a missing key means not found, or not done
    """

    def __init__(self, work: Callable[[dict[K, Any]], Awaitable[Mapping[K, V]]]) -> None:
        self.work = work
        self.asked: dict[K, Asked[V]] = {}
        # The running rounds, each with the requests that it serves.
        self.tasks: dict[asyncio.Task[None], tuple[Asked[V], ...]] = {}
        self.busy = False

    async def get(self, key: K, values: Any = None) -> V | None:
        """Returns the row of a key, or None if there is none. Raises what the statement raises.

        :param values: what to write
        """
        known = self.asked.get(key)
        if known is not None and values is not None:
            # An earlier caller has gone, but what it wanted to write is still queued: write this apart.
            return (await self.work({key: values})).get(key)
        if known is None:
            known = self.asked[key] = Asked(values, _answer(), [])
            if not self.busy:
                self._begin()
        context = copy_context()
        known.contexts.append(context)
        try:
            # Shielded, so that one cancelled caller does not affect the others.
            return await asyncio.shield(known.answer)
        except asyncio.CancelledError:
            known.contexts[:] = [one for one in known.contexts if one is not context]
            self._left(known)
            raise

    def _left(self, asked: Asked[V]) -> None:
        """Cancels a round that no caller waits for any more.

        It would keep its connection and locks, as when a COMMIT waits for a standby that is away.
        """
        for task, all_asked in self.tasks.items():
            if any(one is asked for one in all_asked) and not any(one.contexts for one in all_asked):
                task.cancel()

    def _begin(self) -> None:
        self.busy = True
        task = asyncio.create_task(self._round(), context=Context())
        self.tasks[task] = ()
        # A round that hangs does not hold up the next one.
        overdue = asyncio.get_running_loop().call_later(OVERDUE, self._next)

        def ended(_: object) -> None:
            overdue.cancel()
            del self.tasks[task]
            self._next()

        task.add_done_callback(ended)

    def _next(self) -> None:
        self.busy = False
        if self.asked:
            self._begin()

    async def _round(self) -> None:
        # Collected only now, to include all that asked in the same turn of the loop.
        asked = {key: self.asked.pop(key) for key in list(islice(self.asked, LARGEST))}
        if not asked:
            # A round that began at the same moment does it all.
            return
        task = asyncio.current_task()
        assert task is not None
        self.tasks[task] = tuple(asked.values())
        try:
            await self._do(asked)
        except BLAMED:
            await asyncio.gather(*(self._one(key, one) for key, one in asked.items()))
        except BaseException as error:
            for one in asked.values():
                one.answer.set_exception(error)

    async def _one(self, key: K, one: Asked[V]) -> None:
        try:
            await self._do({key: one})
        except BaseException as error:
            one.answer.set_exception(error)

    async def _do(self, asked: Mapping[K, Asked[V]]) -> None:
        sharers.set(tuple(context for one in asked.values() for context in one.contexts))
        found = await self.work({key: one.values for key, one in asked.items()})
        for key, one in asked.items():
            one.answer.set_result(found.get(key))


class SharedReads:
    """Reads by a key that fully identifies them; callers that ask during a read share the next one.

    :param at_once: how many reads run at the same time, so that slow ones leave connections to others
    """

    def __init__(self, at_once: int) -> None:
        self.slots = asyncio.Semaphore(at_once)
        self.running: dict[Hashable, asyncio.Future[Any]] = {}
        self.next: dict[Hashable, asyncio.Future[Any]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[V]]) -> V:
        """Returns what ``read`` finds, whichever caller's is run. Raises what it raises."""
        answer = self.next.get(key)
        if answer is None:
            answer = _answer()
            before = self.running.get(key)
            if before is not None:
                self.next[key] = answer
            begin(self._read(key, read, answer, before))
            if before is None:
                self.running[key] = answer
        found: V = await asyncio.shield(answer)
        return found

    async def _read(
        self,
        key: Hashable,
        read: Callable[[], Awaitable[Any]],
        answer: asyncio.Future[Any],
        before: asyncio.Future[Any] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait([before], timeout=OVERDUE)
            # From now on, callers need a newer read than this one.
            del self.next[key]
            self.running[key] = answer
        try:
            async with slot(self.slots):
                answer.set_result(await read())
        except BaseException as error:
            answer.set_exception(error)
        finally:
            if self.running.get(key) is answer:
                del self.running[key]


@asynccontextmanager
async def slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Holds one of the slots for lists, for the block. Raises PoolTimeout if none is free in time."""
    try:
        async with asyncio.timeout(POOL_TIMEOUT):
            await slots.acquire()
    except TimeoutError:
        raise PoolTimeout("too many lists are being read") from None
    try:
        yield
    finally:
        slots.release()


def _answer() -> asyncio.Future[Any]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    # All callers may be gone; retrieving the error keeps asyncio from logging it as never retrieved.
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer
