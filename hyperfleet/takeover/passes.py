"""Goes through a source once or repeatedly, and leaves alone what has not changed."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import psycopg

from hyperfleet.database import connection
from hyperfleet.kinds import NATIVE, id_here
from hyperfleet.status.conditions import Folding
from hyperfleet.status.fold import Status
from hyperfleet.status.report import Report
from hyperfleet.takeover import api, database, target
from hyperfleet.takeover.rows import BATCH, Item, Raw, Refusal, Refused, Rows, Unreadable, name_of
from hyperfleet.takeover.target import Here, Known, Written

# A source, which can be looked at repeatedly, and a look at it.
Source: TypeAlias = api.Api | database.Database
Look: TypeAlias = api.Look | database.Look

# Attempts to store a batch when others make conflicting changes.
TRIES = 5
MET = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
# Errors by which the database rejects a row that the rules allow.
UNSTORABLE = (
    psycopg.DataError,
    psycopg.errors.CheckViolation,
    psycopg.errors.ProgramLimitExceeded,
)
REMOVED = "it was removed here after the import"
OWN = "it is already here, and did not come from an import"
NEWER = "it was changed here after the import, and is not newer at the source"
NOTHING = "the source is empty; kept here unless --remove-most is given"
MOST = "it is gone from the source, like most of the import; kept here unless --remove-most is given"
BUSY = "Another import into this database is running."


@dataclass
class Counts:
    """The outcomes of a pass, by kind: ``new``, ``changed``, ``same``, ``removed``; of reports
    ``stored``. ``elsewhere`` are resources whose last import was from another source.
    """

    of: dict[str, Counter[str]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    elsewhere: int = 0

    def add(self, kind: str, outcome: str, number: int = 1) -> None:
        """Counts some of a kind with an outcome."""
        self.of.setdefault(kind, Counter())[outcome] += number

    def number(self, outcome: str, kind: str | None = None) -> int:
        """Returns how many had an outcome: of a kind, or of all resources."""
        kinds = [kind] if kind else NATIVE
        return sum(self.of[kind][outcome] for kind in kinds if kind in self.of)

    def take(self, other: "Counts") -> None:
        """Adds the counts of a part."""
        for kind, numbers in other.of.items():
            self.of.setdefault(kind, Counter()).update(numbers)
        self.refusals += other.refusals
        self.elsewhere = other.elsewhere


class Takeover:
    """Imports what a source has.

    :param conninfo: how to connect to this service's database
    :param foldings: how to compute the statuses of each kind
    :param rows: decides what can be stored
    :param dry: whether to write nothing
    :param remove_most: whether to remove what is gone at the source even if that is most of it
    """

    def __init__(
        self,
        conninfo: str,
        source: Source,
        foldings: Mapping[str, Folding],
        rows: Rows,
        *,
        dry: bool,
        remove_most: bool,
    ) -> None:
        self._conninfo, self._source = conninfo, source
        self._foldings, self._rows = foldings, rows
        self._dry, self._remove_most = dry, remove_most
        # The connection that holds the lock against other imports.
        self._alone: psycopg.Connection[Any] | None = None
        # What this pass stored and removed; after a dry run, it is not in the database.
        self._stored: dict[str, set[str]] = {}
        self._gone: set[str] = set()
        # The id with each name in this pass.
        self._names: dict[tuple[str, str | None, str], str] = {}
        # The source's id for each id here, since the last full pass: the source distinguishes ids that
        # differ only in case.
        self._ids: dict[tuple[str, str], str] = {}
        # What was refused, by its id at the source; the next pass reads it again.
        self._open: dict[tuple[str, str], list[Refusal]] = {}
        # What is neither a cluster nor a node pool, as of the last full pass.
        self._others: list[Refusal] = []
        self.at = ""

    def once(self, since: str | None, progress: Callable[[int, int], object]) -> Counts:
        """Makes one pass. Sets ``at`` to the time of its look at the source.

        :param since: only what has changed since then; None means everything
        :param progress: called with the number of resources, and how many more are done
        """
        if not self._dry:
            self._keep_others_away()
        counts = Counts()
        self._stored, self._names, self._gone = {kind: set() for kind in NATIVE}, {}, set()
        left = set(self._open)
        again = {id_ for _, id_ in left}
        with (
            self._source.look(since, again) as look,
            connection.connect(self._conninfo) as conn,
        ):
            self.at = look.at
            if since is None:
                self._open, self._ids = {}, {}
                self._others = list(look.others())
            counts.refusals += self._others
            total = sum(look.count(kind) for kind in NATIVE)
            progress(total, 0)
            self._remove(conn, look, counts)
            for kind in NATIVE:
                for raws in look.batches(kind):
                    for key in ((kind, raw.id) for raw in raws):
                        self._open.pop(key, None)
                        left.discard(key)
                    counts.take(self._batch(conn, kind, raws))
                    progress(total, len(raws))
            changed = sum(counts.number(outcome) for outcome in ("new", "changed", "removed"))
            if not self._dry and (since is None or changed):
                target.settle(conn, self._foldings["Cluster"])
            if not self._dry and since is None and counts.number("new"):
                target.measure(conn)
            counts.elsewhere = target.elsewhere(conn, self._source.identity)
        for key in left:
            # It is gone at the source.
            self._open.pop(key, None)
        for refusals in self._open.values():
            counts.refusals += refusals
        return counts

    def close(self) -> None:
        """Allows other imports to write."""
        if self._alone:
            self._alone.close()
            self._alone = None

    def _keep_others_away(self) -> None:
        """Locks out other imports until the end. Raises Unreadable if another one is running."""
        if self._alone:
            try:
                self._alone.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                self.close()
        self._alone = connection.connect(self._conninfo)
        if not target.alone(self._alone):
            self.close()
            raise Unreadable(BUSY)

    def _missing(
        self, conn: psycopg.Connection[Any], look: Look, kind: str, counts: Counts
    ) -> list[str]:
        """Returns the ids of what is gone at the source; none if the source is more likely at fault."""
        before = target.imported(conn, kind, self._source.identity)
        ids = set(map(id_here, look.ids(kind)))
        lost = before - ids
        if lost:
            ids = set(map(id_here, look.ids(kind, anew=True)))
            lost -= ids
        # A source that is certainly the same may well have lost most resources, but hardly all.
        unlikely = not ids or (not self._source.certain and 2 * len(lost) > len(before))
        if lost and unlikely and not self._remove_most:
            noun, reason = NATIVE[kind].noun, MOST if ids else NOTHING
            counts.refusals += [Refusal(noun, id_, "", reason) for id_ in sorted(lost)]
            return []
        return sorted(lost)

    def _remove(self, conn: psycopg.Connection[Any], look: Look, counts: Counts) -> None:
        """Removes what is gone at the source: node pools before their clusters."""
        missing = {kind: self._missing(conn, look, kind, counts) for kind in NATIVE}
        for kind in reversed(NATIVE):
            for start in range(0, len(missing[kind]), BATCH):
                ids_ = missing[kind][start : start + BATCH]
                with conn.transaction():
                    gone, kept = target.take_away(conn, kind, ids_, self._gone, dry=self._dry)
                self._gone |= set(gone)
                counts.add(kind, "removed", len(gone))
                counts.refusals += [Refusal(NATIVE[kind].noun, *one) for one in kept]

    def _batch(self, conn: psycopg.Connection[Any], kind: str, raws: Sequence[Raw]) -> Counts:
        try:
            counts = self._tried(conn, kind, raws)
        except UNSTORABLE as error:
            if len(raws) > 1:
                # One of them is at fault; find it by bisection.
                counts, half = Counts(), len(raws) // 2
                for part in (raws[:half], raws[half:]):
                    counts.take(self._batch(conn, kind, part))
                return counts
            counts = Counts()
            reason = f"the database refuses it: {error.diag.message_primary}"
            counts.refusals.append(_refused(kind, raws[0].id, name_of(raws[0]), reason))
        for refusal in counts.refusals:
            self._open.setdefault((kind, refusal.id), []).append(refusal)
        counts.refusals = []
        return counts

    def _tried(self, conn: psycopg.Connection[Any], kind: str, raws: Sequence[Raw]) -> Counts:
        """Stores a batch in a transaction; returns its counts."""
        for tries in range(TRIES):
            counts = Counts()
            try:
                with conn.transaction():
                    written = self._plan(conn, kind, raws, counts)
                    if not self._dry:
                        target.write(conn, kind, self._source.identity, written)
                break
            except MET:
                # Another change took a name or removed a cluster; the next attempt sees that.
                if tries + 1 == TRIES:
                    raise
        self._stored[kind] |= {item.id for item, *_ in written.whole}
        return counts

    def _plan(
        self, conn: psycopg.Connection[Any], kind: str, raws: Sequence[Raw], counts: Counts
    ) -> Written:
        """Returns what to write of a batch; adds what is refused to ``counts``."""
        ids = [id_here(raw.id) for raw in raws]
        known = target.known(conn, kind, self._source.identity, ids)
        items: list[Item] = []
        for raw, id_ in zip(raws, ids, strict=True):
            first = self._ids.setdefault((kind, id_), raw.id)
            if first != raw.id:
                reason = f"its id is that of {first}, apart from case"
                counts.refusals.append(_refused(kind, raw.id, name_of(raw), reason))
                continue
            if id_ in known and known[id_].fingerprint == self._rows.fingerprint(raw):
                counts.add(kind, "same")
                continue
            try:
                items.append(self._rows.item(raw))
            except Refused as error:
                counts.refusals.append(_refused(kind, raw.id, name_of(raw), str(error)))
        written = Written([], [], [], [])
        if not items:
            return written
        for item in items:
            counts.refusals += item.refusals
            self._names.setdefault((kind, item.within, item.row["name"]), item.id)
        seen = self._foldings[kind].rules is not None
        here = target.here(conn, kind, [item.id for item in items], lock=not self._dry, seen=seen)
        holders = target.named(conn, kind, items)
        owners = self._owners(conn, items) if NATIVE[kind].parent else set()
        for item in items:
            found, before = here.get(item.id), known.get(item.id)
            newer = _newer(item, found, before)
            reason = self._obstacle(item, found, before, holders, owners)
            if not reason and newer is None:
                reason = NEWER
            if reason:
                counts.refusals.append(_refused(kind, item.old_id, item.row["name"], reason))
            else:
                self._decide(item, found, written, counts, whole=bool(newer))
        return written

    def _owners(self, conn: psycopg.Connection[Any], items: Collection[Item]) -> set[str]:
        wanted = {item.owner_id for item in items if item.owner_id}
        return (target.clusters(conn, wanted) | (wanted & self._stored["Cluster"])) - self._gone

    def _obstacle(
        self,
        item: Item,
        found: Here | None,
        known: Known | None,
        holders: dict[tuple[str | None, str], str],
        owners: set[str],
    ) -> str:
        """Returns why an item cannot be stored; empty if it can."""
        if found is not None:
            return "" if known else OWN
        if known:
            return REMOVED
        if item.owner_id and item.owner_id not in owners:
            return f"its cluster {item.owner_id} is not here"
        name = item.row["name"]
        first = self._names[item.kind, item.within, name]
        holder = holders.get((item.within, name), first)
        if holder in self._gone:
            holder = first
        return f"its name is that of {holder}" if holder != item.id else ""

    def _decide(
        self, item: Item, found: Here | None, written: Written, counts: Counts, *, whole: bool
    ) -> None:
        """Adds to ``written`` whatever of an item is newer: the resource, and each report separately.

        :param whole: whether the resource is newer
        """
        before = found.reports if found else {}
        newer = {
            name: one
            for name, one in item.reports.items()
            if name not in before or _age(one) > _age(before[name])
        }
        reports = {**before, **newer}
        if whole or newer:
            at = max([item.row["updated_time"], *(one["last_report_time"] for one in reports.values())])
            folding = self._foldings[item.kind]
            previous = _before(found.status, item.before) if found else item.before
            state: Any = item.row
            if folding.rules:
                state, reports = item.seen(reports, newer)
            folded = folding.fold(state, [*reports.values()], previous, at, item.children)
            if whole:
                written.whole.append((item, folded, found is not None))
            else:
                written.folded.append((item, folded))
        written.reports += [(item, one) for one in newer.values()]
        written.records.append(item)
        outcome = "new" if found is None else "changed" if whole or newer else "same"
        counts.add(item.kind, outcome)
        counts.add("AdapterStatus", "stored", len(newer))


def _newer(item: Item, found: Here | None, known: Known | None) -> bool | None:
    """Whether to write a resource as the source has it. None means that both sides have changed it, in
    which case the one here counts.
    """
    if found is None or known is None or item.age > found.age:
        return True
    if item.content == known.content:
        return False
    # Not every change at the source has a new time, and the source may have gone back to an older state.
    return True if found.age == known.age else None


def _before(here: Status, there: Status | None) -> Status:
    """Returns the previous status: of each condition the one that changed last, here or at the source.
    Only the source saw what happened between two passes.
    """
    if there is None:
        return here
    words = {one["type"]: one for one in here["conditions"]}
    for one in there["conditions"]:
        own = words.setdefault(one["type"], one)
        if one["last_transition_time"] > own["last_transition_time"]:
            words[one["type"]] = {**one, "created_time": own["created_time"]}
    last = max(here, there, key=lambda status: status["last_transition_time"])
    moved = {"phase": last["phase"], "last_transition_time": last["last_transition_time"]}
    return {**here, **moved, "conditions": [*words.values()]}  # type: ignore[typeddict-item]


def _refused(kind: str, id_: str, name: str, reason: str) -> Refusal:
    return Refusal(NATIVE[kind].noun, id_, name, reason)


def _age(report: Report) -> tuple[int, str]:
    return report["observed_generation"], report["last_report_time"]
