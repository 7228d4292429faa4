"""The pool of connections, as those see it who wait for one."""

import asyncio
import socket
import struct
import time
from collections.abc import Generator

import psycopg
import pytest
import uvloop
from psycopg.waiting import Ready, Wait
from psycopg_pool import PoolTimeout

from hyperfleet.database.pool import ASK_AGAIN, Pool, new_pool
from hyperfleet.database.session import Line
from hyperfleet.database.statements import fetch


def test_those_who_wait_get_connections_in_the_order_in_which_they_came(database: str) -> None:
    async def main() -> list[int]:
        served: list[int] = []

        async def ask(pool: Pool, number: int) -> None:
            async with pool.connection():
                served.append(number)
                await asyncio.sleep(ASK_AGAIN * 0.7)

        async with new_pool(database, 1) as pool:
            waiting = []
            for number in range(6):
                waiting.append(asyncio.create_task(ask(pool, number)))
                await asyncio.sleep(ASK_AGAIN / 5)
            await asyncio.gather(*waiting)
        return served

    assert uvloop.run(main()) == [0, 1, 2, 3, 4, 5]


def test_a_connection_that_ended_while_it_was_idle_costs_the_loop_nothing(
    database: str, sql: psycopg.Connection
) -> None:
    """A loop that went on looking at a socket at its end would be busy with it for ever."""

    async def main() -> float:
        async with new_pool(database, 4) as pool:
            await asyncio.gather(*(fetch(pool, "SELECT pg_sleep(0.1)", {}) for _ in range(4)))
            sql.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.1)
            began = time.thread_time()
            await asyncio.sleep(1)
            used = time.thread_time() - began
            assert await fetch(pool, "SELECT 1", {}) == [(1,)]
        return used

    assert uvloop.run(main()) < 0.3


def test_who_gives_up_waiting_for_an_answer_leaves_the_connection_to_others(database: str) -> None:
    async def main() -> None:
        async with new_pool(database, 1, 30) as pool:
            [(first,)] = await fetch(pool, "SELECT pg_backend_pid()", {})
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await fetch(pool, "SELECT pg_sleep(20)", {})
                assert await fetch(pool, "SELECT pg_backend_pid()", {}) == [(first,)]
            with pytest.raises(PoolTimeout):
                async with pool.connection():
                    await pool.getconn(0.1)

    uvloop.run(main())


def test_who_waits_for_a_server_that_resets_the_connection_after_its_last_words_hears_both() -> None:
    """As PostgreSQL does over TCP when it is stopped while a statement is on its way."""

    async def main() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ours = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
        ours.setblocking(False)

        def hearing() -> Generator[Wait, Ready, bytes]:
            heard = b""
            while True:
                yield Wait.R
                try:
                    heard += ours.recv(100)
                except ConnectionResetError:
                    return heard

        with ours:
            line = Line(ours.fileno())
            waiting = asyncio.create_task(line.wait(hearing()))
            await asyncio.sleep(0)
            theirs.send(b"goodbye")
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            heard = await asyncio.wait_for(waiting, 3)
            line.close()
        return heard

    assert uvloop.run(main()) == b"goodbye"
