"""What the handlers of an application work with, made once when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from psycopg.rows import TupleRow

from hyperfleet.contract.provider import Provider
from hyperfleet.contract.schema import Validator
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch
from hyperfleet.database.together import Once, Rounds
from hyperfleet.kinds import both
from hyperfleet.lists.projection import Defaults
from hyperfleet.lists.tags import Tags
from hyperfleet.settings import Settings
from hyperfleet.turns import Turns

READ = both("""
SELECT id::text, document::bpchar, version, {owner}::text FROM {table} WHERE id = ANY(%(ids)s::uuid[])
""")

# What a report is held against, as it is at one moment.
STATE = both("""
SELECT id::text, {owner}::text, deleted_time IS NOT NULL, version, generation, status,
       hyperfleet_time(created_time), hyperfleet_time(updated_time),
       (SELECT json_agg(json_build_array(adapter, observed_generation, conditions,
                                         hyperfleet_time(adapter_statuses.created_time),
                                         hyperfleet_time(last_report_time)))
        FROM adapter_statuses WHERE owner_type = '{kind}' AND owner_id = {table}.id)
FROM {table} WHERE id = ANY(%(ids)s::uuid[])
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
    :param states: for each kind reads what a report is held against, as ``STATE`` has it after the id
    :param tags: the entity tags of pages, by their addresses
    """

    settings: Settings
    pool: Pool
    provider: Provider
    creation: Mapping[str, Validator]
    default_fields: Defaults
    turns: Turns = field(default_factory=Turns)
    lists: Once = field(init=False)
    reads: dict[str, Rounds[str, TupleRow]] = field(init=False)
    states: dict[str, Rounds[str, TupleRow]] = field(init=False)
    tags: Tags = field(init=False)

    def __post_init__(self) -> None:
        """Makes what reads for several who ask."""
        # Slow searches must not use up all connections.
        self.lists = Once(max(1, self.settings.db_pool_size // 2))
        self.reads, self.states = (
            {kind: Rounds(partial(self._read, one)) for kind, one in statements.items()}
            for statements in (READ, STATE)
        )
        self.tags = Tags(self.pool)

    async def _read(self, statement: str, ids: list[str]) -> dict[str, TupleRow]:
        return {row[0]: row[1:] for row in await fetch(self.pool, statement, {"ids": ids})}

    def required(self, kind: str) -> tuple[str, ...]:
        """The adapters that count in the status of a kind; empty: all that have reported."""
        return self.settings.required_adapters(kind)
