"""Answers that come later than the handler that gives them, and take nothing meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import flask


class Later(flask.Response):
    """An answer whose body is waited for, or comes in pieces for as long as the client likes.

    :param body: finds the body, within the event loop and outside of any greenlet
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
