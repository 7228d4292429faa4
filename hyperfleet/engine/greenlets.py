"""Plain functions on the event loop: they run in a greenlet and hand what they wait for to the loop.

As SQLAlchemy's asyncio extension does it for its ORM. A function that waits costs no thread, and as
many may wait as like.
"""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import greenlet

P = ParamSpec("P")
T = TypeVar("T")

# So many that have nothing to do are kept: to make one takes three times as long as to use one again.
KEPT = 64


class _Idle(threading.local):
    """The greenlets of a thread that have nothing to do."""

    def __init__(self) -> None:
        self.greenlets: list[greenlet.greenlet] = []


class _Outcome:
    """What a function has come to. Emptied by who hears of it: a greenlet that waits for its next
    function still holds it.
    """

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

    def take(self) -> Any:
        """The value. Raises the error."""
        value, error, self.value, self.error = self.value, self.error, None, None
        if error is None:
            return value
        try:
            raise error
        finally:
            # Its traceback has this frame, and this frame it.
            del error


_idle = _Idle()
# Else the loop alone would know of them, which forgets.
_going_on: set[asyncio.Task[Any]] = set()


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a plain function, awaits for it what it hands to :func:`wait_for`, and returns its result.

    It sees the context variables of the caller, and changes its own copy of them. Where the caller is
    cancelled, the function hears of it from the :func:`wait_for` that it is in.
    """
    idle = _idle.greenlets
    task = idle.pop() if idle else greenlet.greenlet(_work)
    task.gr_context = contextvars.copy_context()
    result = task.switch([(function, args, kwargs)])
    while type(result) is not _Outcome:
        try:
            value = await result
        except BaseException as error:
            result = task.throw(error)
        else:
            result = task.switch(value)
    task.gr_context = None
    if len(idle) < KEPT:
        idle.append(task)
    done: T = result.take()
    return done


def _work(job: list[Any]) -> None:
    """Calls one function after the other."""
    parent = greenlet.getcurrent().parent
    assert parent is not None
    while True:
        job = parent.switch(_called(job))


def _called(job: list[Any]) -> _Outcome:
    outcome = _Outcome()
    # Nothing of it is held any longer than it takes.
    function, args, kwargs = job.pop()
    try:
        outcome.value = function(*args, **kwargs)
    except BaseException as error:
        outcome.error = error
    return outcome


def wait_for(awaitable: Awaitable[T]) -> T:
    """The result of an awaitable. To be called by what :func:`run` has called; anything else would
    hold up the loop, and gets a RuntimeError.
    """
    loop = greenlet.getcurrent().parent
    if loop is None:
        raise RuntimeError("nobody is there to wait for it: call this below greenlets.run")
    value: T = loop.switch(awaitable)
    return value


def to_the_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a plain function, which goes on to its end where its caller is cancelled meanwhile.

    To be called by what :func:`run` has called.
    """
    task = asyncio.get_running_loop().create_task(run(function, *args, **kwargs))
    _going_on.add(task)
    task.add_done_callback(_ended)
    return wait_for(asyncio.shield(task))


def _ended(task: asyncio.Task[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled():
        # Where the caller is gone, nobody else asks for it.
        task.exception()


def breathe() -> None:
    """Lets the loop do other things in the midst of much work, where there is a loop."""
    loop = greenlet.getcurrent().parent
    if loop is not None:
        loop.switch(asyncio.sleep(0))
