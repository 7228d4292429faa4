"""Adapter reports: their conditions and verdicts, and whether a report is news.

All functions are pure; times are as in :mod:`hyperfleet.status.fold`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

Json = dict[str, Any]


class Condition(TypedDict):
    """A condition, as an adapter reports it and as it is stored."""

    type: str
    status: str
    reason: NotRequired[str]
    message: NotRequired[str]
    adapter: NotRequired[str]
    observed_generation: NotRequired[int]
    created_at: NotRequired[str]
    updated_at: NotRequired[str]
    last_transition_time: NotRequired[str]


class Report(TypedDict):
    """A report of an adapter; only stored ones have the last two times."""

    adapter: str
    observed_generation: int
    conditions: list[Condition]
    observed_time: NotRequired[str | None]
    data: NotRequired[Json]
    metadata: NotRequired[Json]
    created_time: NotRequired[str]
    last_report_time: NotRequired[str]


# From best to worst; if two adapters share a condition, it shows the worst.
STATUSES = ("True", "Unknown", "False")


def verdict(report: Report) -> tuple[str, Condition | None]:
    """Returns an adapter's verdict (``True``, ``False`` or ``Unknown``) and the condition that gives it;
    None if there is no condition except ``Progressing``.
    """
    conditions = {c["type"]: c for c in report["conditions"]}
    for kind in ("Available", "Ready"):
        if kind in conditions:
            return conditions[kind]["status"], conditions[kind]
    rest = [c for c in report["conditions"] if c["type"] != "Progressing"]
    for status in reversed(STATUSES):
        for condition in rest:
            if condition["status"] == status:
                return status, condition
    return "True", None


def failed(report: Report) -> bool:
    """Whether the report says that the work has failed, rather than that it is not done yet."""
    says = {c["type"]: c["status"] for c in report["conditions"]}
    return verdict(report)[0] == "False" and (
        says.get("Health") == "False"
        or says.get("Progressing") == "False"
        or says.get("Failed") == "True"
    )


def finalized(report: Report, generation: int) -> bool:
    """Whether the adapter reports ``Finalized=True`` at this generation."""
    return report["observed_generation"] == generation and any(
        c["type"] == "Finalized" and c["status"] == "True" for c in report["conditions"]
    )


def all_finalized(generation: int, reports: Iterable[Report], required: Sequence[str]) -> bool:
    """Whether all required adapters have finalized; if none are required, all that have reported."""
    done = {r["adapter"]: finalized(r, generation) for r in reports}
    return all(done.get(name, False) for name in required or done)


def discard_reason(generation: int, stored: Report | None, report: Report) -> str | None:
    """Returns why to discard a report on a resource at ``generation``; None means to accept it.

    :param stored: the adapter's last report, if there is one
    :param report: the new one; its ``observed_time`` is a timestamp or None
    """
    observed = report["observed_generation"]
    if observed > generation:
        return "generation-ahead-of-resource"
    if stored is None:
        return None
    if observed < stored["observed_generation"]:
        return "generation-behind-last-report"
    time = report.get("observed_time")
    if (
        observed == stored["observed_generation"]
        and time is not None
        and time < stored["last_report_time"]
    ):
        return "older-than-last-report"
    if any(c["type"] == "Available" and c["status"] == "Unknown" for c in report["conditions"]):
        # Unknown is no news: it must not undo what an earlier report has settled.
        return "available-unknown"
    return None


def merge(stored: Report | None, report: Report, at: str) -> Report:
    """Returns the report to store; its conditions get the times that the service sets.

    A condition's ``created_at`` stays, ``updated_at`` changes with every report, and
    ``last_transition_time`` only with its status (Kubernetes API conventions, typical status
    properties).
    """
    known = {c["type"]: c for c in stored["conditions"]} if stored else {}
    conditions: list[Condition] = []
    for given in report["conditions"]:
        before = known.get(given["type"])
        condition: Condition = {
            "adapter": report["adapter"],
            "type": given["type"],
            "status": given["status"],
            **words(given),  # type: ignore[typeddict-item]
            "observed_generation": report["observed_generation"],
            "created_at": before["created_at"] if before else at,
            # A report on a newer generation can have an older time; the times here never go back.
            "updated_at": max(at, before["updated_at"]) if before else at,
            "last_transition_time": moved(before, given["status"], at, at),
        }
        conditions.append(condition)
    merged: Report = {
        "adapter": report["adapter"],
        "observed_generation": report["observed_generation"],
        "conditions": conditions,
        "created_time": stored["created_time"] if stored else at,
        "last_report_time": at,
    }
    if "data" in report:
        merged["data"] = report["data"]
    if "metadata" in report:
        merged["metadata"] = report["metadata"]
    return merged


def words(condition: Condition | None) -> Json:
    """Returns the reason and the message of a condition, if it has them."""
    given: Mapping[str, Any] = condition or {}
    return {key: given[key] for key in ("reason", "message") if key in given}


def moved(old: Mapping[str, Any] | None, status: str, at: str, start: str) -> str:
    """Returns the time of a condition's last transition.

    :param old: the previous condition; None if there was none, in which case it is ``start``
    """
    if old is None:
        return start
    since: str = old["last_transition_time"]
    return since if old["status"] == status else max(since, at)
