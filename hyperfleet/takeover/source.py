"""What a source is: whatever can be looked at, again and again, and holds clusters and node pools."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import psycopg

from hyperfleet.takeover.rows import Raw, Refusal

# Resources that are read, and written in one transaction, at a time.
BATCH = 500


class Unreadable(Exception):
    """Why a source cannot be taken over, for now or at all."""


class Pass(Protocol):
    """What a source holds at one moment, or as near to that as it can be had."""

    @property
    def at(self) -> str:
        """When it was, by the source's clock."""

    def count(self, kind: str) -> int:
        """How many resources of a kind there are to look at."""

    def ids(self, kind: str, *, anew: bool = False) -> set[str]:
        """The ids of all resources of a kind that are shown there.

        :param anew: whether to look once more, where one look may overlook something
        """

    def batches(self, kind: str) -> Iterator[list[Raw]]:
        """The resources of a kind, with their reports; those that are being deleted come last."""

    def others(self) -> Iterator[Refusal]:
        """What there is that is neither cluster nor node pool."""


class Source(Protocol):
    """An original.

    :param identity: what it is known by from one run to the next, without any secret; of a pass once it
        is looked at
    :param certain: whether no other has that identity
    """

    identity: str
    certain: bool

    def open(self, target: psycopg.Connection[Any]) -> str:
        """Looks what it is; returns it in words. Raises StartError for what cannot be meant."""

    def look(self, since: str | None, again: Collection[str]) -> AbstractContextManager[Pass]:
        """Looks at it, at all or at what was changed since a moment and at some ids in any case."""
