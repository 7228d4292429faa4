"""The fold follows its tables: verdicts, phase, reasons, times and names."""

import pytest
from fold_histories import AGGREGATED, Json, at, condition, stored, without

from hyperfleet.status.fold import fold

pytestmark = pytest.mark.slow

RESOURCE: Json = {"generation": 2, "created_time": at(0), "updated_time": at(1)}
DELETED: Json = RESOURCE | {"deleted_time": at(1)}


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
