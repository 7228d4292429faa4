"""The status of a resource, as a careful reader of all its reports would write it down.

Written from the table of rules alone, for clarity and not for speed, to be compared with
`hyperfleet.status`. Times are read into `datetime` objects, each question of the table is a function
that reads all reports again, and nothing is shared with the code under test.

The messages of the aggregated conditions may have any wording, so they are left out here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

Json = dict[str, Any]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Testimony:
    """What one adapter says: its stored report, read by the rules of the verdict."""

    report: Json

    @cached_property
    def adapter(self) -> str:
        return str(self.report["adapter"])

    @cached_property
    def generation(self) -> int:
        return int(self.report["observed_generation"])

    @cached_property
    def time(self) -> datetime:
        return moment(self.report["last_report_time"])

    def says(self, kind: str, status: str) -> bool:
        return any(c["type"] == kind and c["status"] == status for c in self.report["conditions"])

    @cached_property
    def verdict(self) -> str:
        for decisive in ("Available", "Ready"):
            for status in ("True", "False", "Unknown"):
                if self.says(decisive, status):
                    return status
        others = [c["status"] for c in self.report["conditions"] if c["type"] != "Progressing"]
        if "False" in others:
            return "False"
        if "Unknown" in others:
            return "Unknown"
        return "True"

    @cached_property
    def condition(self) -> Json:
        """The condition that the verdict was read from; a substitute if there is none."""
        for decisive in ("Available", "Ready"):
            for condition in self.report["conditions"]:
                if condition["type"] == decisive:
                    return dict(condition)
        for condition in self.report["conditions"]:
            if condition["type"] != "Progressing" and condition["status"] == self.verdict:
                return dict(condition)
        return {
            "type": "Available",
            "created_at": self.report["created_time"],
            "updated_at": self.report["last_report_time"],
        }

    @cached_property
    def ended_badly(self) -> bool:
        return self.verdict == "False" and (
            self.says("Health", "False")
            or self.says("Progressing", "False")
            or self.says("Failed", "True")
        )


@dataclass(frozen=True)
class Reader:
    """All input of the fold, and the questions that the table asks about it."""

    resource: Json
    heard: tuple[Testimony, ...]
    previous: Json | None
    configured: tuple[str, ...]
    at: datetime
    children: int

    # Which adapters count

    @cached_property
    def required(self) -> set[str]:
        return set(self.configured) or {testimony.adapter for testimony in self.heard}

    @cached_property
    def relevant(self) -> list[Testimony]:
        return [testimony for testimony in self.heard if testimony.adapter in self.required]

    @cached_property
    def missing(self) -> set[str]:
        return self.required - {testimony.adapter for testimony in self.heard}

    @cached_property
    def generation(self) -> int:
        return int(self.resource["generation"])

    @cached_property
    def created(self) -> datetime:
        return moment(self.resource["created_time"])

    def all_true_at(self, generation: int) -> bool:
        """Returns whether there is a required adapter, and each one reports True at this generation."""
        return (
            bool(self.required)
            and not self.missing
            and all(t.generation == generation and t.verdict == "True" for t in self.relevant)
        )

    def oldest(self, testimonies: list[Testimony]) -> str:
        if not testimonies:
            return text(moment(self.resource["updated_time"]))
        return text(min(testimony.time for testimony in testimonies))

    def oldest_at(self, generation: int) -> str:
        return self.oldest([t for t in self.relevant if t.generation == generation])

    # The rows of the table

    @cached_property
    def phase(self) -> str:
        if self.all_true_at(self.generation):
            return "Ready"
        if any(t.generation == self.generation and t.ended_badly for t in self.relevant):
            return "Failed"
        return "NotReady"

    @cached_property
    def finalized(self) -> bool:
        return not self.missing and all(
            t.generation == self.generation and t.says("Finalized", "True") for t in self.relevant
        )

    @cached_property
    def reconciled(self) -> bool:
        if "deleted_time" in self.resource:
            return self.finalized and self.children == 0
        return self.phase == "Ready"

    @cached_property
    def reconciled_reason(self) -> str:
        if self.reconciled:
            return "ReconciledAll"
        if "deleted_time" in self.resource and self.finalized:
            return "ReconciledWaitingForChildren"
        return "ReconciledMissingAdapters"

    @cached_property
    def tracked(self) -> int | None:
        """The generation that Available tracks while it is True; None means that it is False."""
        for generation in {t.generation for t in self.relevant}:
            if self.all_true_at(generation):
                return generation
        before = self.before("Available")
        if before is None or before["status"] != "True":
            return None
        last = int(before["observed_generation"])
        if any(t.generation == last and t.verdict == "False" for t in self.relevant):
            return None
        return last

    @cached_property
    def available_generation(self) -> int:
        if self.tracked is not None:
            return self.tracked
        return max((t.generation for t in self.relevant), default=1)

    @cached_property
    def available_reason(self) -> str:
        if self.tracked is not None:
            return "AllAdaptersReconciled"
        if self.missing or not self.required:
            return "AdaptersMissingReports"
        if any(t.verdict != "True" for t in self.relevant):
            return "AdapterReportedNotAvailable"
        return "AdaptersNotAtSameGeneration"

    # What was before, and since when

    def before(self, kind: str) -> Json | None:
        if self.previous is None:
            return None
        return next((c for c in self.previous["conditions"] if c["type"] == kind), None)

    def since(self, value: str, initial: str, before: Json | None, member: str) -> str:
        """Returns when `member` got this value; `initial` is what every resource starts with."""
        if before is None:
            return text(self.created if value == initial else max(self.created, self.at))
        then = moment(before["last_transition_time"])
        return text(then if before[member] == value else max(then, self.at))

    def aggregated(self, kind: str) -> Json:
        if kind in {"Ready", "Reconciled"}:
            status, reason = self.reconciled, self.reconciled_reason
            generation = self.generation
        else:
            status, reason = self.tracked is not None, self.available_reason
            generation = self.available_generation
        return {
            "type": kind,
            "status": str(status),
            "reason": reason,
            "observed_generation": generation,
            "created_time": text(self.created),
            "last_updated_time": self.oldest_at(generation),
            "last_transition_time": self.since(str(status), "False", self.before(kind), "status"),
        }

    def successful(self, testimony: Testimony) -> Json:
        kind = successful_type(testimony.adapter)
        before = self.before(kind)
        condition: Json = {
            "type": kind,
            "status": testimony.verdict,
            "observed_generation": testimony.generation,
            "created_time": text(self.at),
            "last_updated_time": text(testimony.time),
            "last_transition_time": text(self.at),
        }
        if before is not None:
            condition["created_time"] = before["created_time"]
            condition["last_transition_time"] = self.since(testimony.verdict, "", before, "status")
        return condition | words(testimony.condition)

    def entry(self, testimony: Testimony) -> Json:
        condition = testimony.condition
        return {
            "adapter": testimony.adapter,
            "type": condition["type"],
            "status": testimony.verdict,
            "observed_generation": testimony.generation,
            "created_at": condition["created_at"],
            "updated_at": condition["updated_at"],
        } | words(condition)

    def status(self) -> Json:
        by_name = sorted(self.heard, key=lambda testimony: testimony.adapter)
        return {
            "phase": self.phase,
            "observed_generation": 0
            if self.missing or not self.required
            else min(testimony.generation for testimony in self.relevant),
            "last_updated_time": self.oldest(self.relevant),
            "last_transition_time": self.since(self.phase, "NotReady", self.previous, "phase"),
            "adapters": [self.entry(testimony) for testimony in by_name],
            "conditions": [
                *map(self.aggregated, ("Ready", "Available", "Reconciled", "LastKnownReconciled")),
                *map(self.successful, by_name),
            ],
        }


def words(condition: Json) -> Json:
    return {member: condition[member] for member in ("reason", "message") if member in condition}


def successful_type(adapter: str) -> str:
    parts = re.findall("[A-Za-z0-9]+", adapter)
    return "".join(part[0].upper() + part[1:] for part in parts) + "Successful"


def fold(
    resource: Json,
    reports: Iterable[Json],
    previous: Json | None,
    required: Sequence[str],
    at: str,
    children: int = 0,
) -> Json:
    """Returns the status without the messages of the aggregated conditions."""
    heard = tuple(Testimony(report) for report in reports)
    return Reader(resource, heard, previous, tuple(required), moment(at), children).status()


def discarded(generation: int, stored: Json | None, report: Json) -> bool:
    """Returns whether the report changes nothing: too new, too old, overtaken, or undecided."""
    if report["observed_generation"] > generation:
        return True
    if stored is None:
        return False
    if report["observed_generation"] < stored["observed_generation"]:
        return True
    if {"Available": "Unknown"}.items() <= {
        c["type"]: c["status"] for c in report["conditions"]
    }.items():
        return True
    # A report without a time is from now, so nothing has overtaken it.
    return (
        report["observed_generation"] == stored["observed_generation"]
        and report["observed_time"] is not None
        and moment(report["observed_time"]) < moment(stored["last_report_time"])
    )


def merged(stored: Json | None, report: Json, at: str) -> Json:
    """Returns the report as it is stored next."""
    before = {} if stored is None else {c["type"]: c for c in stored["conditions"]}
    conditions = []
    for condition in report["conditions"]:
        old = before.get(condition["type"])
        conditions.append(
            {
                "adapter": report["adapter"],
                "type": condition["type"],
                "status": condition["status"],
                "observed_generation": report["observed_generation"],
                "created_at": at if old is None else old["created_at"],
                "updated_at": at if old is None else max(at, old["updated_at"]),
                "last_transition_time": old["last_transition_time"]
                if old is not None and old["status"] == condition["status"]
                else max(at, "" if old is None else old["last_transition_time"]),
            }
            | words(condition)
        )
    given = {member: report[member] for member in ("data", "metadata") if member in report}
    return {
        "adapter": report["adapter"],
        "observed_generation": report["observed_generation"],
        "conditions": conditions,
        "created_time": at if stored is None else stored["created_time"],
        "last_report_time": at,
    } | given
