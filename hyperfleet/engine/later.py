"""Responses that come later than the handler returns, and use no resources meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple


class Later(NamedTuple):
    """A response, 200, whose body comes later, or in pieces for as long as the client likes.

    :param headers: its headers but for the length
    :param body: returns the body; awaited on the event loop, outside any greenlet
    :param pieces: the pieces of the body, instead
    """

    headers: Mapping[str, str]
    body: Callable[[], Awaitable[bytes]] | None = None
    pieces: AsyncIterator[bytes] | None = None
