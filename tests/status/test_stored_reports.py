"""Reports are discarded for a reason, or merged with the stored one."""

import copy
from collections.abc import Callable

import pytest
from fold_histories import Json, at, stored

from hyperfleet.status.report import discard_reason, merge

pytestmark = pytest.mark.slow


def sent(generation: int, time: float | None, /, **conditions: str) -> Json:
    return {
        "adapter": "dns",
        "observed_generation": generation,
        "observed_time": None if time is None else at(time),
        "conditions": [{"type": kind, "status": status} for kind, status in conditions.items()],
    }


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
def test_a_report_is_discarded_with_a_reason_that_fits_in_a_header(
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


# The time that counts is the one passed in, whether or not the report has one.
@pytest.mark.parametrize("observed", [10, 5, 15, None])
def test_a_first_report_is_stored_with_all_times_set_to_the_given_one(observed: float | None) -> None:
    report = sent(2, observed, Available="True", Health="False") | {
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


@pytest.mark.parametrize("observed", [20, 5, 25, None])
def test_a_condition_keeps_its_creation_and_transition_times_while_its_status_stays(
    observed: float | None,
) -> None:
    kept = merge(None, sent(1, 10, Available="True", Health="True"), at(10))
    next_ = merge(kept, sent(2, observed, Health="False", Applied="True", Available="True"), at(20))
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
