"""Requests that need no slot: those that wait on purpose, and those whose client has gone."""

import time
from collections.abc import Callable

# The scope's key for a request's Aside, which the bridge tells once the request turns out to wait.
ASIDE = "hyperfleet.aside"


class Aside:
    """A request that may step aside once: then it has no deadline, and no slot that others could use."""

    def __init__(self) -> None:
        self.leaving: list[Callable[[], None]] = []
        # When the request stepped aside, by time.perf_counter(). None means that it has not.
        self.since: float | None = None
        # Called if the client disconnects; set while the request has not begun, and would do so in vain.
        self.gone: Callable[[], object] | None = None

    def step(self) -> None:
        """Gives up the request's deadline and slot."""
        self.since = time.perf_counter()
        for leave in self.leaving:
            leave()
