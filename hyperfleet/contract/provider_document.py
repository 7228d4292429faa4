"""The provider's OpenAPI document: read from its file, checked, and compiled into validators."""

import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema_rs
import yaml

from hyperfleet.contract import schema
from hyperfleet.contract.faults import explain
from hyperfleet.kinds import SPECS

Place: TypeAlias = tuple[str | int, ...]

PREFIX = "#/components/schemas/"

META = jsonschema_rs.Draft202012Validator(
    {"$ref": "https://json-schema.org/draft/2020-12/schema"}, validate_formats=True, offline=True
)
ANNOTATIONS = {
    *("title", "description", "default", "deprecated", "example", "examples"),
    *("externalDocs", "xml", "readOnly", "writeOnly"),
}
VOCABULARY = {
    *(*schema.MAPS, *schema.LISTS, *schema.SINGLE, *ANNOTATIONS),
    *("discriminator", "nullable", "additionalItems", "type", "enum", "const", "format", "multipleOf"),
    *("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength", "pattern"),
    *("maxItems", "minItems", "uniqueItems", "maxContains", "minContains"),
    *("maxProperties", "minProperties", "required", "dependentRequired"),
    *("contentEncoding", "contentMediaType"),
}
FORMATS = {
    *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname"),
    *("ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference", "uri-template", "uuid"),
    *("json-pointer", "relative-json-pointer", "regex", "byte", *schema.INTEGERS),
    # These say nothing that a JSON value could break.
    *("binary", "float", "double", "password"),
}


