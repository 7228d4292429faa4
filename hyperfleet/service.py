"""What handlers share, created once at startup."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, LiteralString, Protocol, TypeAlias

from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from hyperfleet.changes.differences import Differences
from hyperfleet.changes.following import Feed
from hyperfleet.contract.provider import Provider
from hyperfleet.contract.schema import Validator
from hyperfleet.database.reads import Reads
from hyperfleet.database.statements import fetch, filled
from hyperfleet.database.together import Rounds, SharedReads
from hyperfleet.engine.turns import Turns
from hyperfleet.lists.projection import Defaults
from hyperfleet.lists.tags import Tags
from hyperfleet.lists.tenants import TenantLists
from hyperfleet.settings.catalogue import Settings
from hyperfleet.status.conditions import foldings

# How long a shared statement waits for a lock; if it takes longer, each request runs its own.
LOCK_TIMEOUT = "100ms"

Together: TypeAlias = Callable[[LiteralString], Rounds[str, TupleRow]]


class Events(Protocol):
    """What is notified of events in the life of resources."""

    def started(self, kind: str, *, deleting: bool) -> None:
        """A resource is not reconciled: it is new, marked for deletion, or was reconciled until now."""

    def reported(self, kind: str, outcome: str) -> None:
        """A report was accepted, or discarded for the reason in ``outcome``."""


class Service:
    """The parts that handlers share.

    :param reads: runs statements that only read
    :param provider: the provider's schemas of specs
    :param creation: for each kind, the contract's rules for a whole resource
    :param default_fields: the members shown to clients that do not ask for any
    :param events: notified of what handlers do
    :param pool: provides connections to the primary
    :param turns: the order of changes to the same resource
    :param lists: reads lists, by their URLs
    :param together: returns what runs a statement once for all requests that need it at the same time.
        The statement's parameters are ``ids``; ``rows``, a JSON list of what is given for each; and
        ``lock_timeout``, how long it may wait for a lock, NULL for the usual time. Its first column is
        the id
    :param read_together: the same for a statement that only reads, which a standby may run; its only
        parameter is ``ids``
    :param feed: the feed of changes
    :param tags: the entity tags of pages, by their URLs
    :param tenants: reads the lists of callers of a tenant
    :param foldings: for each kind, the rules by which statuses are folded
    :param differences: compares generations
    """

    def __init__(
        self,
        settings: Settings,
        *,
        reads: Reads,
        provider: Provider,
        creation: Mapping[str, Validator],
        default_fields: Defaults,
        events: Events,
    ) -> None:
        self.settings, self.reads, self.provider = settings, reads, provider
        self.creation, self.default_fields, self.events = creation, default_fields, events
        self.pool = reads.primary
        self.turns = Turns()
        # Slow searches must not use up all connections.
        self.lists = SharedReads(max(1, settings.db_pool_size // 2) * len(reads.pools()))
        self.together: Together = cache(lambda statement: Rounds(partial(self._rows, statement)))
        self.read_together: Together = cache(lambda statement: Rounds(partial(self._read, statement)))
        self.feed = Feed(reads, self.lists.slots, settings.max_waiting)
        self.tags = Tags(self.pool)
        self.tenants = TenantLists()
        self.foldings = foldings(settings)
        self.differences = Differences()

    async def _read(
        self, statement: LiteralString, asked: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, TupleRow]:
        rows = await self.reads.fetch(statement, {"ids": filled(asked)})
        return {row[0]: row[1:] for row in rows}

    async def _rows(
        self, statement: LiteralString, asked: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, TupleRow]:
        timeout = LOCK_TIMEOUT if len(asked) > 1 else None
        values = {"ids": filled(asked), "rows": Jsonb([*asked.values()]), "lock_timeout": timeout}
        return {row[0]: row[1:] for row in await fetch(self.pool, statement, values)}
