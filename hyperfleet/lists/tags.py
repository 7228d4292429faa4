"""The entity tags of pages, and whether a page is still as it was when its tag was made."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable

from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch
from hyperfleet.database.together import Rounds
from hyperfleet.lists.page import MOMENT

# How many pages are remembered.
PAGES = 1000


class Tags:
    """The tags of the pages that were read last, each with the moment in the database at which it was.

    :param pool: the connections on which pages are read, and moments
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        # By page: its tag, the moment, and when the connections had last been made anew.
        self.known: OrderedDict[Hashable, tuple[str, str, float]] = OrderedDict()
        self.moments: Rounds[None, str | None] = Rounds(self._read)

    def keep(self, page: Hashable, tag: str, moment: str | None, renewed: float) -> None:
        """Remembers the tag of a page.

        :param moment: as :data:`hyperfleet.lists.page.MOMENT` has it; None: it is not known
        :param renewed: when the pool's connections were last made anew, before the page was read
        """
        if moment:
            self.known[page] = tag, moment, renewed
            self.known.move_to_end(page)
            if len(self.known) > PAGES:
                self.known.popitem(last=False)

    def last(self, page: Hashable) -> str | None:
        """The tag that the page had when it was read last, if that is remembered."""
        return self.known[page][0] if page in self.known else None

    async def still(self, page: Hashable) -> bool:
        """Whether a page that is remembered must be the same, as nothing was written since."""
        _, moment, renewed = self.known[page]
        # Another server could come to the same moment with other rows.
        return await self.moments.get(None) == moment and self.pool.renewed == renewed

    async def _read(self, asked: Iterable[None]) -> dict[None, str | None]:
        [(moment,)] = await fetch(self.pool, f"/* moment */ SELECT {MOMENT}", {})
        return dict.fromkeys(asked, moment)
