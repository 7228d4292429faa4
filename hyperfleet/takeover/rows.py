"""Converts what was read from an original to what can be stored here, or says why that cannot be."""

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
import xxhash

from hyperfleet import times
from hyperfleet.contract import document
from hyperfleet.contract.faults import faults
from hyperfleet.contract.schema import MAX_DEPTH, compile_schema, depth
from hyperfleet.kinds import ID, NATIVE, id_here
from hyperfleet.settings import tenancy
from hyperfleet.status.fold import AVAILABLE, READY, Status
from hyperfleet.status.report import Condition, Report, words
from hyperfleet.storable import storable

# The number of resources that are read, and written in one transaction, at a time.
BATCH = 500
# The label with the original id, if that is not a UUID.
ORIGINAL_ID = "hyperfleet.io/original-id"
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class Refusal(NamedTuple):
    """Something that is not imported, and why."""

    kind: str
    id: str
    name: str
    reason: str


class Raw(NamedTuple):
    """A resource in the source's JSON, which is only parsed if it has changed.

    :param members: named as in the API, also as in an older one
    :param reports: for each, its members, its ``data`` and its ``metadata``
    :param children: the number of its node pools, if it is a cluster that is being deleted
    :param refusals: the parts of it that could not be read
    """

    kind: str
    id: str
    members: str
    spec: str
    reports: Sequence[tuple[str, str | None, str | None]]
    children: int = 0
    refusals: tuple[Refusal, ...] = ()


class Refused(Exception):
    """Raised, with the reason, for something that is not imported."""


class Unreadable(Exception):
    """Raised, with the reason, if nothing can be imported from a source, for now or at all."""


