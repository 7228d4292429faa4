"""What an operator says of kinds: the list ``entities`` of the settings file.

All that is checked of it is checked here. Who adds a member adds it to :class:`Entity` and to
``MEMBERS``; who adds a kind, to :data:`hyperfleet.kinds.RESOURCES`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperfleet.errors import ConfigurationError
from hyperfleet.expressions import Expression, Refused
from hyperfleet.kinds import RESOURCES
from hyperfleet.nearest import nearest
from hyperfleet.report import ADAPTER, ADAPTER_LONGEST

# Rules of a kind, and characters of a condition's type.
MOST_RULES, LONGEST_TYPE = 50, 100
# The conditions that every status has; of each adapter that reports there is one more, which ends so.
AGGREGATED = ("Ready", "Reconciled", "Available", "LastKnownReconciled")
SUCCESSFUL = "Successful"
# The texts of a rule's output.
OUTPUT = ("status", "reason", "message")
# What the original knows of a kind beyond what is understood here.
LATER = (
    *("name_min_len", "name_max_len", "spec_schema_name", "on_parent_delete", "references"),
    *("search_disallowed_fields", "require_spec_schema"),
)


@dataclass(frozen=True)
class Rule:
    """A rule of a mapped condition.

    :param type: the condition's
    :param when: the expression that says whether there is the condition
    :param status: the expressions of what it says
    """

    type: str
    when: str
    status: str
    reason: str
    message: str

    @property
    def output(self) -> dict[str, str]:
        """The expressions of what the condition says, by its members."""
        return {name: getattr(self, name) for name in OUTPUT}


@dataclass(frozen=True)
class Entity:
    """What is said of a kind.

    :param required_adapters: the adapters that must report; None: nothing is said of them
    :param conditions: the rules of its mapped conditions
    """

    kind: str
    required_adapters: tuple[str, ...] | None = None
    conditions: tuple[Rule, ...] = ()


def parse(given: Any) -> tuple[Entity, ...]:
    """The entities of a settings file, whose scalars are texts.

    Raises ConfigurationError, with a sentence for the operator, for the first thing that is wrong.
    """
    if given in ("", "~", "null"):
        return ()
    if not isinstance(given, list):
        raise ConfigurationError("entities must be a list of mappings, each with a kind.")
    found: dict[str, Entity] = {}
    for index, one in enumerate(given):
        if not isinstance(one, Mapping) or not isinstance(one.get("kind"), str) or not one["kind"]:
            raise ConfigurationError(f"entities[{index}] must be a mapping with a kind.")
        entity = _entity(one)
        if entity.kind in found:
            raise ConfigurationError(f"entities names the kind {entity.kind} twice.")
        found[entity.kind] = entity
    return tuple(found.values())


def shown(entities: Iterable[Entity]) -> list[dict[str, Any]]:
    """The entities as they may be written in the file."""
    return [
        {
            "kind": one.kind,
            **({} if one.required_adapters is None else {"required_adapters": [*one.required_adapters]}),
            "conditions": [
                {
                    "type": rule.type,
                    "when": {"expression": rule.when},
                    "output": {name: {"expression": text} for name, text in rule.output.items()},
                }
                for rule in one.conditions
            ],
        }
        for one in entities
    ]


def _entity(given: Mapping[str, Any]) -> Entity:
    kind = given["kind"]
    if kind not in RESOURCES:
        near = nearest(kind, RESOURCES)
        raise ConfigurationError(
            f"entities: the kind {kind!r} is not supported yet; {' and '.join(RESOURCES)} are."
            + (f" Is {near} meant?" if near else "")
        )
    for member in given:
        if member in LATER:
            raise ConfigurationError(f"entities: {kind}.{member} is not supported yet.")
        if member != "kind" and member not in MEMBERS:
            near = nearest(str(member), MEMBERS)
            hint = f" Is {near} meant?" if near else ""
            raise ConfigurationError(f"entities: {kind}.{member} is not supported: unknown.{hint}")
    values: dict[str, Any] = {}
    for member, check in MEMBERS.items():
        if member in given:
            values |= check(kind, given[member])
    return Entity(kind, **values)


def _same(member: str, of: Callable[[str], str]) -> Callable[[str, Any], dict[str, Any]]:
    """The check of a member that may say only what is so anyway."""

    def check(kind: str, value: Any) -> dict[str, Any]:
        if value != of(kind):
            is_ = repr(of(kind)) if of(kind) else "none"
            raise ConfigurationError(
                f"entities: {kind}.{member} is {is_} and cannot be changed, not even to {value!r}."
            )
        return {}

    return check


def _adapters(kind: str, value: Any) -> dict[str, Any]:
    names = [] if value in ("", "~", "null") else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"entities: {kind}.required_adapters must be a list of names.")
    for name in names:
        if len(name) > ADAPTER_LONGEST or not ADAPTER.fullmatch(name):
            raise ConfigurationError(
                f"entities: {kind}.required_adapters has {name[:200]!r}, which is not a name that an "
                f"adapter can have: at most {ADAPTER_LONGEST} letters, digits, '.', '_' and '-', with a "
                "letter or a digit at both ends."
            )
    return {"required_adapters": tuple(dict.fromkeys(names))}


def _conditions(kind: str, value: Any) -> dict[str, Any]:
    rules = [] if value in ("", "~", "null") else value
    if not isinstance(rules, list):
        raise ConfigurationError(f"entities: {kind}.conditions must be a list of rules.")
    if len(rules) > MOST_RULES:
        raise ConfigurationError(
            f"entities: {kind}.conditions has {len(rules)} rules; at most {MOST_RULES} are allowed."
        )
    found: dict[str, Rule] = {}
    for index, rule in enumerate(rules):
        one = _rule(kind, f"{kind}.conditions[{index}]", rule)
        if one.type in found:
            raise ConfigurationError(f"entities: {kind}.conditions has the type {one.type!r} twice.")
        found[one.type] = one
    return {"conditions": tuple(found.values())}


def _rule(kind: str, where: str, given: Any) -> Rule:
    whole = _members(where, given, ("type", "when", "output"))
    type_ = whole["type"]
    if not isinstance(type_, str) or not type_ or not type_.isprintable():
        raise ConfigurationError(f"entities: {where}.type must be the name of a condition.")
    if len(type_) > LONGEST_TYPE:
        raise ConfigurationError(
            f"entities: {where}.type has {len(type_)} characters; at most {LONGEST_TYPE} are allowed."
        )
    if type_ in AGGREGATED or type_.endswith(SUCCESSFUL):
        raise ConfigurationError(
            f"entities: {kind}.conditions cannot have the type {type_!r}: it is reserved, as are "
            f"{', '.join(AGGREGATED)} and all that end in {SUCCESSFUL}, which the service makes itself."
        )
    where = f"{kind}.{type_}"
    output = _members(f"{where}.output", whole["output"], OUTPUT)
    texts = {f"output.{name}": output[name] for name in OUTPUT}
    found = {}
    for name, holder in {"when": whole["when"], **texts}.items():
        place = f"{where}.{name}"
        text = _members(place, holder, ("expression",))["expression"]
        if not isinstance(text, str):
            raise ConfigurationError(f"entities: {place}.expression must be a text.")
        try:
            Expression(text, boolean=name == "when")
        except Refused as error:
            raise ConfigurationError(f"entities: {place}: {error}") from None
        found[name.removeprefix("output.")] = text
    return Rule(type_, **found)


def _members(where: str, given: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    """A mapping with exactly these members. Raises ConfigurationError for anything else."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"entities: {where} must be a mapping with {', '.join(names)}.")
    for name in names:
        if name not in given:
            raise ConfigurationError(f"entities: {where} lacks {name}.")
    for name in given:
        if name not in names:
            raise ConfigurationError(f"entities: {where}.{name} is not supported: unknown.")
    return given


# What may be said of a kind, and who checks it: given the kind and the value, the fields of Entity.
MEMBERS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "plural": _same("plural", lambda kind: RESOURCES[kind].segment),
    "parent_kind": _same("parent_kind", lambda kind: RESOURCES[kind].parent or ""),
    "required_adapters": _adapters,
    "conditions": _conditions,
}
