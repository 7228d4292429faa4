"""A connection of the pool: how it waits for the server, and how it reads and writes JSON."""

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

# Seconds in which a server must cancel a statement on request.
GIVE_UP = 0.5
# The server function that warns when a COMMIT was not replicated; the warning's text is translated.
ALONE = "SyncRepWaitForLSN"


class Raw(Loader):
    """Loads text that only passes through as bytes; statements cast it to ``bpchar``, which is free."""

    def load(self, data: Buffer) -> bytes:
        """Returns the value's bytes."""
        return bytes(data)


# Integers that orjson may not support; JSON and PostgreSQL set no bound that matters. To find them, turn
# all digits into zeros and look for a run of these: a regular expression takes twelve times as long.
ZEROS = bytes.maketrans(b"123456789", b"000000000")
LARGE = b"0" * 18


def _dumps(value: Any) -> bytes:
    """Returns a value as JSON text."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def _loads(text: bytes | str) -> Any:
    """Returns the value of a JSON text."""
    known = text.encode() if isinstance(text, str) else text
    return json.loads(known) if LARGE in known.translate(ZEROS) else orjson.loads(known)


class Session(psycopg.AsyncConnection[TupleRow]):
    """A connection of the pool.

    Behind a pooler the session is shared: ``travelling`` holds what each transaction must set itself.
    """

    travelling: dict[str, str] | None = None
    line: "Line | None" = None
    # The position that the server, a standby, was last known to have replayed, and when.
    replayed = (-1, 0.0)
    # Whether the server gave up waiting for its standby during the last statement.
    alone = False

    def adapt(self) -> None:
        """Registers orjson for JSON, and :class:`Raw` for text that only passes through."""
        self.add_notice_handler(self._noticed)
        self.adapters.register_loader("bpchar", Raw)
        set_json_dumps(_dumps, self)
        set_json_loads(_loads, self)

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Runs psycopg's generator ``gen`` without blocking the loop, and returns its result.

        Does the same as psycopg's own, but registers the socket with the loop once for each connection
        instead of once for every 8 kB received.

        Raises psycopg.errors.SystemError if somebody cut short the wait for a standby: the commit is
        done, but no more certain than one that was not answered.
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
        """Returns the rows of one statement; ``prepare`` as for psycopg's ``execute``.

        Cheaper than a cursor: a statement that is prepared, or must not be, is sent directly and its
        result taken. Preparing statements, and evicting them, is left to psycopg.
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
            # The last one is an error if the server says goodbye right after the rows.
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
        """Asks the server to cancel a statement that does not end, and hangs up.

        A server that waits for a standby would not notice that its client is gone, and a pooler cancels
        nothing for a client that is.
        """
        asking = asyncio.create_task(self.cancel_safe(timeout=GIVE_UP))
        await asyncio.wait([asking], timeout=GIVE_UP)
        if self.line is not None:
            self.line.cut()
        # If the server is gone, there is nothing to cancel.
        with suppress(psycopg.Error, OSError):
            await asking

    def _hang_up(self) -> None:
        if self.line is not None:
            self.line.close()

    async def _end(self, gen: PQGen[Any], interval: float) -> None:
        """Asks the server to cancel the statement, so that the connection can be used again."""
        try:
            await self._try_cancel(timeout=GIVE_UP)
            await super().wait(gen, interval, GIVE_UP)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException:
            # The state of the connection is unknown.
            self.pgconn.finish()


class Line:
    """The socket of a connection, as registered with the loop.

    It duplicates libpq's socket, which libpq closes whenever the server hangs up: a loop must not go on
    watching a descriptor that is closed or reused. Raises OSError if the connection is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)
        self.closed = False
        # Whether the server has hung up; there may still be something to read.
        self.ended = False
        self.faults = select.poll()
        self.faults.register(self.fd, 0)
        self.loop = asyncio.get_running_loop()
        self.readable: asyncio.Future[None] | None = None
        self.loop.add_reader(self.fd, self._wake)

    def close(self) -> None:
        """Releases the socket; a waiting statement fails with OSError."""
        if not self.closed:
            self.closed = True
            self.loop.remove_reader(self.fd)
            os.close(self.fd)
            if self.readable is not None and not self.readable.done():
                self.readable.set_exception(OSError("closed"))

    def cut(self) -> None:
        """Shuts the connection down in both directions, which wakes a waiting statement."""
        if not self.closed:
            with suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _wake(self) -> None:
        if self.readable is None:
            # An unexpected message, mostly goodbye. The loop would report it again and again, so stop
            # watching until the next statement.
            self.close()
            return
        # uvloop reports a connection reset once and then stops watching the socket.
        self.ended = self.ended or bool(self.faults.poll(0))
        if not self.readable.done():
            self.readable.set_result(None)

    async def wait(self, gen: PQGen[T]) -> T:
        """Returns the result of ``gen``, resuming it when the socket can be read or written."""
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
            # More data than the server takes at once, which is rare enough to poll for.
            self.readable = self.loop.create_future()
            try:
                await asyncio.wait([self.readable], timeout=0.001)
            finally:
                self.readable = None
        ready = Ready.W * bool(events[0][1] & ~select.POLLIN)
        return Ready(ready | Ready.R * bool(events[0][1] & ~select.POLLOUT))


class OneMessagePipeline(psycopg.AsyncPipeline):
    """A pipeline that sends its statements in one message, when a result is asked for.

    psycopg's own sends each at once, which would be most of the cost of a report.
    """

    def _communicate_gen(self) -> PQGen[None]:
        return
        yield

    def _fetch_gen(self, *, flush: bool) -> PQGen[None]:
        while self.command_queue:
            self.command_queue.popleft()()
        yield from super()._fetch_gen(flush=flush or bool(self.result_queue))
