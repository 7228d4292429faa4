"""The provider's schemas, which specs are validated against, and their reload at run time."""

import asyncio
import json
import logging
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from hyperfleet.contract import schema
from hyperfleet.contract.document import published
from hyperfleet.contract.faults import faults
from hyperfleet.contract.provider_document import BrokenDocument, Document, read
from hyperfleet.contract.schema import PREFIX
from hyperfleet.engine import apart
from hyperfleet.errors import Fault, StartError
from hyperfleet.kinds import NATIVE, RESOURCES, declare
from hyperfleet.settings.catalogue import Settings

logger = logging.getLogger(__name__)

# The most faults of a document that are logged.
LOGGED = 20
# Seconds within which a document must have been reloaded.
PATIENCE = 60


class Provider:
    """The provider's document at run time.

    ``document`` is replaced as a whole, so that each request sees one version; it is None if no file is
    configured, or if the file was broken at the start. The functions in ``changed`` are called outside
    the event loop when there is a new document.
    """

    def __init__(self, path: str = "", document: Document | None = None, trouble: str = "") -> None:
        self.path = path
        self.document = document
        self.trouble = trouble
        self.changed: list[Callable[[], None]] = []

    def faults(self, kind: str, spec: Any) -> Iterator[Fault]:
        """Yields what is wrong with the spec of a resource of a kind; paths begin with ``spec``."""
        document = self.document
        if document is not None and kind in document.validators:
            yield from faults(document.validators[kind], spec, ["spec"])

    def validated(self, kind: str) -> bool:
        """Whether the provider has a schema for the specs of this kind."""
        return self.document is not None and kind in self.document.validators

    async def reload(self) -> bool:
        """Reloads the file while requests are served; returns whether that succeeded. A broken file is
        logged, and the old document stays in force.
        """
        if not self.path:
            logger.info("no provider schema is configured; nothing to reload")
            return False
        try:
            self.document = await _read_apart(self.path)
        except BrokenDocument as error:
            kept = "the one read before stays in force" if self.document else "specs are not validated"
            self.trouble = f"the file could not be read anew; {kept}"
            _log_broken(error)
            logger.error("the provider schema was not replaced: %s", kept)
            return False
        self.trouble = ""
        for tell in self.changed:
            await asyncio.to_thread(tell)
        _log_loaded(self.path, self.document)
        return True


async def _read_apart(path: str) -> Document:
    """Reads a document in a separate process, which runs this module: a large one takes seconds, during
    which a thread would hold up all others.

    Raises BrokenDocument.
    """
    kinds = pickle.dumps([*RESOURCES.values()])
    try:
        answer = await apart.answer(__name__, path, given=kinds, seconds=PATIENCE)
        found = await asyncio.to_thread(pickle.loads, answer)
    except TimeoutError:
        raise BrokenDocument([f"{path}: takes longer than {PATIENCE} s to be read"]) from None
    except (pickle.UnpicklingError, EOFError):
        reason = "the process that reads it has ended without an answer"
        raise BrokenDocument([f"{path}: {reason}"]) from None
    if isinstance(found, BrokenDocument):
        raise found
    return cast(Document, found)


def load(settings: Settings) -> Provider:
    """Loads the provider's document according to the settings.

    Raises StartError if it is broken and required, or if a kind that requires a schema may lack it.
    """
    path = settings.openapi_schema_path
    # For native kinds, the contract's own schemas suffice if there is no document.
    own = set() if path else NATIVE.keys()
    needing = [kind for name, kind in RESOURCES.items() if kind.needs_schema and name not in own]
    if needing and not (path and settings.schema_required):
        raise StartError(
            f"entities: {needing[0].name}.require_spec_schema is true, but "
            + ("--schema-required is false." if path else "--openapi-schema-path names no document.")
        )
    if not path:
        return Provider()
    try:
        document = read(Path(path))
    except BrokenDocument as error:
        _log_broken(error)
        if settings.schema_required:
            raise StartError(
                f"The provider schema {path} cannot be used: {error.faults[0]}\n"
                f"Fix it until 'hyperfleet schema check {path}' passes, or start without "
                "validation of specs: --schema-required=false."
            ) from None
        logger.error("SPECS ARE NOT VALIDATED: fix %s and send SIGHUP, or restart", path)
        return Provider(path, None, "the file could not be read; specs are not validated")
    _log_loaded(path, document)
    return Provider(path, document)


