"""The entity tags of pages, and whether a page is unchanged since its tag was made."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable

from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch
from hyperfleet.database.together import Rounds
from hyperfleet.lists.page import MOMENT

# How many pages are remembered.
PAGES = 1000


class Tags:
    """The tags of recently read pages, each with the state of the database when the page was read.

    :param pool: runs the queries for that state
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        # By page: its tag, the moment, and when the pool had last replaced its connections.
        self.known: OrderedDict[Hashable, tuple[str, str, float]] = OrderedDict()
        self.moments: Rounds[None, str | None] = Rounds(self._read)

    def keep(self, page: Hashable, tag: str, moment: str | None, renewed: float) -> None:
        """Remembers the tag of a page.

        :param moment: the value of :data:`hyperfleet.lists.page.MOMENT`, or None if it is unknown
        :param renewed: when, before the page was read, the pool last replaced its connections
        """
        if moment:
            self.known[page] = tag, moment, renewed
            self.known.move_to_end(page)
            if len(self.known) > PAGES:
                self.known.popitem(last=False)

    def last(self, page: Hashable) -> str | None:
        """Returns the tag that the page had when last read, or None if it is not remembered."""
        return self.known[page][0] if page in self.known else None

    async def still(self, page: Hashable) -> bool:
        """Returns whether a remembered page must be unchanged, because nothing was written since."""
        _, moment, renewed = self.known[page]
        # After a failover, another server could report the same moment with other rows.
        return await self.moments.get(None) == moment and self.pool.renewed == renewed

    async def _read(self, asked: Iterable[None]) -> dict[None, str | None]:
        [(moment,)] = await fetch(self.pool, f"/* moment */ SELECT {MOMENT}", {})
        return dict.fromkeys(asked, moment)
