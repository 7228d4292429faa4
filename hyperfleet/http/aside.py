"""Who waits for what may not happen for long, and takes nothing from others meanwhile."""

import time
from collections.abc import Callable

# Where a request's place among the others is told to whoever finds out that it waits.
ASIDE = "hyperfleet.aside"


class Aside:
    """A request, which steps aside at most once: from then on it has no deadline, and no place that
    another could have.
    """

    def __init__(self) -> None:
        self.leaving: list[Callable[[], None]] = []
        # When it stepped aside.
        self.since: float | None = None

    def step(self) -> None:
        """Steps aside."""
        self.since = time.perf_counter()
        for leave in self.leaving:
            leave()
