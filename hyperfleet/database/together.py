"""Statements that several ask for at the same moment, run once for all of them.

Nobody is answered with what was read before the question: what is asked for while a statement runs
waits for the next one.
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

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Seconds after which who waits for the end of the same statement begins a new one beside it.
PATIENCE = 0.02
# As many at most share one, so that neither the values nor the rows of one grow without bound.
LARGEST = 32

# What a statement can fail of because of one of those who share it, and which leaves nothing behind.
BLAMED = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.TransactionRollback,
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)


# For whom the statement at hand is run: the contexts of those who asked. It has none itself, since it
# is no more the one's than the other's.
sharers: ContextVar[tuple[Context, ...]] = ContextVar("sharers", default=())


class Asked(NamedTuple, Generic[V]):
    """What somebody has asked for.

    :param values: what is to be written
    :param contexts: of those who asked, and wait for the answer
    """

    values: Any
    answer: asyncio.Future[V | None]
    contexts: list[Context]


class Rounds(Generic[K, V]):
    """Reads or writes of single rows, in rounds: one statement does all that was asked for since the
    last began. One that fails because of one row is done again for each.

    :param work: runs the statement, and finds the rows by their keys; those that it leaves out are not
        there, or not done
    """

    def __init__(self, work: Callable[[dict[K, Any]], Awaitable[Mapping[K, V]]]) -> None:
        self.work = work
        self.asked: dict[K, Asked[V]] = {}
        # The rounds, each with what it does.
        self.tasks: dict[asyncio.Task[None], tuple[Asked[V], ...]] = {}
        self.busy = False

    async def get(self, key: K, values: Any = None) -> V | None:
        """The row of a key; None where there is none. Raises what the statement raises.

        :param values: what is to be written
        """
        known = self.asked.get(key)
        if known is not None and values is not None:
            # Who asked has gone away, and has left what it wanted to be written.
            return (await self.work({key: values})).get(key)
        if known is None:
            known = self.asked[key] = Asked(values, _answer(), [])
            if not self.busy:
                self._begin()
        context = copy_context()
        known.contexts.append(context)
        try:
            # One who goes away takes nothing from the others.
            return await asyncio.shield(known.answer)
        except asyncio.CancelledError:
            known.contexts[:] = [one for one in known.contexts if one is not context]
            self._left(known)
            raise

    def _left(self, asked: Asked[V]) -> None:
        """Ends the round that nobody waits for any more, which would keep its connection and its locks,
        as where a COMMIT waits for a standby that is away.
        """
        for task, all_asked in self.tasks.items():
            if any(one is asked for one in all_asked) and not any(one.contexts for one in all_asked):
                task.cancel()

    def _begin(self) -> None:
        self.busy = True
        task = asyncio.create_task(self._round(), context=Context())
        self.tasks[task] = ()
        # A round that hangs keeps nobody from the next one.
        overdue = asyncio.get_running_loop().call_later(PATIENCE, self._next)

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
        # Only now, so that all who came with the same turn of the loop are among them.
        asked = {key: self.asked.pop(key) for key in list(islice(self.asked, LARGEST))}
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


class Once:
    """Reads of anything, by a key that says all of what is wanted: those who ask for the same while it
    is being read share the next reading.

    :param at_once: how many are read at the same time, so that slow ones leave connections to others
    """

    def __init__(self, at_once: int) -> None:
        self.slots = asyncio.Semaphore(at_once)
        self.running: dict[Hashable, asyncio.Future[Any]] = {}
        self.next: dict[Hashable, asyncio.Future[Any]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: Hashable, read: Callable[[], Awaitable[V]]) -> V:
        """What ``read`` finds, whoever calls it. Raises what it raises."""
        answer = self.next.get(key)
        if answer is None:
            answer = _answer()
            before = self.running.get(key)
            if before is not None:
                self.next[key] = answer
            task = asyncio.create_task(self._read(key, read, answer, before))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
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
            await asyncio.wait([before], timeout=PATIENCE)
            # From here on, who asks wants to know what is newer.
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
    """One of the slots for lists, for the block. Raises PoolTimeout where none comes free in time."""
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
    # Those who asked may be gone; then nobody wants to hear of an error.
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer
