"""Plain functions on the event loop: they run in a greenlet and hand what they wait for to the loop.

As SQLAlchemy's asyncio extension does it for its ORM. A function that waits costs no thread, and as
many may wait as like.
"""

import contextvars
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import greenlet

P = ParamSpec("P")
T = TypeVar("T")


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a plain function, awaits for it what it hands to :func:`wait_for`, and returns its result.

    It sees the context variables of the caller, and changes its own copy of them. Where the caller is
    cancelled, the function hears of it from the :func:`wait_for` that it is in.
    """
    task = greenlet.greenlet(function)
    task.gr_context = contextvars.copy_context()
    result = task.switch(*args, **kwargs)
    while not task.dead:
        try:
            value = await result
        except BaseException as error:
            result = task.throw(error)
        else:
            result = task.switch(value)
    done: T = result
    return done


def wait_for(awaitable: Awaitable[T]) -> T:
    """The result of an awaitable. To be called by what :func:`run` has called; anything else would
    hold up the loop, and gets a RuntimeError.
    """
    loop = greenlet.getcurrent().parent
    if loop is None:
        raise RuntimeError("nobody is there to wait for it: call this below greenlets.run")
    value: T = loop.switch(awaitable)
    return value
