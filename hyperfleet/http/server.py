"""The three listeners (API, health, metrics), from their sockets to their end."""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp

from hyperfleet.errors import StartError
from hyperfleet.http.certificate import Certificate
from hyperfleet.http.protocol import Protocol
from hyperfleet.observe import log
from hyperfleet.settings.catalogue import Settings

logger = logging.getLogger(__name__)

# Longer than the idle time after which common clients drop a connection themselves, so that no request
# arrives on a connection that is just being closed.
KEEP_ALIVE = 95
# Seconds for responses to requests that were cut off to be sent.
FAREWELL = 1.0


@dataclass
class Ending:
    """How the service stops.

    :param timeout: seconds that requests in progress may still take
    :param delay: seconds before that, in which new requests are still accepted
    :param begun: set as soon as the service is asked to stop
    :param now: set when it is asked again, by someone who does not want to wait
    """

    timeout: int
    delay: int = 0
    begun: threading.Event = field(default_factory=threading.Event)
    now: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        """Asks the service to stop, or to hurry if already asked. May be called from any thread."""
        (self.now if self.begun.is_set() else self.begun).set()

    async def wait(self, seconds: float) -> None:
        """Waits for this many seconds, unless the service must hurry."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.now.is_set():
            await asyncio.sleep(0.1)


class _Server(uvicorn.Server):
    """A server that leaves signals to its runner, and cuts requests off with a proper response."""

    def __init__(self, config: uvicorn.Config, ending: Ending, settings: Settings, app: "App") -> None:
        super().__init__(config)
        self.ending, self.settings, self.app = ending, settings, app
        self.leaving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens as uvicorn does, but gives the TLS handshake as long as a request has to arrive."""
        protocol = functools.partial(
            Protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            settings=self.settings,
            refused=self.app.refused,
            leaving=self.leaving,
            begun=self.ending.begun,
        )
        certificate = self.app.certificate
        listening = await asyncio.get_running_loop().create_server(
            protocol,
            sock=self.app.listener,
            ssl=certificate.context if certificate else None,
            backlog=self.config.backlog,
            # The protocol's own clock does not run before the TLS handshake is done.
            ssl_handshake_timeout=self.settings.read_timeout if certificate else None,
        )
        self.servers = [listening]
        self.started = True

    def leave(self) -> None:
        """Asks the server to stop."""
        self.should_exit = True
        self.leaving.set()

    async def main_loop(self) -> None:
        """Serves until asked to stop, without waiting for the next tick then."""
        ticking = asyncio.create_task(super().main_loop())
        leaving = asyncio.create_task(self.leaving.wait())
        await asyncio.wait([ticking, leaving], return_when=asyncio.FIRST_COMPLETED)
        ticking.cancel()
        leaving.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the listener and lets requests in progress end, within the time that they are given."""
        closing = asyncio.create_task(super().shutdown(sockets))
        # Only now that the listener is closed, so that these clients reconnect elsewhere.
        asyncio.get_running_loop().call_soon(self.app.farewell)
        waiting = asyncio.create_task(self.ending.wait(self.ending.timeout))
        await asyncio.wait([closing, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        under_way = list(self.server_state.tasks)
        if under_way and not closing.done():
            logger.warning("requests cut off as the service stops: %d", len(under_way))
        for task in under_way:
            task.cancel()
        await asyncio.wait([closing], timeout=FAREWELL)
        self.force_exit = True
        await asyncio.wait([closing], timeout=FAREWELL)
        closing.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                while self.server_state.tasks or self.server_state.connections:
                    await asyncio.sleep(0.05)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Returns a listening socket; port 0 takes a free one.

    :param shared: whether others may listen there, too
    Raises StartError with the address and the reason if it is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, reuse_port=shared)
    except OSError as error:
        # Without what the socket module adds.
        reason = str(error.strerror or error).partition(" (while attempting")[0]
        raise StartError(f"Cannot listen on {host}:{port}: {reason}") from None


def spread(listener: socket.socket, count: int) -> list[socket.socket]:
    """Returns several listening sockets on the port of the first, which is closed.

    The kernel spreads connections over them. Raises StartError if the port has been taken since.
    """
    host, port = listener.getsockname()[:2]
    listener.close()
    return [listen(host, port, shared=True) for _ in range(count)]


def address(listener: socket.socket, *, secure: bool = False) -> str:
    """Returns the ``http://host:port`` of a listening socket, or its ``https://`` URL."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class App(NamedTuple):
    """An application and its socket.

    :param certificate: None means plain HTTP
    :param refused: called with the client's address and the status if input is refused before it becomes
        a request
    :param farewell: called when the service stops, as soon as no more clients can connect
    """

    app: ASGIApp
    listener: socket.socket
    certificate: Certificate | None = None
    refused: Callable[[str, int], object] = lambda _client, _status: None
    farewell: Callable[[], object] = lambda: None


