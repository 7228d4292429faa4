"""What the handlers of an application work with, made once when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, LiteralString, Protocol

from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from hyperfleet.changes.differences import Differences
from hyperfleet.changes.following import Feed
from hyperfleet.contract.provider import Provider
from hyperfleet.contract.schema import Validator
from hyperfleet.database.pool import Pool
from hyperfleet.database.reads import Reads
from hyperfleet.database.statements import fetch, filled
from hyperfleet.database.together import Once, Rounds
from hyperfleet.engine.turns import Turns
from hyperfleet.lists.projection import Defaults
from hyperfleet.lists.tags import Tags
from hyperfleet.lists.tenants import Tenants
from hyperfleet.settings.catalogue import Settings
from hyperfleet.status.conditions import Folding, foldings

# What several share waits no longer for a lock that one of them needs; then each is on its own.
PATIENCE = "100ms"


class Events(Protocol):
    """Who is told what becomes of resources."""

    def started(self, kind: str, *, deleting: bool) -> None:
        """A resource is not as it is wanted: it is new, marked as deleted, or was as it was wanted."""

    def reported(self, kind: str, outcome: str) -> None:
        """A report was accepted, or discarded for the reason that ``outcome`` names."""


@dataclass
class Service:
    """The parts that handlers share.

    :param pool: where connections to the primary come from
    :param reads: where rows are read for those who only read
    :param provider: the provider's schemas of specs
    :param creation: for each kind the contract's rules for a whole resource
    :param default_fields: what clients are shown that do not say what they want
    :param events: who is told of what handlers do
    :param turns: in which order they change one resource
    :param lists: reads lists, by their addresses
    :param rounds: runs statements, by their texts, for several who ask
    :param readings: the same, of those that only read
    :param feed: the feed of changes
    :param tags: the entity tags of pages, by their addresses
    :param tenants: reads the lists of callers of a tenant
    :param foldings: what the statuses of each kind are folded by
    :param differences: compares generations
    """

    settings: Settings
    pool: Pool
    reads: Reads
    provider: Provider
    creation: Mapping[str, Validator]
    default_fields: Defaults
    events: Events
    turns: Turns = field(default_factory=Turns)
    lists: Once = field(init=False)
    rounds: dict[str, Rounds[str, TupleRow]] = field(default_factory=dict)
    readings: dict[str, Rounds[str, TupleRow]] = field(default_factory=dict)
    feed: Feed = field(init=False)
    tags: Tags = field(init=False)
    tenants: Tenants = field(default_factory=Tenants)
    foldings: Mapping[str, Folding] = field(init=False)
    differences: Differences = field(default_factory=Differences)

    def __post_init__(self) -> None:
        """Makes what reads for several who ask."""
        # Slow searches must not use up all connections.
        self.lists = Once(max(1, self.settings.db_pool_size // 2) * len(self.reads.pools()))
        self.feed = Feed(self.reads, self.lists.slots, self.settings.max_waiting)
        self.tags = Tags(self.pool)
        self.foldings = foldings(self.settings)

    def together(self, statement: LiteralString) -> Rounds[str, TupleRow]:
        """What runs a statement once for all who want it at the same moment.

        :param statement: its parameters are ``ids``, and ``rows``, a JSON list of what is given for
            each; and ``patience``, how long it may wait for a lock, NULL for the usual time; its first
            column is the id
        """
        known = self.rounds.get(statement)
        if known is None:
            known = self.rounds[statement] = Rounds(partial(self._rows, statement))
        return known

    def read(self, statement: LiteralString) -> Rounds[str, TupleRow]:
        """The same for a statement that only reads, which a standby may run.

        :param statement: its parameter is ``ids``; its first column is the id
        """
        known = self.readings.get(statement)
        if known is None:
            known = self.readings[statement] = Rounds(partial(self._read, statement))
        return known

    async def _read(
        self, statement: LiteralString, asked: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, TupleRow]:
        rows = await self.reads.fetch(statement, {"ids": filled(asked)})
        return {row[0]: row[1:] for row in rows}

    async def _rows(
        self, statement: LiteralString, asked: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, TupleRow]:
        patience = PATIENCE if len(asked) > 1 else None
        values = {"ids": filled(asked), "rows": Jsonb([*asked.values()]), "patience": patience}
        return {row[0]: row[1:] for row in await fetch(self.pool, statement, values)}
