"""Responses that come later than the handler returns, and use no resources meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import flask


class Later(flask.Response):
    """A response whose body comes later, or in pieces for as long as the client likes.

    :param body: returns the body; awaited on the event loop, outside any greenlet
    :param pieces: the pieces of the body, instead
    """

    def __init__(
        self,
        body: Callable[[], Awaitable[bytes]] | None = None,
        pieces: AsyncIterator[bytes] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.body, self.pieces = body, pieces
