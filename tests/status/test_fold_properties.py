"""The fold keeps its laws, follows its tables, and agrees with a reference written independently.

A history is a sequence of events on one resource, as the service would see them: reports, changes
of the spec, its deletion, node pools that leave, another configuration. `World` plays one.
"""

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import fold_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfleet.status.fold import fold
from hyperfleet.status.report import discard_reason, merge

pytestmark = pytest.mark.slow

Json = dict[str, Any]

AGGREGATED = ("Ready", "Available", "Reconciled", "LastKnownReconciled")
ADAPTERS = ("dns-adapter", "validation", "pull_secret", "hyperShift.v2")
TWO = ("dns-adapter", "validation")
# `make test-histories` plays many more.
HISTORIES = int(os.environ.get("HYPERFLEET_TEST_HISTORIES", "500"))
LAWS = settings(max_examples=150, deadline=None, database=None)


def at(seconds: float) -> str:
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# Histories


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

    def happen(self, event: Event) -> bool:
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

    def go_on(self, event: Event) -> bool:
        """Applies an event and folds; returns what `happen` returns."""
        if not self.happen(event):
            return False
        self.before, self.status = self.status, self.fold(self.status)
        return True

    def live(self, events: list[Event]) -> Iterator[tuple[Event, Json]]:
        """Applies events, and yields each that changes something with the status before it."""
        for event in events:
            before = self.status
            if self.go_on(event):
                yield event, before

    def settle(self) -> None:
        """Lets each required adapter report success at the current generation."""
        for adapter in self.required or sorted(self.reports) or ADAPTERS[:1]:
            assert self.go_on(Report(adapter, 0, GOOD_NEWS, 1))
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


# The reference


@settings(max_examples=HISTORIES, deadline=None, database=None)
@given(SOME_REQUIRED, st.sampled_from([0, 0, 0, 1, 3]), ANY_HISTORY)
def test_the_fold_agrees_with_the_reference_after_every_event_of_many_histories(
    required: tuple[str, ...], unseen: int, events: list[Event]
) -> None:
    world = World(required)
    ours: Json | None = None
    theirs: Json | None = None
    # These events come before the first fold: a resource may be refolded without a previous status.
    for early in events[:unseen]:
        world.happen(early)
    for event in (None, *events[unseen:]):
        if event is not None and not world.happen(event):
            continue
        theirs = world.fold(theirs)
        ours = reference.fold(
            world.resource,
            world.reports.values(),
            ours,
            world.required,
            world.at,
            world.children,
        )
        for aggregated in theirs["conditions"][: len(AGGREGATED)]:
            assert aggregated["message"]
        assert comparable(theirs) == ours


def comparable(status: Json) -> Json:
    """Returns the status without what the reference does not know: the text of messages."""
    aggregated = [without(c, "message") for c in status["conditions"][: len(AGGREGATED)]]
    return status | {"conditions": aggregated + status["conditions"][len(AGGREGATED) :]}


# The laws


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_the_order_of_reports_does_not_matter(required: tuple[str, ...], events: list[Event]) -> None:
    world = World(required)
    for _ in world.live(events):
        pass
    for order in itertools.permutations(world.reports.values()):
        again = fold(
            world.resource,
            iter(order),
            world.before,
            world.required,
            world.at,
            world.children,
        )
        assert again == world.status


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY, st.integers(0, 5))
def test_a_repeated_report_changes_nothing_but_the_report_times(
    required: tuple[str, ...], events: list[Event], step: int
) -> None:
    world = World(required)
    for event, _ in world.live(events):
        if not isinstance(event, Report):
            continue
        first = world.status
        stored = world.reports[event.adapter]
        repeated = {
            "adapter": event.adapter,
            "observed_generation": stored["observed_generation"],
            "conditions": [words(*said) for said in event.conditions],
        }
        # The repeated report may come at the same time as the first one, or later.
        now = max(world.at, at(world.clock + step))
        merged = merge(stored, repeated, now)
        assert without(merged, "updated_at", "last_report_time") == without(
            stored, "updated_at", "last_report_time"
        )
        second = fold(
            world.resource,
            (world.reports | {event.adapter: merged}).values(),
            first,
            world.required,
            now,
            world.children,
        )
        assert without(second, "last_updated_time", "updated_at") == without(
            first, "last_updated_time", "updated_at"
        )
        if now == world.at:
            assert second == first