class BrokenDocument(ValueError):
    """A document that cannot be used; ``faults`` holds a line for each reason, file and line first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


@dataclass(frozen=True)
class Document:
    """A document that is in force.

    ``schemas`` are the two specs' and all that they refer to, as the document writes them;
    ``validators`` has one for each kind whose spec the document describes.
    """

    version: str
    schemas: Mapping[str, Any]
    validators: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def old(self) -> bool:
        """Whether it is of OpenAPI 3.0, not 3.1."""
        return self.version.startswith("3.0")


# Reading ------------------------------------------------------------------------------------------


# The one in C, where PyYAML has it, takes a sixth of the time.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.2, which OpenAPI is written in, where it differs from 1.1: ``on`` and ``no`` are texts, and
    so are dates and times of day. A name that is given twice is an error instead of the last one.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are texts. Raises yaml.MarkedYAMLError for a key that comes twice."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} comes twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else id(key))
        made = super().construct_mapping(node, deep)
        return {key if isinstance(key, str) else json.dumps(key): value for key, value in made.items()}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def read(path: Path) -> Document:
    """The document in a file, checked and compiled.

    Raises BrokenDocument with everything that keeps it from being used: no file, no YAML or JSON, no
    OpenAPI 3.0 or 3.1, a schema that is none, a reference that leads nowhere or out of the document.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BrokenDocument([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise BrokenDocument([f"{path}: is not UTF-8: byte {error.start} does not fit"]) from None
    try:
        return compile_document(_parse(path, text))
    except _Findings as found:
        raise BrokenDocument(
            [
                f"{path}{_line(text, at)}: {'.'.join(map(str, at))}: {message}"
                for at, message in found.all
            ]
        ) from None
    except RecursionError:
        raise BrokenDocument([f"{path}: is nested too deeply, or a YAML anchor holds itself"]) from None


def _parse(path: Path, text: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except json.JSONDecodeError as error:
        where, reason = f"line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = f"is not YAML: {error.problem or error.context}"
    except (yaml.YAMLError, ValueError) as error:
        where, reason = "", f"is not YAML: {' '.join(str(error).split())}"
    raise BrokenDocument([f"{path}, {where}: {reason}" if where else f"{path}: {reason}"])


def _line(text: str, at: schema.Path) -> str:
    """``, line 12``: where in YAML or JSON a path leads, or the part of it that exists."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        # JSON that is no YAML, for its tabs.
        return ""
    line = 0
    for part in at:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if str(key.value) == str(part)]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return f", line {line + 1}"


# Checking and compiling ---------------------------------------------------------------------------


class _Findings(Exception):
    """What is wrong with a document: the paths and the messages."""

    def __init__(self, found: list[tuple[schema.Path, str]]) -> None:
        self.all = found


def compile_document(document: Any) -> Document:
    """What a parsed document comes to. Raises _Findings for one that is broken."""
    if not isinstance(document, Mapping):
        raise _Findings(
            [((), "is not an OpenAPI document: it must hold a mapping with the key openapi")]
        )
    version = str(document.get("openapi", ""))
    if not re.fullmatch(r"3\.[01](\..+)?", version):
        given = f"openapi is {version}" if version else "the key openapi is missing"
        raise _Findings([(("openapi",), f"{given}; OpenAPI 3.0 and 3.1 are understood")])
    components = document.get("components") or {}
    named = components.get("schemas") or {} if isinstance(components, Mapping) else None
    if not isinstance(named, Mapping):
        raise _Findings([(("components", "schemas"), "must hold schemas by their names")])
    old = version.startswith("3.0")
    specs = {kind: name for kind, name in SPECS.items() if name in named}
    whole = _spread(document)
    schemas, places = _gather(whole, list(specs.values()), old=old)
    found: list[tuple[schema.Path, str]] = []
    warnings = list(_beside(whole, list(places.values()))) if old else []
    for name, one in schemas.items():
        simple = schema.plain(one, old=old)
        for fault, at in _faults_of(simple):
            found.append(((*places[name], *at), fault))
        warnings += [
            f"{'.'.join(map(str, (*places[name], *at)))}: {message}" for at, message in _unknown(simple)
        ]
    if found:
        raise _Findings(found)
    validators = {}
    for kind, name in specs.items():
        try:
            validators[kind] = schema.compile_schema({"$ref": PREFIX + name}, schemas, old=old)
        except ValueError as error:
            # What the check above lets pass and the compiler does not, such as a pattern too large.
            raise _Findings([(places[name], " ".join(str(error).split())[:500])]) from None
    return Document(version, schemas, validators, warnings)


def compiled(version: str, schemas: Mapping[str, Any], warnings: list[str]) -> Document:
    """The document whose parts another process has read and found in order."""
    validators = {
        kind: schema.compile_schema({"$ref": PREFIX + name}, schemas, old=version.startswith("3.0"))
        for kind, name in SPECS.items()
        if name in schemas
    }
    return Document(version, schemas, validators, warnings)


def _faults_of(one: Any) -> Iterator[tuple[str, schema.Path]]:
    """What makes a schema none, and where."""
    seen = set()
    for error in META.iter_errors(one):
        at = tuple(error.instance_path)
        for fault in explain(error):
            # The meta-schema comes in parts, and most parts find the same.
            key = (at, fault["message"])
            if key not in seen:
                seen.add(key)
                yield fault["message"], at
    for inner, at in _within(one):
        if not isinstance(inner.get("nullable", False), bool):
            yield "must be true or false", (*at, "nullable")
        discriminator = inner.get("discriminator")
        if discriminator is not None and not (
            isinstance(discriminator, Mapping)
            and isinstance(discriminator.get("propertyName"), str)
            and isinstance(discriminator.get("mapping") or {}, Mapping)
        ):
            yield "must be an object with a propertyName and perhaps a mapping", (*at, "discriminator")


def _within(one: Any, at: Place = ()) -> Iterator[tuple[Mapping[str, Any], Place]]:
    """A schema and all schemas in it, with their paths."""
    if isinstance(one, Mapping):
        yield one, at
        found: list[tuple[Any, schema.Path]] = []
        schema.each(one, lambda inner, more: found.append((inner, more)))
        for inner, more in found:
            yield from _within(inner, (*at, *more))


def _unknown(one: Any) -> Iterator[tuple[schema.Path, str]]:
    """Keywords and formats that are not known, and so not checked: most are slips."""
    for inner, at in _within(one):
        for keyword in inner:
            if not (keyword in VOCABULARY or keyword.startswith(("x-", "$"))):
                yield (*at, keyword), "is not a known keyword; it is not checked"
        format_ = inner.get("format")
        if isinstance(format_, str) and format_ not in FORMATS:
            yield (*at, "format"), f"{format_} is not a known format; it is not checked"


def _beside(document: Mapping[str, Any], places: list[Place]) -> Iterator[str]:
    """What stands beside a reference in OpenAPI 3.0, though many expect it to count."""
    for place in places:
        one: Any = document
        for part in place:
            one = one[part]
        for inner, at in _within(one):
            for keyword in inner.keys() & (VOCABULARY - ANNOTATIONS) if "$ref" in inner else ():
                where = ".".join(map(str, (*place, *at, keyword)))
                yield f"{where}: is beside a $ref, where nothing counts in OpenAPI 3.0"


def _spread(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document with each parent that has a discriminator, but no alternatives, turned into the
    choice between its children: the schemas with an allOf that refers to it (OpenAPI 3.0.3, 4.7.25).
    What it says itself becomes a schema of its own, which its children refer to instead.
    """
    named = dict((document.get("components") or {}).get("schemas") or {})
    for parent, own in list(named.items()):
        if not isinstance(own, Mapping) or not isinstance(own.get("discriminator"), Mapping):
            continue
        if own.keys() & {"oneOf", "anyOf", "$ref"}:
            continue
        children = {
            name: one
            for name, one in named.items()
            if isinstance(one, Mapping) and {"$ref": PREFIX + parent} in (one.get("allOf") or ())
        }
        if not children:
            continue
        base = parent + "Base"
        while base in named:
            base += "_"
        named[base] = {key: value for key, value in own.items() if key != "discriminator"}
        alternatives = [{"$ref": PREFIX + name} for name in children]
        named[parent] = {"anyOf": alternatives, "discriminator": own["discriminator"]}
        for name, one in children.items():
            parts = [
                {"$ref": PREFIX + base} if part == {"$ref": PREFIX + parent} else part
                for part in one["allOf"]
            ]
            named[name] = {**one, "allOf": parts}
    return {**document, "components": {**(document.get("components") or {}), "schemas": named}}


def _gather(
    document: Mapping[str, Any], names: list[str], *, old: bool
) -> tuple[dict[str, Any], dict[str, Place]]:
    """The schemas of these names and all that they refer to, by name, and where each of them is.

    References are rewritten to these names, wherever in the document they led. Raises _Findings for
    those that lead nowhere, or out of the document.
    """
    schemas: dict[str, Any] = {}
    places: dict[str, Place] = {}
    waiting: list[str] = []
    found: list[tuple[schema.Path, str]] = []

    def name_of(place: Place) -> str:
        known = next((name for name, other in places.items() if other == place), None)
        if known:
            return known
        own = len(place) == 3 and place[:2] == ("components", "schemas")
        name = re.sub(r"[^A-Za-z0-9._-]", "_", str(place[2]) if own else ".".join(map(str, place)))
        while name in places:
            name += "_"
        places[name] = place
        waiting.append(name)
        return name

    def follow(ref: Any, at: schema.Path) -> Any:
        if not isinstance(ref, str):
            return ref
        if not ref.startswith("#"):
            found.append(
                (at, f"refers to {ref}; nothing is fetched: put that schema into this document")
            )
            return ref
        place = _place(document, ref)
        if place is None:
            found.append((at, f"refers to {ref}, which is not in this document"))
            return ref
        return PREFIX + name_of(place)

    def visit(one: Any, at: Place) -> Any:
        if not isinstance(one, Mapping):
            return one
        if "$ref" in one and old:
            return {"$ref": follow(one["$ref"], (*at, "$ref"))}
        same = schema.each(one, lambda inner, more: visit(inner, (*at, *more)))
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in same:
                same["$ref"] = follow(same.pop(keyword), (*at, keyword))
        same.pop("$dynamicAnchor", None)
        discriminator = same.get("discriminator")
        if isinstance(discriminator, Mapping) and isinstance(discriminator.get("mapping"), Mapping):
            mapping = {
                value: follow(
                    PREFIX + ref if PREFIX + str(ref) in known else ref,
                    (*at, "discriminator", "mapping", value),
                )
                for value, ref in discriminator["mapping"].items()
            }
            same["discriminator"] = {**discriminator, "mapping": mapping}
        return same

    known = {PREFIX + name for name in document["components"]["schemas"]}
    for name in names:
        name_of(("components", "schemas", name))
    while waiting:
        name = waiting.pop()
        one: Any = document
        for part in places[name]:
            one = one[part]
        schemas[name] = visit(one, places[name])
    if found:
        raise _Findings(found)
    return schemas, places


def _place(document: Mapping[str, Any], ref: str) -> Place | None:
    """The path that a pointer or an anchor leads to; None where there is nothing."""
    pointer = urllib.parse.unquote(ref[1:])
    if pointer and not pointer.startswith("/"):
        for name, one in document["components"]["schemas"].items():
            for inner, at in _within(one):
                if pointer in (inner.get("$anchor"), inner.get("$dynamicAnchor")):
                    return ("components", "schemas", name, *at)
        return None
    node: Any = document
    place: list[str | int] = []
    for part in pointer.split("/")[1:]:
        step: str | int = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and part.isdigit():
            step = int(part)
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            return None
        place.append(step)
    return tuple(place)
