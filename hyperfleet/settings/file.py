"""Reads settings from a YAML file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hyperfleet.errors import ConfigurationError
from hyperfleet.nearest import hint
from hyperfleet.settings import declared, entities, synonyms
from hyperfleet.settings.catalogue import DECLARED
from hyperfleet.settings.entities import Entity
from hyperfleet.settings.members import EMPTY
from hyperfleet.settings.values import Mappings, Names


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ``{"db": {"host": "x"}}`` as ``("db_host", "x")``; hyphens become underscores."""
    for key, value in tree.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, Mapping):
            yield from _flat(value, name + "_")
        elif value not in EMPTY:
            yield name, value


class _Loader(yaml.BaseLoader):
    """Loads all scalars as strings, since "yes" may be a name and 0123 a password, and rejects duplicate
    keys, of which all but one would silently be ignored.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    place = _place(key.start_mark)
                    raise ConfigurationError(f"has the key {key.value[:100]} twice{place}")
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _place(mark: yaml.Mark | None) -> str:
    return f": see line {mark.line + 1}, column {mark.column + 1}" if mark else ""


class Read(NamedTuple):
    """The content of a settings file.

    :param values: the settings that also have flags, by field name
    :param entities: the configuration of kinds
    :param told: lines for the log
    """

    values: dict[str, Any]
    entities: tuple[Entity, ...]
    told: list[str]


def read_file(path: Path) -> Read:
    """Reads the settings in a YAML file.

    Raises ConfigurationError, with the reason, if the file is not a YAML mapping or has a setting that
    does not exist. The reason never quotes a line of the file, which may contain a password.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}  # noqa: S506
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} {error}.") from None
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        raise ConfigurationError(f"{path} is not YAML{place}.") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not YAML in UTF-8"
        raise ConfigurationError(f"{path} cannot be read: {reason}.") from None
    if not isinstance(tree, Mapping):
        raise ConfigurationError(f"{path} must hold a mapping of settings.")
    try:
        found = entities.parse(tree.get("entities", ""))
        declared.kinds_of(found)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    flat: dict[str, Any] = {}
    for name, value in _flat({name: value for name, value in tree.items() if name != "entities"}):
        if name in flat:
            raise ConfigurationError(f"{path} names the setting {name} twice, in two spellings.")
        flat[name] = value
    values, told = synonyms.of_file(flat)
    unknown = [name + hint(name, DECLARED) for name in sorted(values.keys() - DECLARED.keys())]
    if unknown:
        raise ConfigurationError(f"{path} names settings that do not exist: {'; '.join(unknown)}")
    settings = {name: _texts(path, name, value) for name, value in values.items()}
    return Read(settings, found, [f"{path}: {line}" for line in told])


def _texts(path: Path, name: str, value: str | list[Any]) -> str | list[Any]:
    """Returns a value as a flag would have it. Raises ConfigurationError if no flag could."""
    kind = DECLARED[name].metadata["option"].get("type")
    if isinstance(value, list):
        names = isinstance(kind, Names)
        if isinstance(kind, Mappings) or (names and all(isinstance(one, str) for one in value)):
            return value
        takes = "a list of strings, or one string" if names else "one value"
        raise ConfigurationError(f"{path}: {name} takes {takes}.")
    if "\0" in value:
        # Neither flags, variables nor file names can have it.
        raise ConfigurationError(f"{path}: {name} has the character NUL.")
    return value
