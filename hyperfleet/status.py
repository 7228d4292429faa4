"""Reports in, status out: how what adapters report becomes one Kubernetes-style status.

All functions are pure. Resources, reports and statuses are plain dicts in the shape in which the API
shows them. Every time is text of fixed width (:mod:`hyperfleet.times`), so that times compare as text.
"""

import re
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


class ResourceCondition(TypedDict):
    """A condition of a resource."""

    type: str
    status: str
    reason: NotRequired[str]
    message: NotRequired[str]
    observed_generation: int
    created_time: str
    last_updated_time: str
    last_transition_time: str


class Status(TypedDict):
    """What the reports on a resource come to."""

    phase: str
    observed_generation: int
    last_transition_time: str
    last_updated_time: str
    adapters: list[Json]
    conditions: list[ResourceCondition]


class State(TypedDict):
    """What of a resource its status depends on; a whole one has its name, labels, spec and document."""

    id: NotRequired[str]
    version: NotRequired[int]
    generation: int
    created_time: str
    updated_time: str
    deleted_time: NotRequired[str | None]
    status: NotRequired[Status]
    name: NotRequired[str]
    labels: NotRequired[dict[str, str]]
    spec: NotRequired[Json]
    document: NotRequired[str]


# The two words that clients of different generations have for each of the aggregated conditions.
READY = ("Ready", "Reconciled")
AVAILABLE = ("Available", "LastKnownReconciled")

# From the best to the worst; where two adapters share a condition, the worst is shown.
STATUSES = ("True", "Unknown", "False")

NO_REPORT = "No adapter has reported yet."


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


def _failed(report: Report) -> bool:
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
            **_words(given),  # type: ignore[typeddict-item]
            "observed_generation": report["observed_generation"],
            "created_at": before["created_at"] if before else at,
            # A newer generation may have been looked at before an older one was; time goes on.
            "updated_at": max(at, before["updated_at"]) if before else at,
            "last_transition_time": at,
        }
        if before and before["status"] == given["status"]:
            condition["last_transition_time"] = before["last_transition_time"]
        elif before:
            condition["last_transition_time"] = max(at, before["last_transition_time"])
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


def fold(
    resource: State,
    reports: Iterable[Report],
    previous: Status | None,
    required: Sequence[str],
    at: str,
    children: int = 0,
) -> Status:
    """The status of a resource.

    :param resource: ``generation``, ``created_time``, ``updated_time``, ``deleted_time`` if marked
    :param reports: the stored report of each adapter
    :param previous: the status as it was before; None for a new resource
    :param required: the adapters that count; empty: all that have reported
    :param at: the time of the report or the write that is the reason to fold
    :param children: how many node pools are left; asked only of a marked cluster
    """
    stored = {r["adapter"]: r for r in sorted(reports, key=lambda r: str(r["adapter"]))}
    verdicts = {name: verdict(report) for name, report in stored.items()}
    names = tuple(dict.fromkeys(required)) or tuple(stored)
    counted = {name: stored[name] for name in names if name in stored}
    generation: int = resource["generation"]
    phase = _phase(names, counted, generation)
    before = _by_type(previous)

    def condition(kind: str, status: str, *, created: str, start: str, **rest: Any) -> ResourceCondition:
        old = before.get(kind)
        if old is None:
            moved = start
        elif old["status"] == status:
            moved = old["last_transition_time"]
        else:
            moved = max(old["last_transition_time"], at)
        return {
            "type": kind,
            "status": status,
            **rest,  # type: ignore[typeddict-item]
            "created_time": old["created_time"] if old else created,
            "last_transition_time": moved,
        }

    born: str = resource["created_time"]
    ready = _ready(resource, names, counted, phase, children)
    available = _available(before.get(AVAILABLE[0]), names, counted, resource["updated_time"])
    conditions = [
        condition(
            kind,
            **says,
            created=born,
            start=born if says["status"] == "False" else max(born, at),
        )
        for kind, says in zip((READY[0], AVAILABLE[0]), (ready, available), strict=True)
    ]
    conditions += [
        {**conditions[0], "type": READY[1]},
        {**conditions[1], "type": AVAILABLE[1]},
    ]
    conditions += [
        condition(
            kind,
            verdicts[name][0],
            **_words(verdicts[name][1]),
            observed_generation=stored[name]["observed_generation"],
            last_updated_time=stored[name]["last_report_time"],
            created=at,
            start=at,
        )
        for kind, name in _successful(verdicts, names).items()
    ]

    if previous is None:
        moved = born if phase == "NotReady" else max(born, at)
    elif previous["phase"] == phase:
        moved = previous["last_transition_time"]
    else:
        moved = max(previous["last_transition_time"], at)
    return {
        "phase": phase,
        "observed_generation": min((r["observed_generation"] for r in counted.values()), default=0)
        if len(counted) == len(names)
        else 0,
        "last_transition_time": moved,
        "last_updated_time": _oldest(counted.values(), resource["updated_time"]),
        "adapters": [_adapter(stored[name], status, says) for name, (status, says) in verdicts.items()],
        "conditions": conditions,
    }


def _adapter(report: Report, status: str, says: Condition | None) -> Json:
    """An entry of ``adapters``: the condition that an adapter is judged by."""
    given: Mapping[str, Any] = says or {}
    return {
        "adapter": report["adapter"],
        "type": given.get("type", "Available"),
        "status": status,
        **_words(says),
        "observed_generation": report["observed_generation"],
        "created_at": given.get("created_at", report["created_time"]),
        "updated_at": given.get("updated_at", report["last_report_time"]),
    }


