"""A connection of the pool: how it waits for the server, and what it makes of JSON."""

import asyncio
import json
import os
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

import orjson
import psycopg
from psycopg._queries import PostgresQuery
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import Loader, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.waiting import Ready, Wait

T = TypeVar("T")

# Seconds in which a server must have given up what it is asked to.
GIVE_UP = 0.5
# The part of PostgreSQL that warns of a COMMIT which no standby has. Its words are in any language.
ALONE = "SyncRepWaitForLSN"


class Raw(Loader):
    """Texts that only pass through: what a statement casts to ``bpchar``, which costs nothing, comes as
    the bytes that it is.
    """

    def load(self, data: Buffer) -> bytes:
        """The bytes."""
        return bytes(data)


# Integers that orjson may not hold; JSON has no bound for them, and PostgreSQL none that matters. Looked
# for as so many of one digit: a regular expression takes twelve times as long.
ZEROS = bytes.maketrans(b"123456789", b"000000000")
LARGE = b"0" * 18


def _dumps(value: Any) -> bytes:
    """JSON text of a value."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def _loads(text: bytes | str) -> Any:
    """The value of JSON text."""
    known = text.encode() if isinstance(text, str) else text
    return json.loads(known) if LARGE in known.translate(ZEROS) else orjson.loads(known)


class Session(psycopg.AsyncConnection[TupleRow]):
    """A connection of the pool. Behind a pooler of connections it is nobody's own, so ``travelling``
    holds what each transaction has to set for itself.
    """

    travelling: dict[str, str] | None = None
    line: "Line | None" = None
    # Whether the server has given up waiting for its standby, in what it was asked last.
    alone = False

    def adapt(self) -> None:
        """Gives JSON to orjson, and texts that only pass through to :class:`Raw`."""
        self.add_notice_handler(self._noticed)
        self.adapters.register_loader("bpchar", Raw)
        set_json_dumps(_dumps, self)
        set_json_loads(_loads, self)

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Lets the loop do other things until what ``gen`` does with the server is done.

        As psycopg's own, but the loop is told of the socket once for each connection, and not for each
        8 kB that come.

        Raises SystemError, as psycopg has it, for what is done and a standby was not waited for, since
        somebody has ended the wait: it is no more certain than what was not answered.
        """
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        self.alone = False
        try:
            if self.line is None or self.line.closed:
                self.line = Line(self.pgconn.socket)
            found = await self.line.wait(gen)
        except OSError as error:
            raise psycopg.OperationalError("the socket of the connection is closed") from error
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self._end(gen, interval)
            raise
        finally:
            if self.pgconn.status != ConnStatus.OK:
                self._hang_up()
        if self.alone:
            raise psycopg.errors.SystemError("the wait for a standby was cut short; it may lack this")
        return found

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        self.alone = self.alone or notice.source_function == ALONE

    async def rows(
        self, statement: str, values: Mapping[str, Any], prepare: bool | None = None
    ) -> list[TupleRow]:
        """The rows of one statement; ``prepare`` as psycopg's ``execute`` has it.

        As a cursor of psycopg would get them, for less: what is prepared, or is not to be,
        is sent at once, and its result taken. To prepare, and to forget it, is left to psycopg.
        """
        transformer = Transformer(self)
        query = PostgresQuery(transformer)
        query.convert(statement, values)
        names, key = self._prepared._names, (query.query, query.types)
        if prepare is False:
            self.pgconn.send_query_params(query.query, query.params, query.types, query.formats)
        elif key in names:
            names.move_to_end(key)
            self.pgconn.send_query_prepared(names[key], query.params, query.formats)
        else:
            cursor = await self.execute(statement, values, prepare=prepare)
            return await cursor.fetchall()
        results = await self.wait(execute(self.pgconn))
        for result in results:
            # The last is an error where the server says goodbye right behind what was found.
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
        result = results[0]
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)

    async def close(self) -> None:
        """Closes the connection."""
        self._hang_up()
        await super().close()

    async def abandon(self) -> None:
        """Hangs up on what does not come to its end, and asks the server to give it up: while one waits
        for a standby, it does not notice that nobody is there any more.
        """
        asking = asyncio.create_task(self.cancel_safe(timeout=GIVE_UP))
        # Whom to ask is known from here on.
        await asyncio.sleep(0)
        if self.line is not None:
            self.line.cut()
        # A server that is gone need not be asked.
        with suppress(psycopg.Error, OSError):
            await asking

    def _hang_up(self) -> None:
        if self.line is not None:
            self.line.close()

    async def _end(self, gen: PQGen[Any], interval: float) -> None:
        """Asks the server to give up what it does, so that the connection can be used again."""
        try:
            await self._try_cancel(timeout=GIVE_UP)
            await super().wait(gen, interval, GIVE_UP)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException:
            # In a state that nobody knows.
            self.pgconn.finish()