def _log_broken(error: BrokenDocument) -> None:
    for line in error.faults[:LOGGED]:
        logger.error("provider schema: %s", line)
    if len(error.faults) > LOGGED:
        logger.error("provider schema: and %d more", len(error.faults) - LOGGED)


def _log_loaded(path: str, document: Document) -> None:
    logger.info("the provider schema %s, OpenAPI %s, is in force", path, document.version)
    for kind in RESOURCES.values():
        if kind.name not in document.validators:
            told = "%s has no %s: the spec of a %s is not validated"
            logger.warning(told, path, kind.spec, kind.name)
    for line in document.warnings[:LOGGED]:
        logger.warning("provider schema: %s", line)


def openapi(contract: Mapping[str, Any], document: Document | None) -> bytes:
    """Returns the body of ``/openapi``: the contract with the provider's schemas for the specs."""
    components = contract["components"]
    schemas = {**components["schemas"], **(_own(components, document) if document else {})}
    whole = {**contract, "components": {**components, "schemas": schemas}}
    return json.dumps(published(whole), separators=(",", ":")).encode()


def _own(components: Mapping[str, Any], document: Document) -> dict[str, Any]:
    """Returns the schemas of a document, renamed if the contract uses their names for anything else."""
    # Client generators make one type for each name, whatever has it.
    kinds = ("schemas", "responses", "requestBodies", "parameters")
    taken = {name for kind in kinds for name in components[kind]}
    names: dict[str, str] = {}
    for name in document.schemas.keys() & taken - {kind.spec for kind in RESOURCES.values()}:
        names[name] = "Provider" + name
        while names[name] in taken | document.schemas.keys():
            names[name] += "_"
    shown = {
        names.get(name, name): one if document.old else _older(one)
        for name, one in document.schemas.items()
    }
    if not names:
        return shown
    text = re.sub(
        f'"{PREFIX}([^"/]+)',
        lambda ref: f'"{PREFIX}{names.get(ref[1], ref[1])}',
        json.dumps(shown),
    )
    return cast(dict[str, Any], json.loads(text))


def _older(one: Any, at: schema.Path = ()) -> Any:
    """Converts a schema of OpenAPI 3.1 to 3.0, the version of the contract and its viewer, as far as 3.0
    can express it; ``at`` is its path in the schema around it.
    """
    if isinstance(one, bool):
        # The only place where 3.0 allows a boolean as a schema.
        return one if at == ("additionalProperties",) else {} if one else {"not": {}}
    if not isinstance(one, Mapping):
        return one
    same = schema.each(one, _older)
    types = ["null"] if same.get("type") == "null" else same.get("type")
    if isinstance(types, list):
        real = [name for name in types if name != "null"]
        same.pop("type")
        if len(real) == 1:
            same["type"] = real[0]
        elif real:
            several = {"anyOf": [{"type": name} for name in real]}
            same |= {"allOf": [*same.get("allOf", ()), several]} if "anyOf" in same else several
        if types == ["null"]:
            # 3.0 has no type for it.
            same.setdefault("enum", [None])
        if "null" in types:
            same["nullable"] = True
    if "const" in same:
        same["enum"] = [same.pop("const")]
    if isinstance(same.get("examples"), list) and same["examples"]:
        same.setdefault("example", same.pop("examples")[0])
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if strict in same:
            same[bound], same[strict] = same[strict], True
    if "$ref" in same and len(same) > 1:
        same["allOf"] = [{"$ref": same.pop("$ref")}, *same.get("allOf", ())]
    return same


if __name__ == "__main__":
    declare(pickle.load(sys.stdin.buffer))  # noqa: S301 (of the process that has started this one)
    answer: Document | BrokenDocument
    try:
        answer = read(Path(sys.argv[1]))
    except BrokenDocument as error:
        answer = error
    sys.stdout.buffer.write(pickle.dumps(answer))
