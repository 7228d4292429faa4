"""Mapped conditions, which an operator's rules derive from the reports of adapters.

They follow the conditions from :mod:`hyperfleet.status.fold`, and do not affect them.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hyperfleet.kinds import RESOURCES
from hyperfleet.settings.catalogue import Settings
from hyperfleet.settings.entities import Rule
from hyperfleet.settings.expressions import Expression, Failed, Value, Values
from hyperfleet.status.fold import ResourceCondition, State, Status, condition, fold
from hyperfleet.status.masking import Masked, TooLarge
from hyperfleet.status.report import Report
from hyperfleet.storable import FORBIDDEN

logger = logging.getLogger(__name__)

# Bytes of a reason, beyond which there is no condition, and of a message, beyond which it is truncated.
REASON, MESSAGE = 256, 2048
# The largest input of rules, measured as in hyperfleet.status.masking.
LARGEST = 256 * 1024
# Seconds for which a rule that keeps failing is not logged again.
QUIET = 300.0

MEMBERS = ("id", "name", "generation", "labels", "spec", "created_time", "updated_time", "deleted_time")


class _Compiled:
    """A compiled rule, and when each level was last logged for it."""

    def __init__(self, rule: Rule) -> None:
        self.type = rule.type
        self.when = Expression(rule.when, boolean=True)
        self.output = {name: Expression(text) for name, text in rule.output.items()}
        self.logged: dict[int, float] = {}


class Rules:
    """The rules of a kind.

    :param kind: the name of the kind
    :param rules: their expressions are known to compile

    ``resource`` tells whether any of them may use the resource itself.
    """

    def __init__(self, kind: str, rules: Iterable[Rule]) -> None:
        self.kind = kind
        in_order = sorted(rules, key=lambda rule: rule.type)
        texts = [text for rule in in_order for text in (rule.when, *rule.output.values())]
        self.resource = any("resource" in text for text in texts)
        self._compiled = [_Compiled(rule) for rule in in_order]

    def conditions(
        self, resource: State, reports: Sequence[Report], previous: Status | None, at: str
    ) -> list[ResourceCondition]:
        """Returns the conditions that the rules yield; one that fails yields none, and is logged.

        :param resource: with its name, labels and spec if any rule uses the resource
        :param reports: the stored report of each adapter, with its data
        :param previous: the previous status; None for a new resource
        :param at: the time of the report or the write that causes the evaluation
        """
        try:
            values = self._values(resource, reports)
        except (Failed, TooLarge) as error:
            size = f"the data that rules see is larger than {LARGEST} characters"
            for rule in self._compiled:
                self._fails(rule, size if isinstance(error, TooLarge) else error)
            return []
        before = {c["type"]: c for c in previous["conditions"]} if previous else {}
        # Not the time of the evaluation: computing a status again without news must not change it.
        heard = max([resource["updated_time"], *(str(one["last_report_time"]) for one in reports)])
        about = {"observed_generation": resource["generation"], "last_updated_time": heard}
        made = []
        for rule in self._compiled:
            try:
                says = self._says(rule, values)
            except Failed as error:
                self._fails(rule, error)
                continue
            if says is not None:
                old = before.get(rule.type)
                made.append(condition(old, rule.type, {**says, **about}, at, at, at))
        return made

    def _values(self, resource: State, reports: Iterable[Report]) -> Values:
        masked = Masked(LARGEST)
        statuses = [
            {
                "adapter": report["adapter"],
                "observed_generation": report["observed_generation"],
                "conditions": [
                    {name: condition.get(name) or "" for name in ("type", "status", "reason", "message")}
                    for condition in report["conditions"]
                    if condition["status"] != "Unknown"
                ],
                "data": masked.copy(report.get("data") or {}),
            }
            for report in sorted(reports, key=lambda one: one["adapter"])
        ]
        masked.count([status["conditions"] for status in statuses])
        shown: dict[str, Any] = {}
        if self.resource:
            given: Mapping[str, Any] = resource
            members = {name: given[name] for name in MEMBERS if given.get(name) is not None}
            members["metadata"] = {"labels": members.get("labels", {})}
            shown = {"kind": self.kind, **masked.copy(members)}
        return Values({"statuses": statuses, "resource": shown}, masked.size, masked.longest)

    def _says(self, rule: _Compiled, values: Values) -> dict[str, str] | None:
        """Returns a rule's status, reason and message; None if it does not apply. Raises Failed."""
        applies = rule.when.value(values)
        if not isinstance(applies, bool):
            raise Failed("'when' is neither true nor false")
        if not applies:
            return None
        says = {name: _text(one.value(values)) for name, one in rule.output.items()}
        status = says["status"].lower()
        if status not in ("true", "false"):
            raise Failed(f"its status is {says['status'][:100]!r}, neither True nor False")
        says["status"] = status.capitalize()
        if len(says["reason"].encode()) > REASON:
            raise Failed(f"its reason is longer than {REASON} bytes")
        cut = says["message"].encode()[:MESSAGE].decode(errors="ignore")
        if cut != says["message"]:
            self._tell(rule, logging.INFO, f"has a message longer than {MESSAGE} bytes, which is cut")
        says["message"] = cut
        return says

    def _fails(self, rule: _Compiled, reason: object) -> None:
        self._tell(rule, logging.WARNING, f"yields no condition: {reason}")

    def _tell(self, rule: _Compiled, level: int, what: str) -> None:
        """Logs, unless the same rule was logged at the same level within the last QUIET seconds."""
        now = time.monotonic()
        if now - rule.logged.get(level, -QUIET) < QUIET:
            return
        rule.logged[level] = now
        more = {"kind": self.kind, "condition": rule.type}
        logger.log(level, "the rule %s.%s %s", self.kind, rule.type, what, extra=more)


class Folding(NamedTuple):
    """How to compute the statuses of a kind.

    :param required: the required adapters; if empty, all that have reported
    :param rules: those of its mapped conditions; None if it has none
    """

    required: Sequence[str] = ()
    rules: Rules | None = None

    def fold(
        self,
        resource: State,
        reports: Sequence[Report],
        previous: Status | None,
        at: str,
        children: int = 0,
    ) -> Status:
        """Returns a resource's status from :func:`hyperfleet.status.fold.fold` plus mapped conditions.

        :param children: how many resources that belong or refer to it are left
        """
        status = fold(resource, reports, previous, self.required, at, children)
        if self.rules:
            status["conditions"] += self.rules.conditions(resource, reports, previous, at)
        return status


def foldings(chosen: Settings) -> dict[str, Folding]:
    """Returns how to compute the statuses of each kind of resource."""
    rules = {one.kind: Rules(one.kind, one.conditions) for one in chosen.entities if one.conditions}
    return {kind: Folding(chosen.required_adapters(kind), rules.get(kind)) for kind in RESOURCES}


def _text(value: Value) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value)
    return FORBIDDEN.sub("", text)
