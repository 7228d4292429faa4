"""The list ``entities`` of the settings file, which configures kinds.

Each entry is checked here, all entries together in :mod:`.declared`. To add a member, add it to
:class:`Entity` and to ``MEMBERS``.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hyperfleet.errors import ConfigurationError
from hyperfleet.kinds import ADAPTER, NAME, NATIVE, NO_ADAPTER, SEGMENT, Reference
from hyperfleet.nearest import question
from hyperfleet.settings.expressions import Expression, Refused
from hyperfleet.settings.members import BOOLEANS, EMPTY

# The most rules of a kind, and the most characters of a condition's type.
MOST_RULES, LONGEST_TYPE = 50, 100
# The conditions of every status; each adapter that reports adds one that ends in SUCCESSFUL.
AGGREGATED = ("Ready", "Reconciled", "Available", "LastKnownReconciled")
SUCCESSFUL = "Successful"
# The members of a rule's output.
OUTPUT = ("status", "reason", "message")
# The longest name that the tables allow.
LONGEST = 63
# The most references of one type per resource; and the syntax of a type.
MOST_REFERENCES = Reference.most
TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
# The syntax of a schema's name in OpenAPI.
SCHEMA = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class Rule:
    """A rule for a mapped condition.

    :param type: the type of the condition
    :param when: the expression that tells whether the condition is shown
    :param status: the expression for its status; ``reason`` and ``message`` likewise
    """

    type: str
    when: str
    status: str
    reason: str
    message: str

    @property
    def output(self) -> dict[str, str]:
        """The expressions for the condition's members, by member."""
        return {name: getattr(self, name) for name in OUTPUT}


@dataclass(frozen=True)
class Entity:
    """The configuration of a kind; None means that a member is not set.

    :param plural: the name of its collections in paths
    :param parent_kind: the kind of its owners
    :param on_parent_delete: ``cascade``, or ``restrict``, which prevents the deletion of the owner
    :param spec_schema_name: the provider's schema of its spec
    :param require_spec_schema: whether the service must not start without that schema
    :param name_min_len: the fewest characters of a name; ``name_max_len`` are the most
    :param required_adapters: the adapters that must report
    :param search_disallowed_fields: the fields that a search must not use
    :param conditions: the rules of its mapped conditions
    :param references: what its resources may refer to
    """

    kind: str
    plural: str | None = None
    parent_kind: str | None = None
    on_parent_delete: str | None = None
    spec_schema_name: str | None = None
    require_spec_schema: bool | None = None
    name_min_len: int | None = None
    name_max_len: int | None = None
    required_adapters: tuple[str, ...] | None = None
    search_disallowed_fields: tuple[str, ...] | None = None
    conditions: tuple[Rule, ...] = ()
    references: tuple[Reference, ...] = ()


def parse(given: Any) -> tuple[Entity, ...]:
    """Parses the entities of a settings file, in which all scalars are strings.

    Raises ConfigurationError, with a sentence for the operator, for the first mistake.
    """
    if given in EMPTY:
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
    """Returns the entities in the form in which the file can have them."""
    return [
        {
            **{
                field.name: [*value] if isinstance(value, tuple) else value
                for field in fields(one)
                if (value := getattr(one, field.name)) is not None
            },
            "conditions": [
                {
                    "type": rule.type,
                    "when": {"expression": rule.when},
                    "output": {name: {"expression": text} for name, text in rule.output.items()},
                }
                for rule in one.conditions
            ],
            "references": [
                {
                    "ref_type": ref.type,
                    "target_kind": ref.target,
                    "min": ref.least,
                    "max": ref.most,
                }
                for ref in one.references
            ],
        }
        for one in entities
    ]


def _entity(given: Mapping[str, Any]) -> Entity:
    kind = given["kind"]
    if not NAME.fullmatch(kind):
        raise ConfigurationError(
            f"entities: {kind[:200]!r} is not a name that a kind can have: at most 63 letters and "
            f"digits, a capital first.{question(kind, NATIVE)}"
        )
    for member in given:
        if member != "kind" and member not in MEMBERS:
            hint = question(str(member), MEMBERS)
            raise ConfigurationError(f"entities: {kind}.{member} is not supported: unknown.{hint}")
    said = {
        member: check(f"{kind}.{member}", given[member])
        for member, check in MEMBERS.items()
        if member in given
    }
    return Entity(kind, **{member: value for member, value in said.items() if value is not None})


def _text(looks: re.Pattern[str], is_: Mapping[str, str]) -> Callable[[str, Any], str | None]:
    """Returns the check of a member that is a string.

    :param looks: the pattern that it must match
    :param is_: its values for native kinds, by kind; these cannot be changed
    """

    def check(where: str, value: Any) -> str | None:
        own = is_.get(where.partition(".")[0], value)
        if value != own:
            shown = repr(own) if own else "none"
            raise ConfigurationError(f"entities: {where} is {shown} and cannot be changed to {value!r}.")
        return None if value in EMPTY else _alike(where, value, looks)

    return check


def _alike(where: str, value: Any, looks: re.Pattern[str]) -> str:
    """Returns a string that matches the pattern. Raises ConfigurationError for anything else."""
    if not isinstance(value, str) or not looks.fullmatch(value):
        raise ConfigurationError(
            f"entities: {where} must match {looks.pattern}, unlike {str(value)[:200]!r}."
        )
    return value


