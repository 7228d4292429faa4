"""Computes a Kubernetes-style status from the reports of adapters.

All functions are pure. Resources, reports and statuses are plain dicts in the shape in which the API
shows them. Times are text of fixed width (:mod:`hyperfleet.times`), so they can be compared as text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from hyperfleet.status.report import (
    STATUSES,
    Condition,
    Json,
    Report,
    failed,
    finalized,
    moved,
    verdict,
    words,
)


class ResourceCondition(TypedDict):
    """A condition in the status of a resource."""

    type: str
    status: str
    reason: NotRequired[str]
    message: NotRequired[str]
    observed_generation: int
    created_time: str
    last_updated_time: str
    last_transition_time: str


class Status(TypedDict):
    """The status of a resource."""

    phase: str
    observed_generation: int
    last_transition_time: str
    last_updated_time: str
    adapters: list[Json]
    conditions: list[ResourceCondition]


class State(TypedDict):
    """The state of a resource; name, labels, spec and document are there only if they were read."""

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
    document: NotRequired[bytes]


# The two names of each aggregated condition, for clients of different generations.
READY = ("Ready", "Reconciled")
AVAILABLE = ("Available", "LastKnownReconciled")

NO_REPORT = "No adapter has reported yet."


def fold(
    resource: State,
    reports: Iterable[Report],
    previous: Status | None,
    required: Sequence[str],
    at: str,
    children: int = 0,
) -> Status:
    """Returns the status of a resource.

    :param resource: ``generation``, ``created_time``, ``updated_time``, ``deleted_time`` if marked
    :param reports: the stored report of each adapter
    :param previous: the previous status; None for a new resource
    :param required: the required adapters; if empty, all that have reported
    :param at: the time of the report or the write that causes the computation
    :param children: how many resources that belong or refer to it are left; used only if it is marked
    """
    stored = {r["adapter"]: r for r in sorted(reports, key=lambda r: str(r["adapter"]))}
    verdicts = {name: verdict(report) for name, report in stored.items()}
    names = tuple(dict.fromkeys(required)) or tuple(stored)
    counted = {name: stored[name] for name in names if name in stored}
    phase = _phase(names, counted, resource["generation"])
    before = {c["type"]: c for c in previous["conditions"]} if previous else {}
    born: str = resource["created_time"]
    says = _ready(resource, names, counted, phase, children)
    ready = _aggregated(before, READY[0], says, born, at)
    says = _available(before.get(AVAILABLE[0]), names, counted, resource["updated_time"])
    available = _aggregated(before, AVAILABLE[0], says, born, at)
    successful = [
        condition(before.get(kind), kind, _judged(stored[name], *verdicts[name]), at, at, at)
        for kind, name in _successful(verdicts, names).items()
    ]
    # The phase has a transition time like the status of a condition.
    old = {**previous, "status": previous["phase"]} if previous else None
    generations = [r["observed_generation"] for r in counted.values()]
    return {
        "phase": phase,
        "observed_generation": min(generations, default=0) if len(counted) == len(names) else 0,
        "last_transition_time": moved(old, phase, at, _begun(phase == "NotReady", born, at)),
        "last_updated_time": _oldest(counted.values(), resource["updated_time"]),
        "adapters": [_adapter(stored[name], *judged) for name, judged in verdicts.items()],
        "conditions": [
            ready,
            available,
            {**ready, "type": READY[1]},
            {**available, "type": AVAILABLE[1]},
            *successful,
        ],
    }


def _aggregated(
    before: Mapping[str, ResourceCondition], kind: str, says: Json, born: str, at: str
) -> ResourceCondition:
    """Returns a condition that summarizes all adapters; a resource has it from its creation on."""
    start = _begun(says["status"] == "False", born, at)
    return condition(before.get(kind), kind, says, at, born, start)


def condition(
    old: ResourceCondition | None, kind: str, says: Json, at: str, created: str, start: str
) -> ResourceCondition:
    """Returns a condition, which keeps the times of ``old`` as far as they still hold.

    :param created: the creation time if it is new; ``start`` is then the transition time
    """
    return {
        "type": kind,
        **says,  # type: ignore[typeddict-item]
        "created_time": old["created_time"] if old else created,
        "last_transition_time": moved(old, says["status"], at, start),
    }


def _begun(pending: bool, born: str, at: str) -> str:
    """Returns the first transition time: that of the creation as long as the resource is pending."""
    return born if pending else max(born, at)


def _judged(report: Report, status: str, says: Condition | None) -> Json:
    """Returns the content of an adapter's ``<Adapter>Successful`` condition."""
    return {
        "status": status,
        **words(says),
        "observed_generation": report["observed_generation"],
        "last_updated_time": report["last_report_time"],
    }


def is_reconciled(status: Status) -> bool:
    """Whether a status has ``Reconciled=True``: the resource is in its desired state."""
    return any(c["type"] == READY[1] and c["status"] == "True" for c in status["conditions"])


def _news(condition: ResourceCondition) -> tuple[Any, ...]:
    """Returns what of a condition is news if it changes."""
    of = condition.get
    return of("type"), of("status"), of("reason"), of("observed_generation")


def same_but_for_times(before: Status, after: Status) -> bool:
    """Whether two statuses are the same except for times and messages."""
    old, new = before["conditions"], after["conditions"]
    return before["phase"] == after["phase"] and [*map(_news, old)] == [*map(_news, new)]


def _adapter(report: Report, status: str, says: Condition | None) -> Json:
    """Returns an entry of ``adapters``: the condition that gives an adapter's verdict."""
    given: Mapping[str, Any] = says or {}
    return {
        "adapter": report["adapter"],
        "type": given.get("type", "Available"),
        "status": status,
        **words(says),
        "observed_generation": report["observed_generation"],
        "created_at": given.get("created_at", report["created_time"]),
        "updated_at": given.get("updated_at", report["last_report_time"]),
    }


def _phase(names: Sequence[str], counted: Mapping[str, Report], generation: int) -> str:
    current = [r for r in counted.values() if r["observed_generation"] == generation]
    if names and len(current) == len(names) and all(verdict(r)[0] == "True" for r in current):
        return "Ready"
    return "Failed" if any(failed(r) for r in current) else "NotReady"


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
            message = (
                "All required adapters report Finalized=True, and no resource belongs or refers to it."
            )
            return says | {"status": "True", "reason": "ReconciledAll", "message": message}
        if not late:
            message = f"Resources still belonging or referring to it: {children}."
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
        # A running cluster stays available while a new spec is under way, or while nothing is known.
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
    """Returns, for each ``<Adapter>Successful`` condition, the adapter that it shows.

    Adapters whose names differ only in punctuation share a condition: a required one takes precedence,
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


def _oldest(reports: Iterable[Report], otherwise: str) -> str:
    return min((str(r["last_report_time"]) for r in reports), default=otherwise)


def _whats(names: Iterable[str], counted: Mapping[str, Report], kind: str = "") -> str:
    return ", ".join(f"{name} ({_what(counted.get(name), kind)})" for name in names)


def _what(report: Report | None, kind: str) -> str:
    """Describes an adapter's last report in a few words for a message."""
    if report is None:
        return "no report"
    if kind:
        says = {c["type"]: c["status"] for c in report["conditions"]}.get(kind, "missing")
        return f"{kind} {says} at generation {report['observed_generation']}"
    return f"{verdict(report)[0]} at generation {report['observed_generation']}"
