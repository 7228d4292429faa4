"""What an adapter says: the conditions of its report, what they come to, and whether it is news.

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
    """What an adapter reports; the times are those of a stored report."""

    adapter: str
    observed_generation: int
    conditions: list[Condition]
    observed_time: NotRequired[str | None]
    data: NotRequired[Json]
    metadata: NotRequired[Json]
    created_time: NotRequired[str]
    last_report_time: NotRequired[str]


# From the best to the worst; where two adapters share a condition, the worst is shown.
STATUSES = ("True", "Unknown", "False")


def verdict(report: Report) -> tuple[str, Condition | None]:
    """What an adapter's report comes to (``True``, ``False`` or ``Unknown``) and which condition
    says so; None when there is none but ``Progressing``.
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
    """Whether the report says that the work ended badly, not merely that it is not done yet."""
    says = {c["type"]: c["status"] for c in report["conditions"]}
    return verdict(report)[0] == "False" and (
        says.get("Health") == "False"
        or says.get("Progressing") == "False"
        or says.get("Failed") == "True"
    )


def finalized(report: Report, generation: int) -> bool:
    """Whether the adapter has cleaned up after the resource as it is now."""
    return report["observed_generation"] == generation and any(
        c["type"] == "Finalized" and c["status"] == "True" for c in report["conditions"]
    )


def all_finalized(generation: int, reports: Iterable[Report], required: Sequence[str]) -> bool:
    """Whether every required adapter (none named: every one that reported) has cleaned up."""
    done = {r["adapter"]: finalized(r, generation) for r in reports}
    return all(done.get(name, False) for name in required or done)


def discard_reason(generation: int, stored: Report | None, report: Report) -> str | None:
    """Why a report says nothing new about a resource at ``generation``; None: it does.

    ``stored`` is the adapter's last report, ``report`` the new one, whose ``observed_time`` is a
    timestamp or None.
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
        # No news: it must not turn what an earlier word has settled.
        return "available-unknown"
    return None


def merge(stored: Report | None, report: Report, at: str) -> Report:
    """The report as it is to be stored: its conditions with the times that the service sets.

    A condition's ``created_at`` survives, ``updated_at`` moves with every report, and
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
            # A newer generation may have been looked at before an older one was; time goes on.
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
    """The reason and the message of a condition, as far as it has them."""
    given: Mapping[str, Any] = condition or {}
    return {key: given[key] for key in ("reason", "message") if key in given}


def moved(old: Mapping[str, Any] | None, status: str, at: str, start: str) -> str:
    """Since when a condition is as it is.

    :param old: the condition before; None: it was not there, and counts from ``start``
    """
    if old is None:
        return start
    since: str = old["last_transition_time"]
    return since if old["status"] == status else max(since, at)
