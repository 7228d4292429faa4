"""What the handlers of an application work with, made once when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperfleet.contract.provider import Provider
from hyperfleet.contract.schema import Validator
from hyperfleet.database.pool import Pool
from hyperfleet.lists.projection import Defaults
from hyperfleet.settings import Settings
from hyperfleet.turns import Turns


@dataclass(frozen=True)
class Service:
    """The parts that handlers share.

    :param pool: where connections come from
    :param provider: the provider's schemas of specs
    :param creation: for each kind the contract's rules for a whole resource
    :param default_fields: what clients are shown that do not say what they want
    :param turns: in which order they change one resource
    """

    settings: Settings
    pool: Pool
    provider: Provider
    creation: Mapping[str, Validator]
    default_fields: Defaults
    turns: Turns = field(default_factory=Turns)

    def required(self, kind: str) -> tuple[str, ...]:
        """The adapters that count in the status of a kind; empty: all that have reported."""
        return self.settings.required_adapters(kind)