def _switch(where: str, value: Any) -> bool | None:
    said = BOOLEANS.get(str(value).lower())
    if said is None and value not in EMPTY:
        raise ConfigurationError(f"entities: {where} must be true or false.")
    return said


def _length(where: str, value: Any) -> int | None:
    # As in the original, 0 means that it is not set.
    return _number(where, value, LONGEST) or None


def _number(where: str, value: Any, most: int) -> int:
    """Returns a number from 0 to ``most``; 0 if it is not set. Raises ConfigurationError otherwise."""
    if value in EMPTY:
        return 0
    if not re.fullmatch(r"[0-9]{1,6}", str(value)) or int(value) > most:
        raise ConfigurationError(f"entities: {where} must be a number from 0 to {most}.")
    return int(value)


def _list(where: str, value: Any, what: str) -> list[Any]:
    """Returns a list; an empty one if it is not set. Raises ConfigurationError otherwise."""
    found = [] if value in EMPTY else value
    if not isinstance(found, list):
        raise ConfigurationError(f"entities: {where} must be a list of {what}.")
    return found


def _names(where: str, value: Any) -> tuple[str, ...]:
    """Returns a list of names without duplicates. Raises ConfigurationError otherwise."""
    names = _list(where, value, "names")
    if not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"entities: {where} must be a list of names.")
    # Helm turns `={}` into a list of one empty name.
    return tuple(dict.fromkeys(name for name in names if name))


def _adapters(where: str, value: Any) -> tuple[str, ...]:
    names = _names(where, value)
    for name in names:
        if not ADAPTER.fullmatch(name):
            raise ConfigurationError(f"entities: {where} has {name[:200]!r}, which {NO_ADAPTER}")
    return names


def _conditions(where: str, value: Any) -> tuple[Rule, ...]:
    rules = _list(where, value, "rules")
    if len(rules) > MOST_RULES:
        raise ConfigurationError(
            f"entities: {where} has {len(rules)} rules; at most {MOST_RULES} are allowed."
        )
    found: dict[str, Rule] = {}
    for index, rule in enumerate(rules):
        one = _rule(f"{where}[{index}]", rule)
        if one.type in found:
            raise ConfigurationError(f"entities: {where} has the type {one.type!r} twice.")
        found[one.type] = one
    return tuple(found.values())


def _rule(where: str, given: Any) -> Rule:
    kind = where.partition(".")[0]
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
            raise ConfigurationError(f"entities: {place}.expression must be a string.")
        try:
            Expression(text, boolean=name == "when")
        except Refused as error:
            raise ConfigurationError(f"entities: {place}: {error}") from None
        found[name.removeprefix("output.")] = text
    return Rule(type_, **found)


def _references(where: str, value: Any) -> tuple[Reference, ...]:
    found: dict[str, Reference] = {}
    for index, one in enumerate(_list(where, value, "mappings")):
        ref = _reference(f"{where}[{index}]", one)
        if ref.type in found:
            raise ConfigurationError(f"entities: {where} has the type {ref.type} twice.")
        found[ref.type] = ref
    return tuple(found.values())


def _reference(where: str, given: Any) -> Reference:
    whole = _members(where, given, ("ref_type", "target_kind"), ("min", "max"))
    type_ = _alike(f"{where}.ref_type", whole["ref_type"], TYPE)
    target = _alike(f"{where}.target_kind", whole["target_kind"], NAME)
    least, most = (
        _number(f"{where}.{name}", whole.get(name, ""), MOST_REFERENCES) for name in ("min", "max")
    )
    # As in the original, a maximum of 0 means that it is not set.
    most = most or MOST_REFERENCES
    if least > most:
        raise ConfigurationError(
            f"entities: {where}.min is {least}, which is more than its max, {most}."
        )
    return Reference(type_, target, least, most)


def _members(
    where: str, given: Any, names: tuple[str, ...], more: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """Returns a mapping that has ``names`` and maybe ``more``. Raises ConfigurationError otherwise."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"entities: {where} must be a mapping with {', '.join(names)}.")
    for name in names:
        if name not in given:
            raise ConfigurationError(f"entities: {where} lacks {name}.")
    for name in given:
        if name not in (*names, *more):
            raise ConfigurationError(f"entities: {where}.{name} is not supported: unknown.")
    return given


# The members of an entity and their checks, from place and value to the result; None means not set.
MEMBERS: dict[str, Callable[[str, Any], Any]] = {
    "plural": _text(SEGMENT, {name: of.segment for name, of in NATIVE.items()}),
    "parent_kind": _text(NAME, {name: of.parent or "" for name, of in NATIVE.items()}),
    "on_parent_delete": _text(re.compile("cascade|restrict"), {}),
    "spec_schema_name": _text(SCHEMA, {name: of.spec for name, of in NATIVE.items()}),
    "require_spec_schema": _switch,
    "name_min_len": _length,
    "name_max_len": _length,
    "required_adapters": _adapters,
    "search_disallowed_fields": _names,
    "conditions": _conditions,
    "references": _references,
}
