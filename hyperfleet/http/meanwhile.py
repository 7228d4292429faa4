"""What is served until the database is available: the process is alive, but can do nothing."""

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

# Seconds within which an available database has responded.
SOON = 1.0


async def no_api(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers every request with 503."""
    await send_problem(Problem(errors.NO_DATABASE), scope, send)


async def only_alive(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers ``/healthz`` with 200, and everything else with 503: the database is not reachable."""
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
    """Serves APPS until some work is done, unless it is done within SOON.

    Returns its result or raises its exception; returns None if the process is told to stop first.

    :param listeners: those of the API, health checks and metrics; they stay open
    """
    done: Future[T] = Future()

    def working() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # A daemon, since nothing waits for it when the process is told to stop.
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
