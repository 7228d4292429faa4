"""Clients that disconnect before they have their response."""

import asyncio
import socket
from typing import Any

import uvloop

from hyperfleet.http.protocol import _Joined


def test_a_response_to_a_client_that_has_gone_is_dropped_without_an_error() -> None:
    errors: list[dict[str, Any]] = []

    async def answer_late() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        gone: asyncio.Future[None] = loop.create_future()
        transports: list[asyncio.Transport] = []

        class Served(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                transports.append(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                gone.set_result(None)

        server = await loop.create_server(Served, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            while not transports:
                await asyncio.sleep(0.01)
        await gone
        await asyncio.sleep(0.1)
        _Joined(transports[0], loop).write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.sleep(0.1)
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(answer_late())
    assert errors == []
