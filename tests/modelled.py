"""The model of a cluster or node pool, and the requests that the lifecycle is tested with."""

import json
from dataclasses import dataclass, field
from typing import Any

import fold_reference as reference

Json = dict[str, Any]
SPECS: tuple[Json, ...] = (
    {},
    {"a": 1},
    {"a": True},
    {"a": None, "b": {"c": [1, None]}},
    {"b": {"c": 2, "d": "x"}},
)
LABELS: tuple[Json, ...] = ({}, {"k": "1"}, {"k": "2", "l": "1"})
REPLACEMENTS: tuple[Json, ...] = (
    *({"spec": spec} for spec in SPECS),
    *({"labels": labels} for labels in LABELS),
    {"spec": {"a": 1}, "labels": {"k": "1"}},
    {"kind": "Secret"},
    {"labels": {"k": 1}},
    {"labels": None},
    {"spec": None},
    {},
)
MERGES: tuple[Json, ...] = (
    {"spec": {"a": None}},
    {"spec": {"a": True}},
    {"spec": {"b": {"c": None, "e": 5}}},
    {"spec": {"b": {"c": [None]}}},
    {"labels": {"k": None}},
    {"labels": {"l": "3"}},
    {"labels": None},
    {"labels": {"k": 1}},
    {"name": None},
    {"spec": None},
    {},
)
CONDITIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("Available", "True"),),
    (("Available", "True"), ("Progressing", "False")),
    (("Available", "False"),),
    (("Available", "False"), ("Health", "False")),
    (("Available", "Unknown"),),
    (("Ready", "True"),),
    (("Applied", "True"), ("Progressing", "Unknown")),
    (("Available", "False"), ("Finalized", "True")),
    (("Finalized", "True"),),
    (("Finalized", "False"),),
)


@dataclass(eq=False)
class Resource:
    """A cluster or node pool as the model knows it."""

    kind: str
    id: str
    href: str
    name: str
    spec: Json
    labels: dict[str, str]
    owner: "Resource | None"
    required: tuple[str, ...]
    at: str
    generation: int = 1
    marked: bool = False
    gone: bool = False
    reports: dict[str, Json] = field(default_factory=dict)
    pools: list["Resource"] = field(default_factory=list)
    status: Json | None = None
    # The content seen with each tag: a strong tag stands for one text.
    versions: dict[str, bytes] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return "/" + self.href

    def refold(self, at: str) -> None:
        document: Json = {
            "generation": self.generation,
            "created_time": self.at,
            "updated_time": self.at,
        }
        if self.marked:
            document["deleted_time"] = at
        self.status = reference.fold(
            document, self.reports.values(), self.status, self.required, at, len(self.pools)
        )

    @property
    def finished(self) -> bool:
        """Whether it is marked and waits for no adapter or node pool."""
        waited_for = self.required or tuple(self.reports)
        return self.marked and not self.pools and all(map(self.finalized_by, waited_for))

    def finalized_by(self, adapter: str) -> bool:
        report = self.reports.get(adapter)
        return (
            report is not None
            and report["observed_generation"] == self.generation
            and any(c["type"] == "Finalized" and c["status"] == "True" for c in report["conditions"])
        )

    def agrees(self, document: Json) -> None:
        """Asserts that this document of the service agrees with the model."""
        for member in ("kind", "id", "href", "name", "generation", "labels"):
            assert document[member] == getattr(self, member), member
        assert text(document["spec"]) == text(self.spec)
        assert ("deleted_time" in document) == ("deleted_by" in document) == self.marked
        if self.owner:
            assert document["owner_references"]["id"] == self.owner.id
        assert self.status is not None
        assert without_times(document["status"]) == without_times(self.status)


def text(value: Any) -> str:
    """Returns a text for comparisons that distinguish 1 from true."""
    return json.dumps(value, sort_keys=True)


def without_times(status: Json) -> Json:
    """Returns what a status says, without its times."""
    return {
        "phase": status["phase"],
        "observed_generation": status["observed_generation"],
        "adapters": [(a["adapter"], a["status"], a["observed_generation"]) for a in status["adapters"]],
        "conditions": {
            c["type"]: (c["status"], c["observed_generation"], c.get("reason"))
            for c in status["conditions"]
        },
    }


def merged(target: Any, patch: Any) -> Any:
    """Applies a merge patch by the pseudocode of RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
