"""Plain functions on the event loop: they run in a greenlet and pass their awaitables to the loop.

SQLAlchemy's asyncio extension works like this. A waiting function costs no thread, so any number may
wait.
"""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import greenlet

P = ParamSpec("P")
T = TypeVar("T")

# How many idle greenlets are kept: making one takes three times as long as reusing one.
KEPT = 64


class _Idle(threading.local):
    """The idle greenlets of a thread."""

    def __init__(self) -> None:
        self.greenlets: list[greenlet.greenlet] = []


class _Outcome:
    """The outcome of a function. Emptied when taken: an idle greenlet still holds a reference to it."""

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

    def take(self) -> Any:
        """Returns the value or raises the error."""
        value, error, self.value, self.error = self.value, self.error, None, None
        if error is None:
            return value
        try:
            raise error
        finally:
            # The traceback refers to this frame, which must not refer to the error in turn.
            del error


_idle = _Idle()
# The loop itself only has weak references to tasks.
_going_on: set[asyncio.Task[Any]] = set()


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a plain function, awaits what it passes to :func:`wait_for`, and returns its result.

    It sees the caller's context variables, and changes a copy of them. If the caller is cancelled, the
    error is raised by the :func:`wait_for` that the function is in.
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
    """Calls one function after another."""
    parent = greenlet.getcurrent().parent
    assert parent is not None
    while True:
        job = parent.switch(_called(job))


def _called(job: list[Any]) -> _Outcome:
    outcome = _Outcome()
    # Popped, so that its arguments are not kept longer than the call.
    function, args, kwargs = job.pop()
    try:
        outcome.value = function(*args, **kwargs)
    except BaseException as error:
        outcome.error = error
    return outcome


def wait_for(awaitable: Awaitable[T]) -> T:
    """Returns the result of an awaitable.

    Must be called from within :func:`run`. Raises RuntimeError elsewhere, where it would block the loop.
    """
    loop = greenlet.getcurrent().parent
    if loop is None:
        raise RuntimeError("nobody is there to wait for it: call this below greenlets.run")
    value: T = loop.switch(awaitable)
    return value


def to_the_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a plain function, which runs to its end even if its caller is cancelled.

    Must be called from within :func:`run`.
    """
    task = begin(run(function, *args, **kwargs))
    # Marks an error as retrieved: nobody else does if the caller is gone.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return wait_for(asyncio.shield(task))


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begins work that goes on to its end, whether or not anybody waits for it."""
    task = asyncio.create_task(work)
    _going_on.add(task)
    task.add_done_callback(_going_on.discard)
    return task


def breathe() -> None:
    """Lets the loop do other things during long computations; does nothing without a loop."""
    loop = greenlet.getcurrent().parent
    if loop is not None:
        loop.switch(asyncio.sleep(0))
