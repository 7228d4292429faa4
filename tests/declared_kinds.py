"""Kinds that tests declare."""

import os
from pathlib import Path

import yaml

from hyperfleet import kinds
from hyperfleet.settings import declared, entities
from hyperfleet.settings.entities import Entity

# TEST_KINDS=Channel,Version runs the tests of clusters and node pools with these two kinds, which are
# declared to behave like them.
ALIKE = [name for name in os.environ.get("TEST_KINDS", "").split(",") if name]
LIKE = (
    {"kind": "Channel", "plural": "channels"},
    {
        "kind": "Version",
        "plural": "versions",
        "parent_kind": "Channel",
        "on_parent_delete": "cascade",
    },
)


def parsed(given: object) -> tuple[Entity, ...]:
    """Returns entities as if from a settings file, whose scalars are strings."""
    text = yaml.safe_dump(given)
    return entities.parse(yaml.load(text, yaml.BaseLoader))


def of(adapters: dict[str, list[str]]) -> tuple[Entity, ...]:
    """Returns the two kinds that behave like clusters and node pools, with required adapters."""
    given = [{**one, "required_adapters": adapters.get(one["kind"], [])} for one in LIKE]
    return parsed(given) if ALIKE else ()


if ALIKE:
    kinds.declare(declared.kinds_of(of({})))


def file(folder: Path, given: object) -> str:
    """Returns the path of a settings file that declares these kinds."""
    path = folder / "kinds.yaml"
    path.write_text(yaml.safe_dump({"entities": given}))
    return str(path)
