"""Reads the provider's OpenAPI document, checks it, and compiles it into validators."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema_rs
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hyperfleet.contract import alternatives, schema
from hyperfleet.contract.faults import FORMATS, explain
from hyperfleet.contract.schema import PREFIX
from hyperfleet.kinds import RESOURCES

DRAFT = "https://json-schema.org/draft/2020-12/"
META = jsonschema_rs.Draft202012Validator(
    {"$ref": DRAFT + "schema"}, validate_formats=True, offline=True
)
# The keywords of JSON Schema, by the parts of its meta-schema, and those of OpenAPI.
PARTS: Any = jsonschema_rs.bundle({"$ref": DRAFT + "schema"}, offline=True)["$defs"]
KEYWORDS = {
    *(word for name, part in PARTS.items() if "/meta/" in name for word in part["properties"]),
    *("discriminator", "nullable", "definitions", "additionalItems", "example", "externalDocs", "xml"),
}
# Those that are no rules.
ANNOTATIONS = {
    *("title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples"),
    *("example", "externalDocs", "xml"),
}
# Keywords that OpenAPI 3.1 has dropped, and what replaces them.
FORMER = {"nullable": "use type: [..., 'null']", "additionalItems": "use items, beside prefixItems"}
KNOWN_FORMATS = {
    *(*FORMATS, "time", "duration", "idn-email", "idn-hostname", "uri-reference", "uri-template"),
    *("iri", "iri-reference", "json-pointer", "relative-json-pointer"),
    # These have no rule that a JSON value could break.
    *("binary", "float", "double", "password"),
}

UNUSABLE = "is a regular expression that is too large or uses unsupported syntax"

# A fault of a document or a warning: the place, and a message.
Finding: TypeAlias = tuple[schema.Path, str]


class BrokenDocument(ValueError):
    """Raised for an unusable document; ``faults`` has a line for each reason, file and line first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(faults)


class _Findings(Exception):
    """Raised with everything that is wrong with a document."""

    def __init__(self, *found: Finding) -> None:
        self.all = found


@dataclass(frozen=True)
class Document:
    """A valid document.

    ``schemas`` holds the schemas of specs and all that they refer to, as the document writes them;
    ``validators`` has one for each kind whose spec the document describes.
    """

    version: str
    schemas: Mapping[str, Any]
    validators: Mapping[str, schema.Validator]
    warnings: list[str]

    @property
    def old(self) -> bool:
        """Whether it is OpenAPI 3.0 rather than 3.1."""
        return self.version.startswith("3.0")

    def __reduce__(self) -> tuple[Callable[..., "Document"], tuple[Any, ...]]:
        """Pickles the schemas: validators cannot be pickled, and are compiled again on arrival."""
        return compiled, (self.version, self.schemas, self.warnings)


def compiled(version: str, schemas: Mapping[str, Any], warnings: list[str]) -> Document:
    """Compiles schemas that have been checked. Raises ValueError if one is too large."""
    old = version.startswith("3.0")
    plain = {name: schema.plain(one, old=old) for name, one in schemas.items()}
    decided, choices = alternatives.decided(plain)
    specs = {kind.name: PREFIX + kind.spec for kind in RESOURCES.values() if kind.spec in schemas}
    validators = {
        name: schema.compile_schema({"$ref": choices.get(ref, ref)}, decided, old=old)
        for name, ref in specs.items()
    }
    return Document(version, schemas, validators, warnings)


# Reading ------------------------------------------------------------------------------------------


class _Texts(SafeConstructor):
    """Loads dates as strings, as in JSON."""


