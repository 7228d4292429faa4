"""What handlers return: finished responses, and those that come later and use no resources meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import NamedTuple


class Response(NamedTuple):
    """A response.

    :param headers: its headers but for the length
    :param body: the whole body, or its pieces
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | Iterator[bytes]


class Later(NamedTuple):
    """A response, 200, whose body comes later, or in pieces for as long as the client likes.

    :param headers: its headers but for the length
    :param body: returns the body; awaited on the event loop, outside any greenlet
    :param pieces: the pieces of the body, instead
    """

    headers: Mapping[str, str]
    body: Callable[[], Awaitable[bytes]] | None = None
    pieces: AsyncIterator[bytes] | None = None