@dataclass
class Item:
    """A resource to store.

    :param old_id: its id at the source
    :param owner_id: the cluster of a node pool
    :param row: the columns of its table except the status
    :param reports: by adapter, as for the computation of its status
    :param texts: the JSON of the reports' ``data`` and ``metadata``, by adapter
    :param children: as in :class:`Raw`
    :param fingerprint: a hash of what was read of it, of its reports, and of how it is converted
    :param before: its status at the source, as far as the computation of the new one needs it
    :param refusals: the parts of it that are not imported
    """

    kind: str
    id: str
    old_id: str
    row: dict[str, Any]
    reports: dict[str, Report]
    texts: dict[str, tuple[str | None, str | None]]
    children: int
    fingerprint: str
    before: Status | None
    refusals: list[Refusal]

    def seen(
        self, reports: Mapping[str, Report], own: Collection[str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what rules of mapped conditions use: the row with its spec, and reports with data.

        :param own: the adapters whose reports come from this item
        """
        # A number may be larger than a double, which orjson does not accept.
        data = {name: json.loads(self.texts[name][0] or "{}") for name in own}
        with_data = {
            name: {**one, "data": data[name]} if name in data else one for name, one in reports.items()
        }
        return {**self.row, "spec": json.loads(self.row["spec"])}, with_data

    @property
    def owner_id(self) -> str | None:
        """The cluster of a node pool; None for a cluster."""
        owner: str | None = self.row["owner_id"]
        return owner

    @property
    def within(self) -> str | None:
        """The scope in which its name is unique: its cluster or its tenant."""
        return tenancy.text(self.row.get("tenancy", {})) or self.owner_id

    @property
    def age(self) -> tuple[int, str]:
        """A value that grows with each change."""
        return self.row["generation"], self.row["updated_time"]

    @property
    def content(self) -> str:
        """A hash of the resource itself, without its reports."""
        return xxhash.xxh3_128_hexdigest(orjson.dumps(self.row, option=orjson.OPT_SORT_KEYS))


def raw_text(text: str | None) -> Any:
    """Wraps JSON to embed it unchanged in other JSON; numbers keep all their digits."""
    return None if text is None else orjson.Fragment(text)


class Rows:
    """Converts what was read to items by the rules of the contract.

    :param derive: whether to derive a UUID from any other id
    :param tenants: whether tenants are kept apart here
    """

    def __init__(self, *, derive: bool, tenants: bool = False) -> None:
        self.derive, self.tenants = derive, tenants
        schemas = document.load()["components"]["schemas"]
        self._names = compile_schema(schemas["Name"])
        self._reports = compile_schema(schemas["AdapterStatusCreateRequest"], schemas)

    def item(self, raw: Raw) -> Item:
        """Returns a resource in the form to store, with refusals of reports that cannot be stored.

        Raises Refused if the resource itself cannot be stored.
        """
        given = _parsed(raw.members)
        id_ = self.id(raw.id)
        row: dict[str, Any] = {
            "id": id_,
            "owner_id": self._owner(given) if NATIVE[raw.kind].parent else None,
            "name": self._name(given.get("name")),
            "generation": _generation(given.get("generation")),
            "labels": _labels(given.get("labels")),
            "spec": _object("spec", raw.spec),
            "created_time": _time(given, "created_time", "created_at"),
            "created_by": _text(given, "created_by"),
            "updated_by": _text(given, "updated_by"),
            "deleted_time": None,
            "deleted_by": None,
        }
        if given.get("tenancy"):
            if not self.tenants:
                raise Refused("it belongs to a tenant, and without --tenant-enabled all could see it")
            if fault := tenancy.faults(given["tenancy"]):
                raise Refused(fault)
            # A node pool has the tenancy of its cluster.
            row |= {} if NATIVE[raw.kind].parent else {"tenancy": given["tenancy"]}
        updated = _time(given, "updated_time", "updated_at")
        row["updated_time"] = max(updated, row["created_time"])
        if given.get("deleted_time"):
            row["deleted_time"] = _time(given, "deleted_time")
            row["deleted_by"] = _text(given, "deleted_by") or row["updated_by"]
        if id_ != raw.id.lower():
            row["labels"] = {**row["labels"], ORIGINAL_ID: raw.id}
        mark, before = self.fingerprint(raw), _before(given.get("conditions"))
        item = Item(raw.kind, id_, raw.id, row, {}, {}, raw.children, mark, before, [*raw.refusals])
        for text, *texts in raw.reports:
            adapter = ""
            try:
                members = _parsed(text)
                adapter = str(members.get("adapter"))
                _check_storable("report", text)
                item.reports[adapter] = self._report(members, row["updated_time"])
                item.texts[adapter] = (_object("data", texts[0]), _object("metadata", texts[1]))
            except Refused as error:
                item.reports.pop(adapter, None)
                item.refusals.append(Refusal("report", raw.id, adapter, str(error)))
        return item

    def fingerprint(self, raw: Raw) -> str:
        """Returns a hash of a resource, its reports, and how it is converted."""
        whole = [self.derive, raw.members, raw.spec, *raw.reports]
        return xxhash.xxh3_128_hexdigest(orjson.dumps(whole))

    def id(self, old: str) -> str:
        """Returns the id of a resource here. Raises Refused if it cannot have one."""
        if not ID.fullmatch(old):
            if not self.derive:
                raise Refused("its id is not a UUID; --derive-ids makes one from it")
            if not LABEL_VALUE.fullmatch(old):
                raise Refused("its id cannot be the value of a label, where it would be kept")
        return id_here(old)

    def _owner(self, given: Mapping[str, Any]) -> str:
        references = given.get("owner_references")
        owner = references.get("id") if isinstance(references, dict) else given.get("owner_id")
        if not owner or not isinstance(owner, str):
            raise Refused("it names no cluster")
        return self.id(owner)

    def _name(self, name: Any) -> str:
        for fault in faults(self._names, name):
            raise Refused(f"its name {fault['message']}")
        return str(name)

    def _report(self, given: Mapping[str, Any], updated: str) -> Report:
        body = {
            "adapter": given.get("adapter"),
            "observed_generation": given.get("observed_generation"),
            "conditions": given.get("conditions"),
        }
        for fault in faults(self._reports, body):
            raise Refused(f"{fault['field']} {fault['message']}")
        conditions = body["conditions"] or []
        created = _time(given, "created_time", otherwise=_ends(conditions, "created_at", min, updated))
        last = _time(given, "last_report_time", otherwise=_ends(conditions, "updated_at", max, updated))
        return {
            "adapter": str(body["adapter"]),
            "observed_generation": int(body["observed_generation"] or 1),
            "conditions": [_condition(body, one, created, last) for one in conditions],
            "created_time": created,
            "last_report_time": last,
        }


def name_of(raw: Raw) -> str:
    """Returns the name of a resource at the source; empty if it cannot be read."""
    try:
        return str(_parsed(raw.members).get("name") or "")
    except Refused:
        return ""


def _parsed(text: str) -> Any:
    """Parses JSON text. Raises Refused if no client could have sent it."""
    if _too_deep(text, MAX_DEPTH):
        raise Refused(f"it has more than {MAX_DEPTH} levels")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # The source accepted it, so it has half a surrogate pair, or a number beyond all doubles.
        pass
    try:
        value = json.loads(text, parse_constant=int)
    except ValueError:
        raise Refused("it holds a number that is out of range") from None
    if not storable(json.dumps(value, ensure_ascii=False)):
        raise Refused("it holds a character that PostgreSQL cannot store")
    return value


def _too_deep(text: str, most: int) -> bool:
    """Whether JSON text has more than ``most`` levels, as the API counts them."""
    if text.count("[") + text.count("{") <= most:
        return False
    try:
        return depth(json.loads(text, parse_int=str, parse_float=str)) > most
    except RecursionError:
        # It is too deep for the parser.
        return True


def _condition(body: Mapping[str, Any], given: Mapping[str, Any], created: str, last: str) -> Condition:
    known = {key: given[key] for key in ("reason", "message") if given.get(key) is not None}
    condition: Condition = {
        "adapter": body["adapter"],
        "type": given["type"],
        "status": given["status"],
        **words(known),  # type: ignore[typeddict-item, arg-type]
        "observed_generation": body["observed_generation"],
        "created_at": _time(given, "created_at", otherwise=created),
        "updated_at": _time(given, "updated_at", otherwise=last),
        "last_transition_time": _time(given, "last_transition_time", otherwise=created),
    }
    return condition


def _before(conditions: Any) -> Status | None:
    """Returns the status at the source, so that what was available stays so and times of transitions are
    kept. None if there is none that can be understood.
    """
    found: dict[str, Any] = {}
    for one in conditions if isinstance(conditions, list) else ():
        try:
            moved = _time(one, "last_transition_time")
            condition: dict[str, Any] = {
                **{"type": str(one["type"]), "status": str(one["status"])},
                "observed_generation": _generation(one.get("observed_generation")),
                "created_time": _time(one, "created_time", otherwise=moved),
                "last_transition_time": moved,
            }
        except (Refused, LookupError, TypeError, AttributeError):
            continue
        found[condition["type"]] = condition
    for first, newer in (READY, AVAILABLE):
        if newer in found:
            found[first] = {**found[newer], "type": first}
    if not all(pair[0] in found for pair in (READY, AVAILABLE)):
        return None
    ready = found[READY[0]]
    status: Any = {
        "phase": "Ready" if ready["status"] == "True" else "NotReady",
        "last_transition_time": ready["last_transition_time"],
        "conditions": [*found.values()],
    }
    before: Status = status
    return before


def _ends(conditions: Any, name: str, choose: Any, otherwise: str) -> str:
    """Returns a time for a report without its own: the first or last of its conditions."""
    found = [_time(one, name) for one in conditions if one.get(name)]
    return str(choose(found)) if found else otherwise


def _time(given: Mapping[str, Any], *names: str, otherwise: str = "") -> str:
    """Returns the time under the first of the names that is set; raises Refused if none is."""
    for name in names:
        if given.get(name):
            try:
                return _moment(str(given[name]))
            except (ValueError, OverflowError):
                raise Refused(f"{name} is not a time between the years 1 and 9999") from None
    if otherwise:
        return otherwise
    raise Refused(f"it has no {names[0]}")


@functools.lru_cache(1024)
def _moment(text: str) -> str:
    # Cached, since most times of a report are the same.
    moment = datetime.fromisoformat(text.upper())
    return times.timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _generation(value: Any) -> int:
    if value is None:
        # The original's first generation does not show it for node pools.
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise Refused("its generation is not a whole number from 1 to 2147483647")
    return value


def _labels(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    pairs = value.items() if isinstance(value, dict) else ()
    if not isinstance(value, dict) or not all(isinstance(text, str) for _, text in pairs):
        raise Refused("its labels are not a mapping of strings")
    if not all(storable(key + text) for key, text in pairs):
        raise Refused("its labels hold a character that PostgreSQL cannot store")
    return value


def _object(name: str, text: str | None) -> Any:
    """Returns JSON text of an object; None if there is none or, except for the spec, if it is null."""
    if text is None or (text == "null" and name != "spec"):
        return None
    if not text.startswith("{"):
        raise Refused(f"its {name} is not a JSON object")
    # The body around it would have one more level.
    if _too_deep(text, MAX_DEPTH - 1):
        raise Refused(f"its {name} has more than {MAX_DEPTH - 1} levels")
    _check_storable(name, text)
    return text


def _check_storable(name: str, text: str) -> None:
    if "\\u" in text and not storable(json.dumps(json.loads(text), ensure_ascii=False)):
        raise Refused(f"its {name} holds a character that PostgreSQL cannot store")


def _text(given: Mapping[str, Any], name: str) -> str:
    text = given.get(name)
    if text is not None and not (isinstance(text, str) and storable(text)):
        raise Refused(f"its {name} is not text")
    return text or ""