_Texts.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read(path: Path) -> Document:
    """Reads, checks and compiles the document in a file.

    Raises BrokenDocument with all reasons why it cannot be used: no file, neither YAML nor JSON, neither
    OpenAPI 3.0 nor 3.1, an invalid schema, a reference that leads nowhere or out of the schemas.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _checked(_parsed(text))
    except _Findings as found:
        faults = [
            (_line(text, at), f"{_dotted(at)}: {message}" if at else message)
            for at, message in found.all
        ]
    except OSError as error:
        faults = [("", f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        faults = [("", f"is not UTF-8: byte {error.start} does not fit")]
    except json.JSONDecodeError as error:
        faults = [(f", line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}")]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        faults = [(where, f"is not YAML: {error.problem or error.context}")]
    except YAMLError as error:
        faults = [("", f"is not YAML: {' '.join(str(error).split())}")]
    except RecursionError:
        faults = [("", "is nested too deeply")]
    except ValueError as error:
        faults = [("", str(error))]
    raise BrokenDocument([f"{path}{where}: {fault}" for where, fault in faults])


def _parsed(text: str) -> Any:
    yaml = YAML(typ="safe")
    yaml.Constructor = _Texts
    try:
        # JSON may escape a character as a surrogate pair, which YAML does not have.
        value = json.loads(text) if text.lstrip().startswith("{") else yaml.load(text)
        # Keys that are numbers or booleans become strings, as in JSON.
        return json.loads(json.dumps(value))
    except json.JSONDecodeError:
        raise
    except (TypeError, ValueError) as error:
        circular = "Circular" in str(error)
        reason = "a YAML anchor contains itself" if circular else f"has a value that JSON lacks: {error}"
        raise ValueError(reason) from None


def _dotted(at: schema.Path) -> str:
    return ".".join(map(str, at))


def _line(text: str, at: schema.Path) -> str:
    """Returns, like ``, line 12``, where a path leads, or as much of it as exists."""
    try:
        node = YAML().load(text)
    except (YAMLError, ValueError, RecursionError):
        # Here, unlike above, dates are more than texts, and nesting takes several times the stack.
        return ""
    line = 0
    for part in at:
        places = getattr(getattr(node, "lc", None), "data", None) or {}
        if part not in places:
            break
        line, node = places[part][0], node[part]
    return f", line {line + 1}"


# Checking -----------------------------------------------------------------------------------------


def _checked(document: Any) -> Document:
    """Checks and compiles a parsed document. Raises _Findings if it is broken."""
    if not isinstance(document, Mapping):
        raise _Findings(((), "is not an OpenAPI document: it must hold a mapping with the key openapi"))
    version = str(document.get("openapi", ""))
    if not re.fullmatch(r"3\.[01](\..+)?", version):
        given = f"openapi is {version}" if version else "the key openapi is missing"
        raise _Findings((("openapi",), f"{given}; OpenAPI 3.0 and 3.1 are understood"))
    components = document.get("components") or {}
    named = components.get("schemas") or {} if isinstance(components, Mapping) else None
    if not isinstance(named, Mapping):
        raise _Findings((("components", "schemas"), "must hold schemas by their names"))
    found: list[Finding] = [
        (("components", "schemas", kind.spec), f"is missing; the kind {kind.name} is declared with it")
        for kind in RESOURCES.values()
        if (kind.needs_schema or kind.names_schema) and kind.spec not in named
    ]
    old = version.startswith("3.0")
    named = {name: alternatives.referring(one) for name, one in named.items()}
    families = alternatives.families(named)
    used = {
        name: [one, [PREFIX + other for other in families.get(name, ())]] for name, one in named.items()
    }
    needed = schema.reached([PREFIX + kind.spec for kind in RESOURCES.values()], used)
    schemas = {name: one for name, one in named.items() if name in needed}
    warnings: list[str] = []
    for name, one in schemas.items():
        place = ("components", "schemas", name)
        found += _faults_of(schema.plain(one, old=old), place, named)
        # Also in annotations: /openapi repeats them.
        found += ((at, "is not a number in JSON") for at in _infinite(one, place))
        warnings += (f"{_dotted(at)}: {message}" for at, message in _unheeded(one, place, old))
    if found:
        raise _Findings(*found)
    try:
        return compiled(version, schemas, warnings)
    except ValueError as error:
        # What the checks accept and the compiler does not, such as a pattern that is too large.
        raise _Findings((("components", "schemas"), " ".join(str(error).split())[:500])) from None


def _within(one: Any, at: schema.Path) -> Iterator[tuple[Mapping[str, Any], schema.Path]]:
    """Yields a schema, whose path this is, and all schemas within it, with their paths."""
    if isinstance(one, Mapping):
        yield one, at
        found: list[tuple[Any, schema.Path]] = []
        schema.each(one, lambda inner, more: found.append((inner, more)))
        for inner, more in found:
            yield from _within(inner, (*at, *more))


def _faults_of(one: Any, place: schema.Path, named: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields what makes a plain schema invalid, and its references that do not lead to named schemas."""
    # The meta-schema has several parts, most of which report the same errors.
    found = dict.fromkeys(
        ((*place, *error.instance_path), fault["message"])
        for error in META.iter_errors(one)
        for fault in explain(error)
    )
    yield from found
    for inner, at in _within(one, place):
        if not found:
            yield from (((*at, *step), UNUSABLE) for step in _unusable_patterns(inner))
        if not isinstance(inner.get("nullable", False), bool):
            yield (*at, "nullable"), "must be true or false"
        refs: dict[tuple[str, ...], Any] = {(word,): inner.get(word) for word in ("$ref", "$dynamicRef")}
        given: Any = inner.get("discriminator")
        mapping = given.get("mapping") or {} if isinstance(given, Mapping) else None
        if isinstance(mapping, Mapping) and isinstance(given.get("propertyName"), str):
            refs |= {("discriminator", "mapping", value): ref for value, ref in mapping.items()}
        elif given is not None:
            yield (*at, "discriminator"), "must be an object with a propertyName and maybe a mapping"
        for step, ref in refs.items():
            if wrong := _misleading(ref, named):
                yield (*at, *step), wrong


