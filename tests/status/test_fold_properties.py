"""The fold keeps its laws, and agrees with a reference written independently, over many histories."""

import copy
import itertools
import json
import os

import fold_reference as reference
import pytest
from fold_histories import (
    AGGREGATED,
    ANY_HISTORY,
    CHANGES,
    CONDITIONS,
    DELETIONS,
    DEPARTURES,
    LIVING_HISTORY,
    REQUIRED,
    SETTINGS,
    SOME_REQUIRED,
    STEADY_HISTORY,
    Change,
    Event,
    Json,
    Report,
    World,
    at,
    condition,
    histories,
    reports,
    without,
    words,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfleet.status.fold import fold
from hyperfleet.status.report import merge

pytestmark = pytest.mark.slow

# `make test-histories` plays many more.
HISTORIES = int(os.environ.get("HYPERFLEET_TEST_HISTORIES", "500"))
LAWS = settings(max_examples=150, deadline=None, database=None)


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
        world.apply(early)
    for event in (None, *events[unseen:]):
        if event is not None and not world.apply(event):
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
    for _ in world.play(events):
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
    for event, _ in world.play(events):
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
    for _ in world.play(events):
        ready = str(world.status["phase"] == "Ready")
        assert condition(world.status, "Ready")["status"] == ready
        assert condition(world.status, "Reconciled")["status"] == ready


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_both_names_of_an_aggregated_condition_always_agree(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.play(events):
        ready, available, reconciled, last_known = world.status["conditions"][:4]
        assert reconciled == ready | {"type": "Reconciled"}
        assert last_known == available | {"type": "LastKnownReconciled"}


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_last_transition_time_never_moves_without_a_change_of_status(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _, before in world.play(events):
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
    for _, before in world.play(events):
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
    for _, before in world.play(events):
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
    for _ in world.play(events):
        pass
    if settled:
        world.settle()
    before = world.status
    world.advance(Change(step))
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
    for _ in world.play(events):
        pass
    world.settle()
    tracked = condition(world.status, "Available")["observed_generation"]
    # Meanwhile, a new spec may be in progress, and others may have reported on it.
    for _ in range(newer):
        world.advance(Change(1))
    first, *others = data.draw(st.permutations(world.required or sorted(world.reports)))
    for adapter in others[:newer]:
        world.advance(Report(adapter, 0, data.draw(CONDITIONS), 1))
    assert condition(world.status, "Available")["observed_generation"] == tracked
    for kind in ("Available", "LastKnownReconciled"):
        assert condition(world.status, kind)["status"] == "True"
    assert world.advance(Report(first, newer, (("Available", "False"),), 1))
    for kind in AGGREGATED:
        assert condition(world.status, kind)["status"] == "False"
    assert condition(world.status, "Available")["last_transition_time"] == world.at


@LAWS
@given(SOME_REQUIRED, LIVING_HISTORY, st.data())
def test_a_new_spec_that_fails_does_not_make_a_running_resource_unavailable(
    required: tuple[str, ...], events: list[Event], data: st.DataObject
) -> None:
    world = World(required)
    for _ in world.play(events):
        pass
    world.settle()
    tracked = condition(world.status, "Available")
    world.advance(Change(1))
    for adapter in data.draw(st.permutations(world.required or sorted(world.reports))):
        world.advance(Report(adapter, 0, (("Available", "False"),), 1))
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
    for _ in world.play(events):
        pass
    world.settle()
    for _ in world.play(doubts):
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
    for event, before in world.play(events):
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
    for _, before in world.play(events):
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
    for _ in world.play(events):
        text = json.dumps(world.status, allow_nan=False)
        assert json.loads(text) == world.status
        assert "null" not in text


@LAWS
@given(SOME_REQUIRED, ANY_HISTORY)
def test_the_message_of_ready_names_each_required_adapter_that_blocks_it(
    required: tuple[str, ...], events: list[Event]
) -> None:
    world = World(required)
    for _ in world.play(events):
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
    for _ in world.play(events):
        if condition(world.status, "Available")["status"] == "True":
            continue
        for adapter in world.required or world.reports:
            kept = world.reports.get(adapter)
            if kept is None or reference.Testimony(kept).verdict != "True":
                for kind in ("Available", "LastKnownReconciled"):
                    assert adapter in condition(world.status, kind)["message"]