class Servers:
    """Several applications, each on its own socket, that start together; the first one stops first.

    :param ending: how they stop
    :param opened: what is open while they run
    :param reload: what SIGHUP triggers, one at a time
    :param settings: the limits of a request
    :param beat: called every second
    """

    def __init__(
        self,
        apps: Sequence[App],
        ending: Ending,
        opened: contextlib.AbstractAsyncContextManager[object],
        reload: Callable[[], Awaitable[object]] | None = None,
        settings: Settings = Settings(),  # noqa: B008 (it does not change)
        beat: Callable[[], object] = lambda: None,
    ) -> None:
        self.ending = ending
        self.opened = opened
        self.reload = reload
        self.beat = beat
        self.reload_wanted = asyncio.Event()
        self.certificates = {one.certificate for one in apps if one.certificate}
        self.servers = [
            _Server(
                uvicorn.Config(
                    one.app,
                    http=Protocol,
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    # On the others, maintenance must come from this machine, whatever headers say.
                    proxy_headers=index == 0,
                    timeout_keep_alive=KEEP_ALIVE,
                ),
                ending,
                settings,
                one,
            )
            for index, one in enumerate(apps)
        ]

    def run(self, watched: int | None = None) -> None:
        """Serves until told to stop, and lets requests in progress end.

        Told by :meth:`stop`, SIGINT, SIGTERM, or something to read on the descriptor ``watched``.
        """
        self.watched = watched
        for one in self.certificates:
            # A worker that replaces another one has inherited the certificate of the start.
            one.renew()
        # The former handlers raise exceptions, which would break the loop as it starts. Only the main
        # thread may set handlers; a test runs a server in another.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self.stop())
        with asyncio.Runner(loop_factory=self.servers[0].config.get_loop_factory()) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        """Asks all servers to stop; may be called from any thread."""
        self.ending.ask()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        # Only the main thread may set handlers; a test runs a server in another.
        with contextlib.suppress(ValueError, RuntimeError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
            loop.add_signal_handler(signal.SIGHUP, self.reload_wanted.set)
            for wanted, steps in log.STEPS.items():
                loop.add_signal_handler(wanted, log.change_level, steps)
            # A worker inherits a mask that blocks these signals.
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self.watched is not None:
            loop.add_reader(self.watched, self._orphaned)
        async with self.opened:
            await self._serve_all()

    async def _serve_all(self) -> None:
        serving = [
            asyncio.create_task(server.serve(sockets=[server.app.listener])) for server in self.servers
        ]
        asked = asyncio.create_task(self._asked_to_stop())
        background = [asyncio.create_task(self._reloading()), asyncio.create_task(self._beating())]
        await asyncio.wait([asked, *serving], return_when=asyncio.FIRST_COMPLETED)
        for task in background:
            task.cancel()
        # The first one alone: meanwhile the others report that it is stopping.
        self.servers[0].leave()
        await serving[0]
        for server in self.servers[1:]:
            server.leave()
        for task in serving[1:]:
            await task

    async def _reloading(self) -> None:
        while self.reload is not None:
            await self.reload_wanted.wait()
            # Requests to reload from now on refer to a newer file.
            self.reload_wanted.clear()
            try:
                await self.reload()
            except Exception:
                logger.exception("the reload failed")

    async def _beating(self) -> None:
        while True:
            self.beat()
            for one in self.certificates:
                await asyncio.to_thread(one.renew)
            await asyncio.sleep(1)

    def _orphaned(self) -> None:
        assert self.watched is not None
        asyncio.get_running_loop().remove_reader(self.watched)
        logger.error("the process that watches over the workers is gone")
        self.stop()

    async def _asked_to_stop(self) -> None:
        while not self.ending.begun.is_set():
            await asyncio.sleep(0.1)
        await self.ending.wait(self.ending.delay)