def _unusable_patterns(one: Mapping[str, Any]) -> Iterator[schema.Path]:
    """Yields the places of patterns that the meta-schema accepts and the validator does not."""
    given: dict[tuple[str, ...], str] = {("pattern",): one["pattern"]} if "pattern" in one else {}
    given |= {("patternProperties", text): text for text in one.get("patternProperties", {})}
    for place, pattern in given.items():
        try:
            schema.fits("", pattern)
        except ValueError:
            yield place


def _infinite(value: Any, at: schema.Path) -> Iterator[schema.Path]:
    """Yields the places of YAML's ``.inf`` and ``.nan``, and of numbers that are too large."""
    if isinstance(value, float) and not math.isfinite(value):
        yield at
    if isinstance(value, Mapping | list):
        for step, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _infinite(one, (*at, step))


def _misleading(ref: Any, named: Mapping[str, Any]) -> str:
    """Returns what is wrong with a reference; empty if it leads to a named schema or a part of one."""
    if not isinstance(ref, str):
        return ""
    if not ref.startswith("#"):
        return f"refers to {ref}; nothing is fetched: put that schema into this document"
    if not ref.startswith(PREFIX):
        return f"refers to {ref}; what is referred to must be in components.schemas"
    try:
        schema.at({"components": {"schemas": named}}, schema.pointer(ref))
    except (LookupError, TypeError, ValueError):
        return f"refers to {ref}, which is not in this document"
    return ""


def _unheeded(one: Any, place: schema.Path, old: bool) -> Iterator[Finding]:
    """Yields what a schema says and nothing checks, contrary to expectation: mostly mistakes."""
    for inner, at in _within(one, place):
        alone = old and "$ref" in inner
        for keyword in inner:
            if alone and keyword in KEYWORDS - ANNOTATIONS - {"$ref"}:
                yield (*at, keyword), "is ignored: OpenAPI 3.0 ignores what is beside a $ref"
            elif keyword in FORMER and not old:
                yield (*at, keyword), f"is not checked in OpenAPI 3.1: {FORMER[keyword]}"
            elif not (alone or keyword in KEYWORDS or keyword.startswith(("x-", "$"))):
                yield (*at, keyword), "is not a known keyword; it is not checked"
        if not alone and isinstance(name := inner.get("format"), str) and name not in KNOWN_FORMATS:
            yield (*at, "format"), f"{name} is not a known format; it is not checked"
