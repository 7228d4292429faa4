"""What is served while the database is not there yet: the process is alive, and can do nothing."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.http.certificate import Certificate
from hyperfleet.http.problems import send_problem
from hyperfleet.http.server import App, Ending, Servers

T = TypeVar("T")

# Seconds in which a database that is there has answered.
SOON = 1.0


async def no_api(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers every request with 503."""
    await send_problem(Problem(errors.NO_DATABASE), scope, send)


async def only_alive(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers ``/healthz``, and to all else that the database is not reachable."""
    alive = scope["path"] == "/healthz"
    said: dict[str, Any] = {"status": "ok"} if alive else {"status": "unavailable"}
    if b"verbose" in scope["query_string"] and not alive:
        said["checks"] = {"database": {"state": "not reachable", "age_seconds": None}}
    elif not alive:
        said["database"] = "not reachable"
    await JSONResponse(said, 200 if alive else 503)(scope, receive, send)


APPS: Sequence[ASGIApp] = (no_api, only_alive, only_alive)


def meanwhile(
    listeners: Sequence[socket.socket], certificates: Sequence[Certificate | None], work: Callable[[], T]
) -> T | None:
    """Serves these until some work is done, unless that is soon. Returns what it comes to, and raises
    what it raises; None when the process is told to stop before.

    :param listeners: of the API, of health checks and of metrics; they stay open
    """
    done: Future[T] = Future()

    def working() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # Nobody waits for it when the process is told to stop.
    threading.Thread(target=working, daemon=True).start()
    if wait([done], SOON).not_done:
        apps = [
            App(app, socket.socket(fileno=os.dup(listener.fileno())), certificate)
            for app, listener, certificate in zip(APPS, listeners, certificates, strict=True)
        ]

        def look() -> None:
            if done.done():
                servers.stop()

        servers = Servers(apps, Ending(1), contextlib.nullcontext(), beat=look)
        servers.run()
    return done.result() if done.done() else None
