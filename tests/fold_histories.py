"""Histories of one resource, and reports as they are stored, for the tests of the fold.

A history is a sequence of events on one resource, as the service would see them: reports, changes
of the spec, its deletion, node pools that leave, another configuration. `World` plays one.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import fold_reference as reference
from hypothesis import strategies as st

from hyperfleet.status.fold import fold
from hyperfleet.status.report import discard_reason, merge

Json = dict[str, Any]

AGGREGATED = ("Ready", "Available", "Reconciled", "LastKnownReconciled")
ADAPTERS = ("dns-adapter", "validation", "pull_secret", "hyperShift.v2")
TWO = ("dns-adapter", "validation")


def at(seconds: float) -> str:
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Report:
    adapter: str
    lag: int  # generations behind the resource; -1 is ahead of it
    conditions: tuple[tuple[str, str], ...]
    step: int  # seconds since the latest time seen; negative when the report is late
    timed: bool = True  # whether it carries its observed_time


@dataclass(frozen=True)
class Change:
    step: int


@dataclass(frozen=True)
class Delete:
    step: int
    children: int = 0  # node pools that are still there


@dataclass(frozen=True)
class Children:
    left: int
    step: int


@dataclass(frozen=True)
class Require:
    adapters: tuple[str, ...]
    step: int


Event = Report | Change | Delete | Children | Require


class World:
    """A resource, its stored reports, and the status from the latest fold."""

    def __init__(self, required: tuple[str, ...] = ()) -> None:
        self.resource: Json = {"generation": 1, "created_time": at(0), "updated_time": at(0)}
        self.reports: dict[str, Json] = {}
        self.required = required
        self.children = 0
        self.clock = 0
        self.at = at(0)
        self.before: Json | None = None  # the status before the last event
        self.status = self.fold(None)

    def fold(self, previous: Json | None) -> Json:
        return fold(
            self.resource,
            list(self.reports.values()),
            previous,
            self.required,
            self.at,
            self.children,
        )

    def apply(self, event: Event) -> bool:
        """Applies an event without folding; returns False if the service would change nothing."""
        now = at(self.clock + event.step)
        match event:
            case Report():
                if not self.report(event, now):
                    return False
            case Change() | Delete() if "deleted_time" in self.resource:
                return False
            case Change():
                self.raise_generation(now)
            case Delete():
                self.raise_generation(now)
                self.resource["deleted_time"] = now
                self.children = event.children
            case Children():
                self.children = event.left
            case Require():
                self.required = event.adapters
        self.clock = max(self.clock, self.clock + event.step)
        self.at = now
        return True

    def raise_generation(self, now: str) -> None:
        generation = self.resource["generation"] + 1
        self.resource = self.resource | {"generation": generation, "updated_time": now}

    def report(self, event: Report, now: str) -> bool:
        stored = self.reports.get(event.adapter)
        generation = self.resource["generation"]
        report = {
            "adapter": event.adapter,
            "observed_generation": max(1, generation - event.lag),
            "observed_time": now if event.timed else None,
            "conditions": [words(*condition) for condition in event.conditions],
        }
        discard = bool(discard_reason(generation, stored, report))
        assert discard == reference.discarded(generation, stored, report)
        if discard:
            return False
        self.reports[event.adapter] = merge(stored, report, now)
        assert self.reports[event.adapter] == reference.merged(stored, report, now)
        return True

    def advance(self, event: Event) -> bool:
        """Applies an event and folds; returns what `apply` returns."""
        if not self.apply(event):
            return False
        self.before, self.status = self.status, self.fold(self.status)
        return True

    def play(self, events: list[Event]) -> Iterator[tuple[Event, Json]]:
        """Applies events, and yields each that changes something with the status before it."""
        for event in events:
            before = self.status
            if self.advance(event):
                yield event, before

    def settle(self) -> None:
        """Lets each required adapter report success at the current generation."""
        for adapter in self.required or sorted(self.reports) or ADAPTERS[:1]:
            assert self.advance(Report(adapter, 0, GOOD_NEWS, 1))
        assert condition(self.status, "Available")["status"] == "True"


def words(kind: str, status: str) -> Json:
    """Returns a condition as an adapter sends it; some lack a reason, some a message."""
    sent = {"type": kind, "status": status}
    if kind != "Ready":
        sent["reason"] = f"{kind}{status}"
    if kind != "Health":
        sent["message"] = f"{kind} is {status}"
    return sent


def condition(status: Json, kind: str) -> Json:
    (found,) = [c for c in status["conditions"] if c["type"] == kind]
    return dict(found)


def without(value: Any, *members: str) -> Any:
    """Returns a copy without these members, at every level."""
    if isinstance(value, dict):
        return {k: without(v, *members) for k, v in value.items() if k not in members}
    if isinstance(value, list):
        return [without(item, *members) for item in value]
    return value


def combinations() -> list[tuple[tuple[str, str], ...]]:
    """Returns every mix of the conditions that the rules name, in both orders."""
    values = {
        "Applied": (None, "True", "False", "Unknown"),
        "Available": (None, "True", "False", "Unknown"),
        "Ready": (None, "True", "False", "Unknown"),
        "Health": (None, "True", "False"),
        "Progressing": (None, "True", "False"),
        "Failed": (None, "True"),
        "Finalized": (None, "True", "False"),
    }
    mixes = []
    for statuses in itertools.product(*values.values()):
        mix = [(k, s) for k, s in zip(values, statuses, strict=True) if s is not None]
        if mix:
            mixes += [tuple(mix), tuple(reversed(mix))]
    return mixes


GOOD_NEWS = (("Available", "True"),)
FINALIZED = (("Available", "False"), ("Finalized", "True"))
PLAIN = [(("Available", status),) for status in ("True", "True", "True", "False", "Unknown")]
CONDITIONS = st.sampled_from([*PLAIN, FINALIZED, (("Progressing", "False"),)]) | st.sampled_from(
    combinations()
)
REQUIRED = ((), ADAPTERS[:1], TWO, ADAPTERS[1:4])
WILD_STEPS = st.sampled_from([1, 0, 2, 3, -1, -5])
STEADY_STEPS = st.sampled_from([1, 0, 2, 3])


def reports(
    steps: st.SearchStrategy[int] = WILD_STEPS,
    lags: tuple[int, ...] = (0, 0, 0, 0, 1, 2, -1),
    conditions: st.SearchStrategy[tuple[tuple[str, str], ...]] = CONDITIONS,
) -> st.SearchStrategy[Event]:
    return st.builds(
        Report,
        st.sampled_from(ADAPTERS),
        st.sampled_from(lags),
        conditions,
        steps,
        st.sampled_from([True, True, False]),
    )


CHANGES = st.builds(Change, WILD_STEPS)
DELETIONS = st.builds(Delete, WILD_STEPS, st.sampled_from([0, 0, 1]))
DEPARTURES = st.builds(Children, st.integers(0, 2), WILD_STEPS)
SETTINGS = st.builds(Require, st.sampled_from(REQUIRED), WILD_STEPS)


def wave(
    adapters: tuple[str, ...], conditions: tuple[tuple[str, str], ...], steps: list[int]
) -> list[Event]:
    """Returns the same report on the current generation from each of these adapters in turn."""
    return [Report(a, 0, conditions, step) for a, step in zip(adapters, steps, strict=False)]


def histories(
    *rare: st.SearchStrategy[Event], steps: st.SearchStrategy[int] = WILD_STEPS, **options: Any
) -> st.SearchStrategy[list[Event]]:
    """Returns histories of mostly single reports, with a wave or something rare now and then.

    Without waves, all adapters would hardly ever agree.
    """
    waves = st.builds(
        wave,
        st.sampled_from([*REQUIRED[1:], ADAPTERS]),
        st.sampled_from([GOOD_NEWS, GOOD_NEWS, FINALIZED]),
        st.lists(steps, min_size=len(ADAPTERS), max_size=len(ADAPTERS)),
    )
    singles = reports(steps, **options)
    chunks = [one.map(lambda event: [event]) for one in (singles, singles, singles, singles, *rare)]
    return st.lists(st.one_of(waves, *chunks), min_size=4, max_size=16).map(
        lambda chunks: list(itertools.chain.from_iterable(chunks))
    )


# Events that in effect end a history are rare enough for something to happen before them.
ANY_HISTORY = histories(CHANGES, CHANGES, SETTINGS, DELETIONS | DEPARTURES)
LIVING_HISTORY = histories(CHANGES)
# Clocks agree, no report is late, and the configuration stays the same.
STEADY_HISTORY = histories(
    st.builds(Change, STEADY_STEPS),
    st.builds(Change, STEADY_STEPS) | st.builds(Delete, STEADY_STEPS),
    steps=STEADY_STEPS,
    lags=(0,),
)
SOME_REQUIRED = st.sampled_from(REQUIRED)


def stored(adapter: str, generation: int, seconds: int = 10, /, **conditions: str) -> Json:
    """Returns a report as it is stored, first made at second 5 and repeated at `seconds`."""
    return {
        "adapter": adapter,
        "observed_generation": generation,
        "conditions": [
            {
                "adapter": adapter,
                "type": kind,
                "status": status,
                "reason": f"{kind}Reason",
                "message": f"{kind} message",
                "observed_generation": generation,
                "created_at": at(5),
                "updated_at": at(seconds),
                "last_transition_time": at(5),
            }
            for kind, status in conditions.items()
        ],
        "created_time": at(5),
        "last_report_time": at(seconds),
    }