class Line:
    """The socket of a connection, as the loop knows it.

    A copy of libpq's: that one closes its own whenever the server hangs up, and a loop that still looks
    at a number which is no socket any more, or somebody else's, is lost. Raises OSError when the
    connection is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)
        self.closed = False
        # Whether the server has hung up. There may be something left to read all the same.
        self.ended = False
        self.faults = select.poll()
        self.faults.register(self.fd, 0)
        self.loop = asyncio.get_running_loop()
        self.readable: asyncio.Future[None] | None = None
        self.loop.add_reader(self.fd, self._wake)

    def close(self) -> None:
        """Lets go of the socket; who waits is told that it is closed."""
        if not self.closed:
            self.closed = True
            self.loop.remove_reader(self.fd)
            os.close(self.fd)
            if self.readable is not None and not self.readable.done():
                self.readable.set_exception(OSError("closed"))

    def cut(self) -> None:
        """Hangs up for both sides, which wakes who waits for the server."""
        if not self.closed:
            with suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _wake(self) -> None:
        if self.readable is None:
            # The server says something that nobody asked for: mostly goodbye. It would be said again and
            # again, so nobody listens until the next statement.
            self.close()
            return
        # uvloop tells of a connection that was reset once, and looks at it no more.
        self.ended = self.ended or bool(self.faults.poll(0))
        if not self.readable.done():
            self.readable.set_result(None)

    async def wait(self, gen: PQGen[T]) -> T:
        """What ``gen`` comes to, which is told when there is something to read, or room to write."""
        try:
            state = next(gen)
            while True:
                if state & Wait.W:
                    ready = await self._either(state)
                elif self.ended:
                    ready = Ready.R
                else:
                    self.readable = self.loop.create_future()
                    try:
                        await self.readable
                    finally:
                        self.readable = None
                    ready = Ready.R
                state = gen.send(ready)
        except StopIteration as done:
            return cast(T, done.value)

    async def _either(self, state: int) -> Ready:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN * bool(state & Wait.R) | select.POLLOUT)
        while not (events := poll.poll(0)):
            # More than the server takes at once; seldom enough.
            self.readable = self.loop.create_future()
            try:
                await asyncio.wait([self.readable], timeout=0.001)
            finally:
                self.readable = None
        ready = Ready.W * bool(events[0][1] & ~select.POLLIN)
        return Ready(ready | Ready.R * bool(events[0][1] & ~select.POLLOUT))


class Together(psycopg.AsyncPipeline):
    """Statements that travel together: they are sent when a result is asked for, in one message.

    psycopg's own pipeline sends each at once, which makes most of what a report costs.
    """

    def _communicate_gen(self) -> PQGen[None]:
        return
        yield

    def _fetch_gen(self, *, flush: bool) -> PQGen[None]:
        while self.command_queue:
            self.command_queue.popleft()()
        yield from super()._fetch_gen(flush=flush or bool(self.result_queue))
