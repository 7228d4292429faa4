"""The three listeners - API, health, metrics - from their sockets to their end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence

import click
import uvicorn
from starlette.types import ASGIApp

# Longer than the idle time after which usual clients drop a connection themselves, so that no
# request meets a connection that is just being closed.
KEEP_ALIVE = 95


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs several of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises click.ClickException with the address and the reason when it is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise click.ClickException(f"Cannot listen on {host}:{port}: {reason}") from None


def address(listener: socket.socket) -> str:
    """``http://host:port`` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Servers:
    """Several applications, each on its own socket, that start and stop together."""

    def __init__(self, apps: Sequence[tuple[ASGIApp, socket.socket]], shutdown_timeout: int) -> None:
        self.sockets = [listener for _, listener in apps]
        self.servers = [
            _Server(
                uvicorn.Config(
                    app,
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_keep_alive=KEEP_ALIVE,
                    timeout_graceful_shutdown=shutdown_timeout,
                )
            )
            for app, _ in apps
        ]

    def run(self) -> None:
        """Serves until :meth:`stop` is called, or SIGINT or SIGTERM arrives; requests under way end."""
        with asyncio.Runner(loop_factory=self.servers[0].config.get_loop_factory()) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        """Asks all servers to stop; may be called from any thread."""
        for server in self.servers:
            server.should_exit = True

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        # Only the main thread can take signals; a test runs a server in another.
        with contextlib.suppress(ValueError, RuntimeError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
        await asyncio.gather(
            *(
                server.serve(sockets=[listener])
                for server, listener in zip(self.servers, self.sockets, strict=True)
            )
        )