def _phase(names: Sequence[str], counted: Mapping[str, Report], generation: int) -> str:
    current = [r for r in counted.values() if r["observed_generation"] == generation]
    if names and len(current) == len(names) and all(verdict(r)[0] == "True" for r in current):
        return "Ready"
    return "Failed" if any(_failed(r) for r in current) else "NotReady"


def _ready(
    resource: State,
    names: Sequence[str],
    counted: Mapping[str, Report],
    phase: str,
    children: int,
) -> Json:
    generation = resource["generation"]
    current = {n: r for n, r in counted.items() if r["observed_generation"] == generation}
    says: Json = {
        "observed_generation": generation,
        "last_updated_time": _oldest(current.values(), resource["updated_time"]),
    }
    if resource.get("deleted_time"):
        late = [n for n in names if n not in current or not finalized(current[n], generation)]
        if not late and not children:
            message = "All required adapters report Finalized=True and no node pool is left."
            return says | {"status": "True", "reason": "ReconciledAll", "message": message}
        if not late:
            message = f"Node pools are left: {children}."
            reason = "ReconciledWaitingForChildren"
            return says | {"status": "False", "reason": reason, "message": message}
        message = (
            f"Required adapters not reporting Finalized=True at generation {generation}: "
            + _whats(late, counted, "Finalized")
        )
    elif phase == "Ready":
        message = f"All required adapters report True at generation {generation}."
        return says | {"status": "True", "reason": "ReconciledAll", "message": message}
    else:
        late = [n for n in names if n not in current or verdict(current[n])[0] != "True"]
        message = (
            f"Required adapters not reporting True at generation {generation}: " + _whats(late, counted)
            if names
            else NO_REPORT
        )
    return says | {"status": "False", "reason": "ReconciledMissingAdapters", "message": message}


def _available(
    old: ResourceCondition | None, names: Sequence[str], counted: Mapping[str, Report], updated: str
) -> Json:
    missing = [n for n in names if n not in counted]
    generations = {r["observed_generation"] for r in counted.values()}
    doubtful = [n for n, r in counted.items() if verdict(r)[0] != "True"]
    tracked = old["observed_generation"] if old and old["status"] == "True" else None
    status, message = "False", ""
    if names and not missing and not doubtful and len(generations) == 1:
        status, tracked = "True", max(generations)
    elif tracked is not None and not any(
        r["observed_generation"] == tracked and verdict(r)[0] == "False" for r in counted.values()
    ):
        # What ran goes on running while a new spec is under way, or while nothing is known.
        status = "True"
    late = [n for n in names if n not in counted or n in doubtful]
    if status == "True":
        reason = "AllAdaptersReconciled"
        message = f"All required adapters reported True at generation {tracked}."
    elif missing or not names:
        reason = "AdaptersMissingReports"
    elif doubtful:
        reason = "AdapterReportedNotAvailable"
    else:
        reason = "AdaptersNotAtSameGeneration"
        message = f"Required adapters report on different generations: {_whats(names, counted)}"
    if late and status == "False":
        message = f"Required adapters not reporting True: {_whats(late, counted)}"
    elif not names:
        message = NO_REPORT
    if status == "False":
        tracked = max(generations, default=1)
    speaking = [r for r in counted.values() if r["observed_generation"] == tracked]
    return {
        "status": status,
        "reason": reason,
        "message": message,
        "observed_generation": tracked,
        "last_updated_time": _oldest(speaking, updated),
    }


def _successful(
    verdicts: Mapping[str, tuple[str, Condition | None]], required: Sequence[str]
) -> dict[str, str]:
    """Which adapter speaks in each ``<Adapter>Successful`` condition.

    Adapters whose names differ in punctuation alone share one: a required one is heard before others,
    then the one with the worst verdict.
    """

    def weight(name: str) -> tuple[bool, int]:
        return name in required, STATUSES.index(verdicts[name][0])

    speakers: dict[str, str] = {}
    for name in verdicts:
        parts = re.split(r"[^0-9A-Za-z]+", name)
        kind = "".join(part[:1].upper() + part[1:] for part in parts) + "Successful"
        if kind not in speakers or weight(name) > weight(speakers[kind]):
            speakers[kind] = name
    return speakers


def _by_type(status: Status | None) -> dict[str, ResourceCondition]:
    return {c["type"]: c for c in status["conditions"]} if status else {}


def _words(condition: Condition | None) -> Json:
    words: Mapping[str, Any] = condition or {}
    return {key: words[key] for key in ("reason", "message") if key in words}


def _oldest(reports: Iterable[Report], otherwise: str) -> str:
    return min((str(r["last_report_time"]) for r in reports), default=otherwise)


def _whats(names: Iterable[str], counted: Mapping[str, Report], kind: str = "") -> str:
    return ", ".join(f"{name} ({_what(counted.get(name), kind)})" for name in names)


def _what(report: Report | None, kind: str = "") -> str:
    """What an adapter last said, in a few words for a message."""
    if report is None:
        return "no report"
    if kind:
        says = {c["type"]: c["status"] for c in report["conditions"]}.get(kind, "missing")
        return f"{kind} {says} at generation {report['observed_generation']}"
    return f"{verdict(report)[0]} at generation {report['observed_generation']}"
