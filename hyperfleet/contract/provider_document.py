"""The provider's OpenAPI document: read from its file, checked, and compiled into validators."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hyperfleet.contract import schema
from hyperfleet.contract.faults import explain
from hyperfleet.contract.schema import PREFIX
from hyperfleet.kinds import RESOURCES, SPECS

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


class _Findings(Exception):
    """What is wrong with a document: the paths and the messages."""

    def __init__(self, found: list[tuple[schema.Path, str]]) -> None:
        self.all = found


@dataclass(frozen=True)
class Document:
    """A document that is in force.

    ``schemas`` are the two specs' and all that they refer to, as the document writes them;
    ``validators`` has one for each kind whose spec the document describes.
    """

    version: str
    schemas: Mapping[str, Any]
    validators: Mapping[str, schema.Validator]
    warnings: list[str] = field(default_factory=list)

    @property
    def old(self) -> bool:
        """Whether it is of OpenAPI 3.0, not 3.1."""
        return self.version.startswith("3.0")


# Reading ------------------------------------------------------------------------------------------


class _Texts(SafeConstructor):
    """Dates stay texts, as they are in JSON."""


_Texts.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read(path: Path) -> Document:
    """The document in a file, checked and compiled.

    Raises BrokenDocument with everything that keeps it from being used: no file, no YAML or JSON, no
    OpenAPI 3.0 or 3.1, a schema that is none, a reference that leads nowhere or out of the schemas.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BrokenDocument([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise BrokenDocument([f"{path}: is not UTF-8: byte {error.start} does not fit"]) from None
    try:
        return _checked(_parse(path, text))
    except _Findings as found:
        faults = [
            f"{path}{_line(text, at)}: {'.'.join(map(str, at))}: {message}" for at, message in found.all
        ]
        raise BrokenDocument(faults) from None
    except RecursionError:
        raise BrokenDocument([f"{path}: is nested too deeply"]) from None


def _parse(path: Path, text: str) -> Any:
    yaml = YAML(typ="safe")
    yaml.Constructor = _Texts
    where = ""
    try:
        # YAML knows no characters in two halves, which JSON is written with.
        value = json.loads(text) if text.lstrip().startswith("{") else yaml.load(text)
        # Keys that are numbers or true become texts, as in JSON.
        return json.loads(json.dumps(value))
    except json.JSONDecodeError as error:
        where, reason = f", line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}"
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = f"is not YAML: {error.problem or error.context}"
    except YAMLError as error:
        reason = f"is not YAML: {' '.join(str(error).split())}"
    except (TypeError, ValueError) as error:
        circular = "Circular" in str(error)
        reason = "a YAML anchor holds itself" if circular else f"has a value that JSON lacks: {error}"
    raise BrokenDocument([f"{path}{where}: {reason}"])


def _line(text: str, at: schema.Path) -> str:
    """``, line 12``: where a path leads, or the part of it that exists."""
    try:
        node = YAML().load(text)
    except YAMLError:
        return ""
    line = 0
    for part in at:
        places = getattr(getattr(node, "lc", None), "data", None) or {}
        if part not in places:
            break
        line, node = places[part][0], node[part]
    return f", line {line + 1}"


# Checking and compiling ---------------------------------------------------------------------------


def _checked(document: Any) -> Document:
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
    found: list[tuple[schema.Path, str]] = [
        (("components", "schemas", kind.spec), f"is missing; the kind {kind.name} is declared with it")
        for kind in RESOURCES.values()
        if (kind.needs_schema or kind.names_schema) and kind.spec not in named
    ]
    schemas = _needed(_spread(named), old, found)
    warnings: list[str] = []
    for name, one in schemas.items():
        place, simple = ("components", "schemas", name), schema.plain(one, old=old)
        found += [((*place, *at), message) for at, message in _faults_of(simple)]
        told = [*(_beside(one) if old else ()), *_unknown(simple)]
        warnings += [f"{'.'.join(map(str, (*place, *at)))}: {message}" for at, message in told]
    if found:
        raise _Findings(found)
    try:
        return compiled(version, schemas, warnings)
    except ValueError as error:
        # What the check above lets pass and the compiler does not, such as a pattern too large.
        raise _Findings([(("components", "schemas"), " ".join(str(error).split())[:500])]) from None


def compiled(version: str, schemas: Mapping[str, Any], warnings: list[str]) -> Document:
    """The document of schemas that were found in order. Raises ValueError for one that is too large."""
    validators = {
        kind: schema.compile_schema({"$ref": PREFIX + name}, schemas, old=version.startswith("3.0"))
        for kind, name in SPECS.items()
        if name in schemas
    }
    return Document(version, schemas, validators, warnings)


def _within(one: Any, at: schema.Path = ()) -> Iterator[tuple[Mapping[str, Any], schema.Path]]:
    """A schema and all schemas in it, with their paths."""
    if isinstance(one, Mapping):
        yield one, at
        found: list[tuple[Any, schema.Path]] = []
        schema.each(one, lambda inner, more: found.append((inner, more)))
        for inner, more in found:
            yield from _within(inner, (*at, *more))


def _needed(named: Mapping[str, Any], old: bool, found: list[tuple[schema.Path, str]]) -> dict[str, Any]:
    """The schemas of the specs and all that they refer to, by name; what is wrong with the references
    is added to ``found``.
    """
    needed: dict[str, Any] = {}
    waiting = [name for name in dict.fromkeys(SPECS.values()) if name in named]
    while waiting:
        name = waiting.pop()
        needed[name] = named[name]
        for ref, at in _references(schema.plain(named[name], old=old)):
            place = ("components", "schemas", name, *at)
            if not ref.startswith(PREFIX):
                wrong = "what is referred to must be in components.schemas"
                if not ref.startswith("#"):
                    wrong = "nothing is fetched: put that schema into this document"
                found.append((place, f"refers to {ref}; {wrong}"))
                continue
            target = schema.pointer(ref)
            try:
                schema.at({"components": {"schemas": named}}, target)
            except (LookupError, TypeError, ValueError):
                found.append((place, f"refers to {ref}, which is not in this document"))
                continue
            if target[2] not in needed and target[2] not in waiting:
                waiting.append(target[2])
    return needed


def _references(one: Any) -> Iterator[tuple[str, schema.Path]]:
    """The references in a plain schema, with the paths that they stand at."""
    for inner, at in _within(one):
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(inner.get(keyword), str):
                yield inner[keyword], (*at, keyword)
        for value, ref in schema.mapping(inner).items():
            yield ref, (*at, "discriminator", "mapping", value)


def _faults_of(one: Any) -> Iterator[tuple[schema.Path, str]]:
    """What makes a schema none, and where."""
    # The meta-schema comes in parts, and most parts find the same.
    yield from dict.fromkeys(
        (tuple(error.instance_path), fault["message"])
        for error in META.iter_errors(one)
        for fault in explain(error)
    )
    for inner, at in _within(one):
        if not isinstance(inner.get("nullable", False), bool):
            yield (*at, "nullable"), "must be true or false"
        discriminator = inner.get("discriminator")
        if discriminator is not None and not (
            isinstance(discriminator, Mapping)
            and isinstance(discriminator.get("propertyName"), str)
            and isinstance(discriminator.get("mapping") or {}, Mapping)
        ):
            yield (*at, "discriminator"), "must be an object with a propertyName and perhaps a mapping"


def _unknown(one: Any) -> Iterator[tuple[schema.Path, str]]:
    """Keywords and formats that are not known, and so not checked: most are slips."""
    for inner, at in _within(one):
        for keyword in inner:
            if not (keyword in VOCABULARY or keyword.startswith(("x-", "$"))):
                yield (*at, keyword), "is not a known keyword; it is not checked"
        format_ = inner.get("format")
        if isinstance(format_, str) and format_ not in FORMATS:
            yield (*at, "format"), f"{format_} is not a known format; it is not checked"


def _beside(one: Any) -> Iterator[tuple[schema.Path, str]]:
    """What stands beside a reference in OpenAPI 3.0, though many expect it to count."""
    for inner, at in _within(one):
        for keyword in inner.keys() & (VOCABULARY - ANNOTATIONS) if "$ref" in inner else ():
            yield (*at, keyword), "is beside a $ref, where nothing counts in OpenAPI 3.0"


def _spread(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schemas with each parent that has a discriminator, but no alternatives, turned into the
    choice between its children: the schemas with an allOf that refers to it (OpenAPI 3.0.3, 4.7.25).
    What it says itself becomes a schema of its own, which its children refer to instead.
    """
    named = dict(given)
    for parent, own in given.items():
        if not isinstance(own, Mapping) or not isinstance(own.get("discriminator"), Mapping):
            continue
        itself = {"$ref": PREFIX + parent}
        children = {
            name: one
            for name, one in named.items()
            if isinstance(one, Mapping) and itself in (one.get("allOf") or ())
        }
        if not children or own.keys() & {"oneOf", "anyOf", "$ref"}:
            continue
        base = parent + "Base"
        while base in named:
            base += "_"
        named[base] = {key: value for key, value in own.items() if key != "discriminator"}
        alternatives = [{"$ref": PREFIX + name} for name in children]
        named[parent] = {"anyOf": alternatives, "discriminator": own["discriminator"]}
        for name, one in children.items():
            parts = [{"$ref": PREFIX + base} if part == itself else part for part in one["allOf"]]
            named[name] = {**one, "allOf": parts}
    return named
