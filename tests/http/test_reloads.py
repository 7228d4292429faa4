"""Reloads that SIGHUP triggers, when they fail or come too soon."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hyperfleet.http.meanwhile import no_api
from hyperfleet.http.server import App, Ending, Servers, listen


def test_a_reload_follows_one_that_failed_and_one_that_was_still_running_when_asked_for() -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    reloads: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        yield

    async def reload() -> None:
        reloads.append("begun")
        if len(reloads) == 1:
            raise RuntimeError("broken")
        if len(reloads) == 2:
            # As if the file had changed again after it was read.
            servers.reload_wanted.set()
            await asyncio.sleep(0.1)

    def ask_until(count: int) -> None:
        loops[0].call_soon_threadsafe(servers.reload_wanted.set)
        while len(reloads) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    listener = listen("127.0.0.1", 0)
    servers = Servers([App(no_api, listener)], Ending(1), opened(), reload)
    thread = threading.Thread(target=servers.run, daemon=True)
    deadline = time.monotonic() + 10
    thread.start()
    try:
        while not loops:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ask_until(1)
        ask_until(3)
    finally:
        servers.stop()
        thread.join(10)
        listener.close()
