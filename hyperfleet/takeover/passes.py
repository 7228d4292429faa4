"""Goes through a source: once, or again and again; what is the same already stays as it is."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg

from hyperfleet.conditions import Folding
from hyperfleet.database import connection
from hyperfleet.kinds import RESOURCES, id_here
from hyperfleet.report import Report
from hyperfleet.takeover import target
from hyperfleet.takeover.rows import Item, Raw, Refusal, Refused, Rows
from hyperfleet.takeover.source import BATCH, Pass, Source
from hyperfleet.takeover.target import Here, Written

# Times that a batch is tried again which met somebody else's change.
TRIES = 5
MET = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
# What a row is that the database refuses, whatever the rules say.
UNSTORABLE = (
    psycopg.DataError,
    psycopg.errors.CheckViolation,
    psycopg.errors.ProgramLimitExceeded,
)
REMOVED = "it was removed here after the import"
OWN = "it is here already, and did not come by an import"
NEWER = "it was changed here after the import, and there not since"


@dataclass
class Counts:
    """What became of what was looked at, by kind and outcome: ``new``, ``changed``, ``same``,
    ``removed``; of reports ``stored``.
    """

    of: dict[str, Counter[str]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def add(self, kind: str, outcome: str, number: int = 1) -> None:
        """Counts."""
        self.of.setdefault(kind, Counter())[outcome] += number

    def number(self, outcome: str, kind: str | None = None) -> int:
        """How many had an outcome, of a kind or of all resources."""
        kinds = [kind] if kind else RESOURCES
        return sum(self.of[kind][outcome] for kind in kinds if kind in self.of)

    def take(self, other: "Counts") -> None:
        """Adds those of a part."""
        for kind, numbers in other.of.items():
            self.of.setdefault(kind, Counter()).update(numbers)
        self.refusals += other.refusals


class Takeover:
    """Takes over what a source holds.

    :param conninfo: of this service's database
    :param foldings: what the statuses of each kind are folded by
    :param rows: says what can be stored
    :param dry: whether nothing is written
    """

    def __init__(
        self,
        conninfo: str,
        source: Source,
        foldings: Mapping[str, Folding],
        rows: Rows,
        *,
        dry: bool,
    ) -> None:
        self._conninfo, self._source = conninfo, source
        self._foldings, self._rows, self._dry = foldings, rows, dry
        # What a dry run would have stored and removed: nobody finds it in the database.
        self._stored: dict[str, set[str]] = {}
        self._gone: set[str] = set()
        # Who has a name among those of this pass.
        self._names: dict[tuple[str, str | None, str], str] = {}
        # What was not taken, by its id there, is looked at again in the next pass.
        self._open: dict[tuple[str, str], list[Refusal]] = {}
        # What is neither cluster nor node pool, as the last pass found it that looked at everything.
        self._others: list[Refusal] = []
        self.at = ""

    def once(self, since: str | None, progress: Callable[[int, int], object]) -> Counts:
        """One pass. Leaves in ``at`` when it was, by the source's clock.

        :param since: only what was changed since; None: all there is
        :param progress: told how many resources there are and how many more are done
        """
        counts = Counts()
        self._stored, self._names, self._gone = {kind: set() for kind in RESOURCES}, {}, set()
        left = set(self._open)
        again = {id_ for _, id_ in left}
        with (
            self._source.look(since, again) as look,
            connection.connect(self._conninfo) as conn,
        ):
            self.at = look.at
            if since is None:
                self._open = {}
                self._others = list(look.others())
            counts.refusals += self._others
            total = sum(look.count(kind) for kind in RESOURCES)
            progress(total, 0)
            self._remove(conn, look, counts)
            for kind in RESOURCES:
                for raws in look.batches(kind):
                    for key in ((kind, raw.id) for raw in raws):
                        self._open.pop(key, None)
                        left.discard(key)
                    counts.take(self._batch(conn, kind, raws))
                    progress(total, len(raws))
            changed = sum(counts.number(outcome) for outcome in ("new", "changed", "removed"))
            if not self._dry and (since is None or changed):
                target.settle(conn, self._foldings["Cluster"])
        for key in left:
            # It is gone there.
            self._open.pop(key, None)
        for refusals in self._open.values():
            counts.refusals += refusals
        return counts

    def _remove(self, conn: psycopg.Connection[Any], look: Pass, counts: Counts) -> None:
        """Removes what is gone there: node pools before their clusters."""
        missing: dict[str, list[str]] = {}
        seen = 0
        for kind in RESOURCES:
            ids = set(map(id_here, look.ids(kind)))
            seen += len(ids)
            lost = target.imported(conn, kind, self._source.name) - ids
            if lost:
                lost -= set(map(id_here, look.ids(kind, anew=True)))
            missing[kind] = sorted(lost)
        if not seen:
            # More likely the wrong database than a fleet that is gone as a whole.
            for kind, ids_ in missing.items():
                counts.refusals += [
                    Refusal(RESOURCES[kind].noun, id_, "", "nothing is there any more; kept here")
                    for id_ in ids_
                ]
            return
        for kind in reversed(RESOURCES):
            for start in range(0, len(missing[kind]), BATCH):
                ids_ = missing[kind][start : start + BATCH]
                with conn.transaction():
                    gone, kept = target.take_away(conn, kind, ids_, dry=self._dry)
                self._gone |= set(gone)
                counts.add(kind, "removed", len(gone))
                counts.refusals += [Refusal(RESOURCES[kind].noun, *one) for one in kept]

    def _batch(self, conn: psycopg.Connection[Any], kind: str, raws: Sequence[Raw]) -> Counts:
        try:
            counts, stored = self._tried(conn, kind, raws)
        except UNSTORABLE as error:
            if len(raws) > 1:
                # One of them is at fault: it is found by halves.
                counts, half = Counts(), len(raws) // 2
                for part in (raws[:half], raws[half:]):
                    counts.take(self._batch(conn, kind, part))
                return counts
            counts, stored = Counts(), set()
            reason = f"the database refuses it: {error.diag.message_primary}"
            counts.refusals.append(_refused(kind, raws[0].id, orjson.loads(raws[0].members), reason))
        self._stored[kind] |= stored
        for refusal in counts.refusals:
            self._open.setdefault((kind, refusal.id), []).append(refusal)
        counts.refusals = []
        return counts

    def _tried(
        self, conn: psycopg.Connection[Any], kind: str, raws: Sequence[Raw]
    ) -> tuple[Counts, set[str]]:
        """Stores a batch in a transaction; returns what became of it, and the ids that were written."""
        for tries in range(TRIES):
            counts = Counts()
            try:
                with conn.transaction():
                    written = self._plan(conn, kind, raws, counts)
                    if not self._dry:
                        target.write(conn, kind, self._source.name, written)
                break
            except MET:
                # Somebody took a name or removed a cluster meanwhile: the next look sees it.
                if tries + 1 == TRIES:
                    raise
        return counts, {item.id for item, _ in written.whole}

    def _plan(
        self, conn: psycopg.Connection[Any], kind: str, raws: Sequence[Raw], counts: Counts
    ) -> Written:
        """What is to be written of a batch; what is not taken is told to ``counts``."""
        known = target.fingerprints(conn, kind, [id_here(raw.id) for raw in raws])
        items: list[Item] = []
        for raw in raws:
            if known.get(id_here(raw.id)) == self._rows.fingerprint(raw):
                counts.add(kind, "same")
                continue
            try:
                items.append(self._rows.item(raw))
            except Refused as error:
                counts.refusals.append(_refused(kind, raw.id, orjson.loads(raw.members), str(error)))
        written = Written([], [], [], [])
        if not items:
            return written
        for item in items:
            counts.refusals += item.refusals
            self._names.setdefault((kind, item.owner_id, item.row["name"]), item.id)
        seen = self._foldings[kind].rules is not None
        here = target.here(conn, kind, [item.id for item in items], lock=not self._dry, seen=seen)
        holders = target.named(conn, kind, items)
        owners = self._owners(conn, items) if RESOURCES[kind].parent else set()
        for item in items:
            found = here.get(item.id)
            reason = self._obstacle(item, found, item.id in known, holders, owners)
            if reason:
                counts.refusals.append(_refused(kind, item.old_id, item.row, reason))
            else:
                self._decide(item, found, written, counts)
        return written

    def _owners(self, conn: psycopg.Connection[Any], items: Collection[Item]) -> set[str]:
        wanted = {item.owner_id for item in items if item.owner_id}
        return (target.clusters(conn, wanted) | (wanted & self._stored["Cluster"])) - self._gone

    def _obstacle(
        self,
        item: Item,
        found: Here | None,
        known: bool,
        holders: dict[tuple[str | None, str], str],
        owners: set[str],
    ) -> str:
        """Why an item cannot be stored; empty: it can."""
        if found is not None:
            if not known:
                return OWN
            return NEWER if found.age > item.age else ""
        if known:
            return REMOVED
        if item.owner_id and item.owner_id not in owners:
            return f"its cluster {item.owner_id} is not here"
        name = item.row["name"]
        first = self._names[item.kind, item.owner_id, name]
        holder = holders.get((item.owner_id, name), first)
        if holder in self._gone:
            holder = first
        return f"its name is that of {holder}" if holder != item.id else ""

    def _decide(self, item: Item, found: Here | None, written: Written, counts: Counts) -> None:
        """What an item comes to: whatever is newer counts, the resource and each report on its own."""
        before = found.reports if found else {}
        newer = {
            name: one
            for name, one in item.reports.items()
            if name not in before or _age(one) > _age(before[name])
        }
        reports = {**before, **newer}
        whole = found is None or item.age > found.age
        if whole or newer:
            at = max([item.row["updated_time"], *(one["last_report_time"] for one in reports.values())])
            folding, previous = self._foldings[item.kind], found.status if found else item.before
            state: Any = item.row
            if folding.rules:
                state, reports = item.seen(reports, newer)
            folded = folding.fold(state, [*reports.values()], previous, at, item.children)
            (written.whole if whole else written.folded).append((item, folded))
        written.reports += [(item, one) for one in newer.values()]
        written.records.append(item)
        outcome = "new" if found is None else "changed" if whole or newer else "same"
        counts.add(item.kind, outcome)
        counts.add("AdapterStatus", "stored", len(newer))


def _refused(kind: str, id_: str, members: Any, reason: str) -> Refusal:
    return Refusal(RESOURCES[kind].noun, id_, str(members.get("name") or ""), reason)


def _age(report: Report) -> tuple[int, str]:
    return report["observed_generation"], report["last_report_time"]
