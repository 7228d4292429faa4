"""What the handlers of an application work with, made once when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from hyperfleet.contract.provider import Provider
from hyperfleet.contract.schema import Validator
from hyperfleet.database.pool import Pool, fetch
from hyperfleet.database.together import Once, Rounds
from hyperfleet.kinds import both
from hyperfleet.lists.projection import Defaults
from hyperfleet.settings import Settings
from hyperfleet.turns import Turns

READ = both("""
SELECT id::text, document::bpchar, version, {owner}::text FROM {table} WHERE id = ANY(%(ids)s::uuid[])
""")


@dataclass
class Service:
    """The parts that handlers share.

    :param pool: where connections come from
    :param provider: the provider's schemas of specs
    :param creation: for each kind the contract's rules for a whole resource
    :param default_fields: what clients are shown that do not say what they want
    :param turns: in which order they change one resource
    :param lists: reads lists, by their addresses
    :param reads: for each kind reads resources, by their ids: document, version, and the owner's id
    """

    settings: Settings
    pool: Pool
    provider: Provider
    creation: Mapping[str, Validator]
    default_fields: Defaults
    turns: Turns = field(default_factory=Turns)
    lists: Once = field(init=False)
    reads: dict[str, Rounds[str, tuple[bytes, int, str]]] = field(init=False)

    def __post_init__(self) -> None:
        """Makes what reads for several who ask."""
        # Slow searches must not use up all connections.
        self.lists = Once(max(1, self.settings.db_pool_size // 2))
        self.reads = {kind: Rounds(partial(self._read, kind)) for kind in READ}

    async def _read(self, kind: str, ids: list[str]) -> dict[str, tuple[bytes, int, str]]:
        rows = await fetch(self.pool, READ[kind], {"ids": ids})
        return {id_: (document, version, owner) for id_, document, version, owner in rows}

    def required(self, kind: str) -> tuple[str, ...]:
        """The adapters that count in the status of a kind; empty: all that have reported."""
        return self.settings.required_adapters(kind)