@LAWS
@given(SOME_REQUIRED, histories(CHANGES, SETTINGS))
def test_phase_is_ready_exactly_when_ready_and_reconciled_are_true(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.live(events):
        ready = str(world.status["phase"] == "Ready")
        assert condition(world.status, "Ready")["status"] == ready
        assert condition(world.status, "Reconciled")["status"] == ready


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_both_names_of_an_aggregated_condition_always_agree(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.live(events):
        ready, available, reconciled, last_known = world.status["conditions"][:4]
        assert reconciled == ready | {"type": "Reconciled"}
        assert last_known == available | {"type": "LastKnownReconciled"}


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_last_transition_time_never_moves_without_a_change_of_status(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _, before in world.live(events):
        if world.status["phase"] == before["phase"]:
            assert world.status["last_transition_time"] == before["last_transition_time"]
        for old in before["conditions"]:
            new = condition(world.status, old["type"])
            if new["status"] == old["status"]:
                assert new["last_transition_time"] == old["last_transition_time"]


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_transition_times_never_run_backwards_whatever_the_clocks_do(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _, before in world.live(events):
        assert world.status["last_transition_time"] >= before["last_transition_time"]
        for old in before["conditions"]:
            new = condition(world.status, old["type"])
            assert new["last_transition_time"] >= old["last_transition_time"]
            assert new["created_time"] == old["created_time"]


@LAWS
@given(SOME_REQUIRED, STEADY_HISTORY)
def test_times_never_run_backwards_while_reports_and_writes_arrive_in_order(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _, before in world.live(events):
        assert world.status["last_updated_time"] >= before["last_updated_time"]
        for old in before["conditions"]:
            new = condition(world.status, old["type"])
            assert new["last_updated_time"] >= old["last_updated_time"]
        entries = {entry["adapter"]: entry for entry in world.status["adapters"]}
        for entry in before["adapters"]:
            assert entries[entry["adapter"]]["updated_at"] >= entry["updated_at"]


@LAWS
@given(SOME_REQUIRED, LIVING_HISTORY, st.booleans(), st.integers(0, 5))
def test_raising_the_generation_turns_reconciled_false_and_leaves_available_unchanged(
    required: tuple[str, ...], events: list[Event], settled: bool, step: int
) -> None:
    world = World(required)
    for _ in world.live(events):
        pass
    if settled:
        world.settle()
    before = world.status
    world.go_on(Change(step))
    for kind in ("Ready", "Reconciled"):
        assert condition(world.status, kind)["status"] == "False"
        assert condition(world.status, kind)["observed_generation"] == world.resource["generation"]
        if settled:
            assert condition(world.status, kind)["last_transition_time"] == world.at
    assert world.status["phase"] == "NotReady"
    for kind in ("Available", "LastKnownReconciled"):
        old, new = condition(before, kind), condition(world.status, kind)
        counted = world.required or tuple(world.reports)
        if not any(
            report["observed_generation"] == old["observed_generation"]
            for name, report in world.reports.items()
            if name in counted
        ):
            # Without a report on that generation, it is the resource's updated_time.
            assert new["last_updated_time"] == world.resource["updated_time"]
            old["last_updated_time"] = new["last_updated_time"]
        assert new == old


@LAWS
@given(SOME_REQUIRED, LIVING_HISTORY, st.integers(0, 2), st.data())
def test_a_false_at_the_tracked_generation_turns_all_aggregated_conditions_false(
    required: tuple[str, ...], events: list[Event], newer: int, data: st.DataObject
) -> None:
    world = World(required)
    for _ in world.live(events):
        pass
    world.settle()
    tracked = condition(world.status, "Available")["observed_generation"]
    # Meanwhile, a new spec may be in progress, and others may have reported on it.
    for _ in range(newer):
        world.go_on(Change(1))
    first, *others = data.draw(st.permutations(world.required or sorted(world.reports)))
    for adapter in others[:newer]:
        world.go_on(Report(adapter, 0, data.draw(CONDITIONS), 1))
    assert condition(world.status, "Available")["observed_generation"] == tracked
    for kind in ("Available", "LastKnownReconciled"):
        assert condition(world.status, kind)["status"] == "True"
    assert world.go_on(Report(first, newer, (("Available", "False"),), 1))
    for kind in AGGREGATED:
        assert condition(world.status, kind)["status"] == "False"
    assert condition(world.status, "Available")["last_transition_time"] == world.at


@LAWS
@given(SOME_REQUIRED, LIVING_HISTORY, st.data())
def test_a_new_spec_that_fails_does_not_make_a_running_resource_unavailable(
    required: tuple[str, ...], events: list[Event], data: st.DataObject
) -> None:
    world = World(required)
    for _ in world.live(events):
        pass
    world.settle()
    tracked = condition(world.status, "Available")
    world.go_on(Change(1))
    for adapter in data.draw(st.permutations(world.required or sorted(world.reports))):
        world.go_on(Report(adapter, 0, (("Available", "False"),), 1))
        now = condition(world.status, "Available")
        assert without(now, "last_updated_time") == without(tracked, "last_updated_time")


@LAWS
@given(
    SOME_REQUIRED,
    ANY_HISTORY,
    st.lists(
        st.one_of(
            reports(lags=(0, 0, 1, 2), conditions=st.just((("Available", "Unknown"),))),
            reports(conditions=st.just((("Applied", "Unknown"), ("Health", "True")))),
            reports(conditions=st.just((("Ready", "True"),))),
            CHANGES,
            DELETIONS,
        ),
        max_size=12,
    ),
)
def test_unknown_never_turns_available_false(
    required: tuple[str, ...], events: list[Event], doubts: list[Event]
) -> None:
    world = World(required)
    for _ in world.live(events):
        pass
    world.settle()
    for _ in world.live(doubts):
        for kind in ("Available", "LastKnownReconciled"):
            assert condition(world.status, kind)["status"] == "True"


@LAWS
@given(
    st.sampled_from(REQUIRED[1:]),
    histories(CHANGES, DELETIONS, DEPARTURES),
)
def test_adapters_that_are_not_required_affect_only_their_own_entries(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    alone = world.status
    for event, before in world.live(events):
        if isinstance(event, Report) and event.adapter not in required:
            others = [name for name in world.reports if name != event.adapter]
            assert strip(world.status, others) == strip(before, others)
            continue
        # The same history, had the others never reported.
        alone = fold(
            world.resource,
            [report for name, report in world.reports.items() if name in required],
            alone,
            required,
            world.at,
            world.children,
        )
        assert strip(world.status, required) == alone


def strip(status: Json, adapters: tuple[str, ...] | list[str]) -> Json:
    """Returns the status with the entries of these adapters only."""
    kinds = {*AGGREGATED, *map(reference.successful_type, adapters)}
    return status | {
        "adapters": [entry for entry in status["adapters"] if entry["adapter"] in adapters],
        "conditions": [c for c in status["conditions"] if c["type"] in kinds],
    }


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_the_fold_does_not_modify_its_inputs(required: tuple[str, ...], events: list[Event]) -> None:
    world = World(required)
    for _, before in world.live(events):
        reports = list(world.reports.values())
        inputs = (world.resource, reports, before, list(world.required))
        kept = copy.deepcopy(inputs)
        first = fold(*inputs, world.at, world.children)
        assert inputs == kept
        # Nor does it keep any state.
        assert fold(*inputs, world.at, world.children) == first


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_the_status_survives_json_unchanged_and_contains_no_null(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.live(events):
        text = json.dumps(world.status, allow_nan=False)
        assert json.loads(text) == world.status
        assert "null" not in text


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_the_message_of_ready_names_each_required_adapter_that_blocks_it(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.live(events):
        for adapter in world.required or world.reports:
            kept = world.reports.get(adapter)
            deleted = "deleted_time" in world.resource
            if (
                kept is not None
                and kept["observed_generation"] == world.resource["generation"]
                and (
                    reference.Testimony(kept).says("Finalized", "True")
                    if deleted
                    else reference.Testimony(kept).verdict == "True"
                )
            ):
                continue
            for kind in ("Ready", "Reconciled"):
                assert adapter in condition(world.status, kind)["message"]


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_the_message_of_available_names_each_required_adapter_that_is_missing_or_not_true(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.live(events):
        if condition(world.status, "Available")["status"] == "True":
            continue
        for adapter in world.required or world.reports:
            kept = world.reports.get(adapter)
            if kept is None or reference.Testimony(kept).verdict != "True":
                for kind in ("Available", "LastKnownReconciled"):
                    assert adapter in condition(world.status, kind)["message"]


# The tables


RESOURCE: Json = {"generation": 2, "created_time": at(0), "updated_time": at(1)}
DELETED: Json = RESOURCE | {"deleted_time": at(1)}


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


def sent(generation: int, time: float | None, /, **conditions: str) -> Json:
    return {
        "adapter": "dns",
        "observed_generation": generation,
        "observed_time": None if time is None else at(time),
        "conditions": [{"type": kind, "status": status} for kind, status in conditions.items()],
    }


@pytest.mark.parametrize(
    ("conditions", "verdict", "kind"),
    [
        ({"Available": "True", "Ready": "False", "Applied": "False"}, "True", "Available"),
        ({"Ready": "True", "Available": "False"}, "False", "Available"),
        ({"Ready": "True", "Available": "Unknown"}, "Unknown", "Available"),
        ({"Applied": "False", "Ready": "True"}, "True", "Ready"),
        ({"Applied": "True", "Ready": "False"}, "False", "Ready"),
        ({"Applied": "False", "Ready": "Unknown"}, "Unknown", "Ready"),
        ({"Applied": "True", "Health": "True"}, "True", "Applied"),
        ({"Applied": "Unknown", "Health": "False"}, "False", "Health"),
        ({"Applied": "True", "Health": "Unknown", "Failed": "Unknown"}, "Unknown", "Health"),
        ({"Progressing": "False", "Applied": "True"}, "True", "Applied"),
        ({"Progressing": "Unknown", "Applied": "True"}, "True", "Applied"),
        ({"Progressing": "False", "Applied": "Unknown"}, "Unknown", "Applied"),
        ({"Progressing": "False"}, "True", "Available"),
        ({"Progressing": "True"}, "True", "Available"),
    ],
)
def test_the_verdict_comes_from_available_then_ready_then_the_rest_but_progressing(
    conditions: dict[str, str], verdict: str, kind: str
) -> None:
    status = fold(RESOURCE, [stored("dns", 2, **conditions)], None, [], at(10))
    (entry,) = status["adapters"]
    assert (entry["status"], entry["type"]) == (verdict, kind)
    assert condition(status, "DnsSuccessful")["status"] == verdict
    if kind in conditions:
        assert entry["reason"] == f"{kind}Reason"
        assert entry["message"] == f"{kind} message"
        assert condition(status, "DnsSuccessful")["reason"] == f"{kind}Reason"
        assert condition(status, "DnsSuccessful")["message"] == f"{kind} message"
    else:
        assert not {"reason", "message"} & entry.keys()


GOOD = {"Available": "True"}
BAD = {"Available": "False"}
UNKNOWN = {"Available": "Unknown"}
DONE = {"Finalized": "True"}


@pytest.mark.parametrize(
    ("resource", "reports", "ready", "available"),
    [
        (RESOURCE, [], "dns (no report), val (no report)", "dns (no report), val (no report)"),
        (RESOURCE, [stored("dns", 2, **GOOD)], "val (no report)", "val (no report)"),
        (
            *(RESOURCE, [stored("dns", 1, **GOOD), stored("val", 2, **BAD), stored("other", 2, **BAD)]),
            "dns (True at generation 1), val (False at generation 2)",
            "val (False at generation 2)",
        ),
        (
            *(RESOURCE, [stored("dns", 2, **GOOD), stored("val", 1, **GOOD)]),
            "val (True at generation 1)",
            "dns (True at generation 2), val (True at generation 1)",
        ),
        (
            *(DELETED, [stored("dns", 2, **GOOD, **DONE), stored("val", 2, **GOOD)]),
            *("val (Finalized missing at generation 2)", ""),
        ),
        (
            *(DELETED, [stored("dns", 2, **DONE), stored("val", 1, **DONE)]),
            "val (Finalized True at generation 1)",
            "dns (True at generation 2), val (True at generation 1)",
        ),
        (DELETED, [stored("dns", 2, **DONE), stored("val", 2, **DONE)], "3.", ""),
    ],
)
def test_messages_name_only_the_adapters_that_block_and_what_they_reported(
    resource: Json, reports: list[Json], ready: str, available: str
) -> None:
    status = fold(resource, reports, None, ["dns", "val"], at(10), 3)
    told = [c["message"].partition(": ")[2] for c in status["conditions"][:4]]
    assert told == [ready, available, ready, available]


@pytest.mark.parametrize(
    ("phase", "reports", "required"),
    [
        pytest.param("NotReady", [], [], id="no report and none required"),
        pytest.param("NotReady", [], ["a"], id="the required adapter is missing"),
        pytest.param("Ready", [stored("a", 2, **GOOD)], [], id="all that report are True"),
        pytest.param("Ready", [stored("a", 2, **GOOD)], ["a"], id="all required are True"),
        pytest.param(
            "NotReady", [stored("a", 2, **GOOD)], ["a", "b"], id="one of two required is missing"
        ),
        pytest.param("NotReady", [stored("a", 1, **GOOD)], [], id="True at an older generation"),
        pytest.param("NotReady", [stored("a", 2, Available="Unknown")], [], id="Unknown is not True"),
        pytest.param("NotReady", [stored("a", 2, **BAD)], [], id="False alone may still recover"),
        pytest.param(
            "Ready",
            [stored("a", 2, **GOOD), stored("b", 2, Available="False", Health="False")],
            ["a"],
            id="an adapter that is not required does not count",
        ),
        pytest.param(
            "NotReady",
            [stored("a", 2, **GOOD), stored("b", 2, **BAD)],
            [],
            id="with none configured every adapter counts",
        ),
        pytest.param("Failed", [stored("a", 2, **BAD, Health="False")], [], id="unhealthy"),
        pytest.param(
            "Failed", [stored("a", 2, **BAD, Progressing="False")], [], id="no longer progressing"
        ),
        pytest.param("Failed", [stored("a", 2, **BAD, Failed="True")], [], id="reports Failed"),
        pytest.param(
            "Failed",
            [stored("a", 2, **BAD, Failed="True")],
            ["a", "b"],
            id="failed while another is missing",
        ),
        pytest.param(
            "NotReady",
            [stored("a", 2, **BAD, Health="Unknown", Progressing="True", Failed="False")],
            [],
            id="not available yet and no sign of failure",
        ),
        pytest.param(
            "NotReady",
            [stored("a", 1, **BAD, Failed="True")],
            [],
            id="failed at an older generation",
        ),
        pytest.param("Ready", [stored("a", 2, **GOOD, Failed="True")], [], id="True is not failed"),
        pytest.param(
            "NotReady",
            [stored("a", 2, Available="Unknown", Failed="True")],
            [],
            id="Unknown is not failed",
        ),
        pytest.param("Failed", [stored("a", 2, Health="False")], [], id="unhealthy without Available"),
    ],
)
def test_phase_follows_the_reports_of_the_required_adapters(
    phase: str, reports: list[Json], required: list[str]
) -> None:
    assert fold(RESOURCE, reports, None, required, at(10))["phase"] == phase


@pytest.mark.parametrize(
    ("generation", "reports", "required"),
    [
        (0, [], []),
        (0, [], ["a"]),
        (0, [stored("a", 2, **GOOD)], ["a", "b"]),
        (0, [stored("b", 2, **GOOD)], ["a"]),
        (2, [stored("a", 2, **BAD)], []),
        (1, [stored("a", 2, **GOOD), stored("b", 1, **GOOD)], []),
        (2, [stored("a", 2, **GOOD), stored("b", 1, **GOOD)], ["a"]),
    ],
)
def test_observed_generation_is_the_lowest_of_the_required_and_0_while_one_is_missing(
    generation: int, reports: list[Json], required: list[str]
) -> None:
    assert fold(RESOURCE, reports, None, required, at(10))["observed_generation"] == generation


def test_a_resource_without_reports_has_the_four_conditions_false_since_its_creation() -> None:
    resource = {"generation": 1, "created_time": at(0), "updated_time": at(0)}
    for required in ([], ["a", "b"]):
        status = fold(resource, [], None, required, at(3))
        assert without(status, "message") == {
            "phase": "NotReady",
            "observed_generation": 0,
            "last_updated_time": at(0),
            "last_transition_time": at(0),
            "adapters": [],
            "conditions": [
                {
                    "type": kind,
                    "status": "False",
                    "reason": reason,
                    "observed_generation": 1,
                    "created_time": at(0),
                    "last_updated_time": at(0),
                    "last_transition_time": at(0),
                }
                for kind, reason in [
                    ("Ready", "ReconciledMissingAdapters"),
                    ("Available", "AdaptersMissingReports"),
                    ("Reconciled", "ReconciledMissingAdapters"),
                    ("LastKnownReconciled", "AdaptersMissingReports"),
                ]
            ],
        }
        assert all(c["message"] for c in status["conditions"])


@pytest.mark.parametrize(
    ("reason", "reports", "required"),
    [
        ("AdaptersMissingReports", [], []),
        ("AdaptersMissingReports", [stored("a", 2, **BAD)], ["a", "b"]),
        ("AdaptersMissingReports", [stored("b", 2, **GOOD)], ["a"]),
        ("AdapterReportedNotAvailable", [stored("a", 2, **BAD)], []),
        ("AdapterReportedNotAvailable", [stored("a", 2, Available="Unknown")], []),
        ("AdapterReportedNotAvailable", [stored("a", 1, **BAD), stored("b", 2, **GOOD)], []),
        ("AdaptersNotAtSameGeneration", [stored("a", 1, **GOOD), stored("b", 2, **GOOD)], []),
        ("AllAdaptersReconciled", [stored("a", 2, **GOOD), stored("b", 2, **GOOD)], []),
        ("AllAdaptersReconciled", [stored("a", 1, **GOOD), stored("b", 1, **GOOD)], ["a", "b"]),
        ("AllAdaptersReconciled", [stored("a", 1, **GOOD), stored("b", 2, **BAD)], ["a"]),
    ],
)
def test_available_is_true_or_gives_the_reason_why_not(
    reason: str, reports: list[Json], required: list[str]
) -> None:
    status = fold(RESOURCE, reports, None, required, at(10))
    for kind in ("Available", "LastKnownReconciled"):
        assert condition(status, kind)["reason"] == reason
        assert condition(status, kind)["status"] == str(reason == "AllAdaptersReconciled")


@pytest.mark.parametrize(
    ("generation", "updated", "reports", "required"),
    [
        (1, 1, [], []),
        (1, 1, [stored("b", 2, **GOOD)], ["a"]),
        (2, 20, [stored("a", 1, 10, **GOOD), stored("b", 2, 20, **BAD)], []),
        (2, 20, [stored("a", 2, 30, **BAD), stored("b", 2, 20, **BAD)], []),
        (1, 10, [stored("a", 1, 10, **GOOD), stored("b", 1, 20, **GOOD)], []),
        (1, 20, [stored("a", 1, 10, **BAD), stored("b", 1, 20, **BAD)], ["b"]),
    ],
)
def test_available_has_its_generation_and_the_time_of_the_oldest_report_on_it(
    generation: int, updated: int, reports: list[Json], required: list[str]
) -> None:
    available = condition(fold(RESOURCE, reports, None, required, at(30)), "Available")
    assert available["observed_generation"] == generation
    assert available["last_updated_time"] == at(updated)


def test_ready_has_the_current_generation_and_the_time_of_the_oldest_report_on_it() -> None:
    reports = [stored("a", 1, 10, **GOOD), stored("b", 2, 20, **GOOD), stored("c", 2, 30, **GOOD)]
    for seen, updated in [(reports, 20), (reports[:1], 1), ([], 1)]:
        ready = condition(fold(RESOURCE, seen, None, [], at(30)), "Ready")
        assert ready["observed_generation"] == 2
        assert ready["last_updated_time"] == at(updated)
    assert condition(fold(RESOURCE, reports, None, ["c"], at(30)), "Ready")["last_updated_time"] == at(
        30
    )


@pytest.mark.parametrize(
    ("updated", "reports", "required"),
    [
        (1, [], []),
        (1, [stored("b", 2, 10, **GOOD)], ["a"]),
        (10, [stored("a", 1, 10, **GOOD), stored("b", 2, 20, **GOOD)], []),
        (20, [stored("a", 1, 10, **GOOD), stored("b", 2, 20, **GOOD)], ["b"]),
        (20, [stored("b", 2, 20, **GOOD)], ["a", "b"]),
    ],
)
def test_last_updated_time_is_that_of_the_oldest_required_report(
    updated: int, reports: list[Json], required: list[str]
) -> None:
    assert fold(RESOURCE, reports, None, required, at(30))["last_updated_time"] == at(updated)


GONE = {"Available": "False", "Finalized": "True"}


@pytest.mark.parametrize(
    ("reason", "reports", "required", "children"),
    [
        ("ReconciledAll", [stored("a", 2, **GONE)], [], 0),
        ("ReconciledAll", [stored("a", 2, **GONE), stored("b", 2, **GOOD)], ["a"], 0),
        ("ReconciledAll", [], [], 0),
        ("ReconciledWaitingForChildren", [stored("a", 2, **GONE)], [], 3),
        ("ReconciledWaitingForChildren", [], [], 1),
        ("ReconciledMissingAdapters", [stored("a", 2, **GONE)], ["a", "b"], 0),
        ("ReconciledMissingAdapters", [stored("a", 1, **GONE)], [], 0),
        ("ReconciledMissingAdapters", [stored("a", 2, **GOOD)], [], 0),
        ("ReconciledMissingAdapters", [stored("a", 2, Finalized="False")], [], 0),
        ("ReconciledMissingAdapters", [stored("a", 2, Finalized="Unknown")], [], 0),
        ("ReconciledMissingAdapters", [stored("a", 2, **GOOD)], [], 2),
        ("ReconciledMissingAdapters", [], ["a"], 0),
    ],
)
def test_while_being_deleted_reconciled_waits_for_finalized_and_then_for_children(
    reason: str, reports: list[Json], required: list[str], children: int
) -> None:
    status = fold(DELETED, reports, None, required, at(10), children)
    for kind in ("Ready", "Reconciled"):
        assert condition(status, kind)["reason"] == reason
        assert condition(status, kind)["status"] == str(reason == "ReconciledAll")


def test_while_being_deleted_phase_still_follows_the_verdicts() -> None:
    assert fold(DELETED, [stored("a", 2, **GONE)], None, [], at(10))["phase"] == "NotReady"
    assert fold(DELETED, [stored("a", 2, **GOOD)], None, [], at(10))["phase"] == "Ready"
    failed = stored("a", 2, **GONE, Failed="True")
    assert fold(DELETED, [failed], None, [], at(10))["phase"] == "Failed"


def test_children_do_not_matter_while_the_resource_is_not_being_deleted() -> None:
    report = stored("a", 2, **GOOD)
    status = fold(RESOURCE, [report], None, [], at(10), 5)
    assert status == fold(RESOURCE, [report], None, [], at(10))
    assert condition(status, "Ready")["reason"] == "ReconciledAll"


def test_finalized_does_not_matter_while_the_resource_is_not_being_deleted() -> None:
    status = fold(RESOURCE, [stored("a", 2, **GONE)], None, [], at(10))
    assert condition(status, "Ready")["reason"] == "ReconciledMissingAdapters"


@pytest.mark.parametrize(
    ("reports", "status", "generation"),
    [
        pytest.param(
            [("a", 2, "False"), ("b", 1, "True")], "True", 1, id="one False at a newer generation"
        ),
        pytest.param(
            [("a", 2, "False"), ("b", 2, "False")], "True", 1, id="all False at a newer generation"
        ),
        pytest.param(
            [("a", 2, "True"), ("b", 1, "True")], "True", 1, id="one True at a newer generation"
        ),
        pytest.param(
            [("a", 2, "True"), ("b", 2, "True")], "True", 2, id="all True at a newer generation"
        ),
        pytest.param([("a", 1, "Unknown"), ("b", 1, "True")], "True", 1, id="Unknown"),
        pytest.param(
            [("a", 1, "False"), ("b", 1, "True")], "False", 1, id="False at the tracked generation"
        ),
        pytest.param(
            [("a", 1, "False"), ("b", 2, "True")], "False", 2, id="False while another is ahead"
        ),
        pytest.param([("a", 1, "True")], "True", 1, id="an added adapter has not reported"),
        pytest.param([], "True", 1, id="no reports left"),
    ],
)
def test_available_stays_true_until_one_turns_false_at_the_tracked_generation(
    reports: list[tuple[str, int, str]], status: str, generation: int
) -> None:
    required = ["a", "b"]
    both = [stored("a", 1, **GOOD), stored("b", 1, **GOOD)]
    before = fold(RESOURCE, both, None, required, at(10))
    now = [stored(name, seen, 20, Available=verdict) for name, seen, verdict in reports]
    for kind in ("Available", "LastKnownReconciled"):
        assert condition(before, kind)["observed_generation"] == 1
        after = condition(fold(RESOURCE, now, before, required, at(20)), kind)
        assert (after["status"], after["observed_generation"]) == (status, generation)
        assert after["last_transition_time"] == at(10 if status == "True" else 20)


def test_available_that_turned_false_stays_false_until_all_agree_again() -> None:
    both = [stored("a", 1, **GOOD), stored("b", 1, **GOOD)]
    true = fold(RESOURCE, both, None, [], at(10))
    broken = [stored("a", 1, **BAD), stored("b", 1, **GOOD)]
    false = fold(RESOURCE, broken, true, [], at(20))
    apart = [stored("a", 2, **GOOD), stored("b", 1, **GOOD)]
    still = fold(RESOURCE, apart, false, [], at(30))
    assert condition(still, "Available")["reason"] == "AdaptersNotAtSameGeneration"
    assert condition(still, "Available")["last_transition_time"] == at(20)
    again = fold(RESOURCE, [stored("a", 2, **GOOD), stored("b", 2, **GOOD)], still, [], at(40))
    assert condition(again, "Available")["status"] == "True"
    assert condition(again, "Available")["last_transition_time"] == at(40)


@pytest.mark.parametrize(
    ("report", "now", "phase", "ready", "available"),
    [
        pytest.param(stored("a", 2, **GOOD), 10, 10, 10, 10, id="already True"),
        pytest.param(stored("a", 1, **GOOD), 10, 0, 0, 10, id="True at an older generation"),
        pytest.param(stored("a", 2, **BAD), 10, 0, 0, 0, id="still in the initial state"),
        pytest.param(stored("a", 2, **BAD, Failed="True"), 10, 10, 0, 0, id="failed is a change"),
        pytest.param(stored("a", 2, **GOOD), -10, 0, 0, 0, id="never before the creation"),
    ],
)
def test_the_first_fold_dates_what_differs_from_the_initial_status(
    report: Json, now: int, phase: int, ready: int, available: int
) -> None:
    status = fold(RESOURCE, [report], None, [], at(now))
    assert status["last_transition_time"] == at(phase)
    for kind, seconds in zip(AGGREGATED, (ready, available) * 2, strict=True):
        assert condition(status, kind)["last_transition_time"] == at(seconds)
        assert condition(status, kind)["created_time"] == at(0)


def test_a_late_report_that_changes_the_status_does_not_move_transition_times_back() -> None:
    true = fold(RESOURCE, [stored("a", 2, **GOOD)], None, [], at(20))
    false = fold(RESOURCE, [stored("a", 2, **BAD)], true, [], at(15))
    assert false["last_transition_time"] == at(20)
    for kind in (*AGGREGATED, "ASuccessful"):
        assert condition(false, kind)["status"] == "False"
        assert condition(false, kind)["last_transition_time"] == at(20)


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [
        ("dns", "DnsSuccessful"),
        ("dns-adapter", "DnsAdapterSuccessful"),
        ("pull_secret", "PullSecretSuccessful"),
        ("hyperShift.v2", "HyperShiftV2Successful"),
        ("a--b/c d", "ABCDSuccessful"),
        ("2fast", "2fastSuccessful"),
        ("-DNS-", "DNSSuccessful"),
    ],
)
def test_the_successful_condition_is_named_after_the_adapter_in_pascal_case(
    adapter: str, kind: str
) -> None:
    status = fold(RESOURCE, [stored(adapter, 1, 10, **GOOD)], None, [], at(12))
    assert status["conditions"][4] == {
        "type": kind,
        "status": "True",
        "reason": "AvailableReason",
        "message": "Available message",
        "observed_generation": 1,
        "created_time": at(12),
        "last_updated_time": at(10),
        "last_transition_time": at(12),
    }


@pytest.mark.parametrize(
    ("first", "second", "required", "heard"),
    [
        (GOOD, BAD, [], "second"),
        (BAD, GOOD, [], "first"),
        (GOOD, UNKNOWN, [], "second"),
        (UNKNOWN, GOOD, [], "first"),
        (UNKNOWN, BAD, [], "second"),
        (GOOD, GOOD, [], "first"),
        (GOOD, BAD, ["a-b"], "first"),
        (BAD, GOOD, ["a_b"], "second"),
        (GOOD, BAD, ["a-b", "a_b"], "second"),
    ],
)
def test_a_shared_successful_condition_shows_a_required_adapter_and_then_the_worst(
    first: Json, second: Json, required: list[str], heard: str
) -> None:
    reports = [stored("a-b", 1, 10, **first), stored("a_b", 1, 20, **second)]
    for order in (reports, reports[::-1]):
        status = fold(RESOURCE, order, None, required, at(22))
        (shared,) = status["conditions"][4:]
        says, seconds = (first, 10) if heard == "first" else (second, 20)
        assert (shared["type"], shared["status"]) == ("ABSuccessful", says["Available"])
        assert shared["last_updated_time"] == at(seconds)
        # Each still has its own entry.
        assert [entry["adapter"] for entry in status["adapters"]] == ["a-b", "a_b"]


def test_a_successful_condition_keeps_its_creation_time_and_dates_its_changes() -> None:
    first = fold(RESOURCE, [stored("a", 1, 10, **GOOD)], None, [], at(10))
    second = fold(RESOURCE, [stored("a", 2, 20, **GOOD)], first, [], at(20))
    third = fold(RESOURCE, [stored("a", 2, 30, **BAD)], second, [], at(30))
    dates = ("observed_generation", "created_time", "last_updated_time", "last_transition_time")
    seen = [tuple(condition(s, "ASuccessful")[d] for d in dates) for s in (first, second, third)]
    assert seen == [
        (1, at(10), at(10), at(10)),
        (2, at(10), at(20), at(10)),
        (2, at(10), at(30), at(30)),
    ]


def test_an_adapter_entry_is_its_verdict_condition() -> None:
    status = fold(RESOURCE, [stored("a", 1, 10, Health="True", **BAD)], None, [], at(12))
    assert status["adapters"] == [
        {
            "adapter": "a",
            "type": "Available",
            "status": "False",
            "reason": "AvailableReason",
            "message": "Available message",
            "observed_generation": 1,
            "created_at": at(5),
            "updated_at": at(10),
        }
    ]


def test_entries_are_sorted_by_adapter_after_the_four_aggregated_conditions() -> None:
    reports = [stored(name, 2, **GOOD) for name in ("b", "c", "a-b", "a", "Z")]
    status = fold(RESOURCE, reports, None, ["c"], at(10))
    assert [entry["adapter"] for entry in status["adapters"]] == ["Z", "a", "a-b", "b", "c"]
    assert [c["type"] for c in status["conditions"]] == [
        *AGGREGATED,
        *("ZSuccessful", "ASuccessful", "ABSuccessful", "BSuccessful", "CSuccessful"),
    ]


# Discards


@pytest.mark.parametrize(
    ("generation", "kept", "report"),
    [
        pytest.param(2, None, sent(3, 10), id="ahead of the resource"),
        pytest.param(2, stored("dns", 2), sent(3, 20), id="ahead, and newer than the stored report"),
        pytest.param(2, stored("dns", 2), sent(1, 20), id="behind the stored report"),
        pytest.param(2, stored("dns", 2), sent(1, None), id="behind, without a time"),
        pytest.param(2, stored("dns", 2, 10), sent(2, 9.999999), id="observed earlier"),
        pytest.param(3, stored("dns", 2, 10), sent(2, 9), id="observed earlier, behind the resource"),
        pytest.param(2, stored("dns", 2), sent(2, 20, Available="Unknown"), id="Unknown"),
        pytest.param(
            2, stored("dns", 1), sent(2, 20, Available="Unknown"), id="Unknown at a newer generation"
        ),
    ],
)
def test_a_discarded_report_has_a_reason_that_fits_in_a_header(
    generation: int, kept: Json | None, report: Json
) -> None:
    inputs = copy.deepcopy((kept, report))
    reason = discard_reason(generation, kept, report)
    assert isinstance(reason, str)
    assert reason
    # It is sent in a header.
    assert reason.isascii()
    assert reason.isprintable()
    assert (kept, report) == inputs


@pytest.mark.parametrize(
    ("generation", "kept", "report"),
    [
        pytest.param(2, None, sent(2, 10), id="the first"),
        pytest.param(2, None, sent(1, None), id="the first, about an older generation"),
        pytest.param(2, None, sent(2, 10, Available="Unknown"), id="the first, Unknown"),
        pytest.param(
            2, stored("dns", 2, 10), sent(2, 11, Health="Unknown"), id="Unknown in another condition"
        ),
        pytest.param(2, stored("dns", 1, 10), sent(2, 5), id="newer generation, earlier time"),
        pytest.param(2, stored("dns", 2, 10), sent(2, 11), id="same generation, later time"),
        pytest.param(2, stored("dns", 2, 10), sent(2, 10), id="same generation, same time"),
        pytest.param(2, stored("dns", 2, 10), sent(2, None), id="same generation, now"),
        pytest.param(3, stored("dns", 1, 10), sent(1, 12), id="still on an older generation"),
    ],
)
def test_a_report_that_brings_news_is_kept(generation: int, kept: Json | None, report: Json) -> None:
    assert discard_reason(generation, kept, report) is None


def test_each_kind_of_discard_has_its_own_reason() -> None:
    kept = stored("dns", 2, 10)
    reasons = [discard_reason(2, kept, sent(*about)) for about in ((3, 20), (1, 20), (2, 9))]
    reasons.append(discard_reason(2, kept, sent(2, 20, Available="Unknown")))
    assert len(set(reasons)) == 4


# Merging


def test_a_first_report_is_stored_with_all_times_set_to_its_own() -> None:
    report = sent(2, 10, Available="True", Health="False") | {
        "data": {"zone": "example.org"},
        "metadata": {"job": "dns-1"},
    }
    report["conditions"][1] |= {"reason": "Broken", "message": "It broke"}
    times = {"created_at": at(10), "updated_at": at(10), "last_transition_time": at(10)}
    assert merge(None, report, at(10)) == {
        "adapter": "dns",
        "observed_generation": 2,
        "conditions": [
            {
                "adapter": "dns",
                "type": "Available",
                "status": "True",
                "observed_generation": 2,
                **times,
            },
            {
                "adapter": "dns",
                "type": "Health",
                "status": "False",
                "reason": "Broken",
                "message": "It broke",
                "observed_generation": 2,
                **times,
            },
        ],
        "data": {"zone": "example.org"},
        "metadata": {"job": "dns-1"},
        "created_time": at(10),
        "last_report_time": at(10),
    }


def test_a_condition_keeps_its_creation_and_transition_times_while_its_status_stays() -> None:
    kept = merge(None, sent(1, 10, Available="True", Health="True"), at(10))
    next_ = merge(kept, sent(2, 20, Health="False", Applied="True", Available="True"), at(20))
    assert next_["created_time"] == at(10)
    assert next_["last_report_time"] == at(20)
    assert [
        (
            c["type"],
            c["observed_generation"],
            c["created_at"],
            c["updated_at"],
            c["last_transition_time"],
        )
        for c in next_["conditions"]
    ] == [
        ("Health", 2, at(10), at(20), at(20)),
        ("Applied", 2, at(20), at(20), at(20)),
        ("Available", 2, at(10), at(20), at(10)),
    ]


def test_created_at_survives_a_thousand_reports() -> None:
    report = merge(None, sent(1, 0, Available="True"), at(0))
    for second in range(1, 1001):
        status = "False" if second % 100 == 0 else "True"
        report = merge(report, sent(1, second, Available=status), at(second))
    (kept,) = report["conditions"]
    assert report["created_time"] == kept["created_at"] == at(0)
    assert kept["updated_at"] == report["last_report_time"] == at(1000)
    assert kept["last_transition_time"] == at(1000)


def test_a_report_replaces_the_one_before_it() -> None:
    kept = merge(None, sent(1, 10, Available="True", Health="True") | {"data": {"a": 1}}, at(10))
    next_ = merge(kept, sent(1, 20, Health="True") | {"metadata": {"b": 2}}, at(20))
    assert [c["type"] for c in next_["conditions"]] == ["Health"]
    assert "data" not in next_
    assert next_["metadata"] == {"b": 2}
    # A condition that disappeared and returns is new.
    back = merge(next_, sent(1, 30, Available="True"), at(30))
    (available,) = back["conditions"]
    assert available["created_at"] == at(30)


def test_the_service_overrides_the_members_of_a_condition_that_it_sets_itself() -> None:
    report = sent(2, 10, Available="True")
    own = {
        "adapter": "somebody-else",
        "observed_generation": 99,
        "created_at": at(-100),
        "updated_at": at(-100),
        "last_transition_time": at(-100),
    }
    report["conditions"][0] |= own
    (available,) = merge(None, report, at(10))["conditions"]
    assert {member: available[member] for member in own} == {
        "adapter": "dns",
        "observed_generation": 2,
        "created_at": at(10),
        "updated_at": at(10),
        "last_transition_time": at(10),
    }


@pytest.mark.parametrize("call", [merge, discard_reason])
def test_neither_merging_a_report_nor_deciding_on_its_discard_modifies_it(
    call: Callable[..., object],
) -> None:
    kept = merge(None, sent(1, 10, Available="True"), at(10))
    report = sent(1, 20, Available="False", Health="True") | {"data": {"a": [1]}}
    inputs = copy.deepcopy((kept, report))
    if call is merge:
        merge(kept, report, at(20))
    else:
        discard_reason(1, kept, report)
    assert (kept, report) == inputs
