"""The modules are where docs/architecture.md says, and import only what it allows."""

import ast
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hyperfleet"
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) ?\|$", re.MULTILINE)
ROOMS = {name: (holds, may) for name, holds, may in ROW.findall(PAGE.read_text())}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem != "__init__"]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Returns the rooms that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hyperfleet"):
            parts = node.module.split(".")[1:]
            names = [parts[0]] if parts else [alias.name for alias in node.names]
            found |= {name for name in names if not name.startswith("__")}
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("hyperfleet") for alias in node.names), path
    return found - {room(path)}


def test_the_table_lists_exactly_the_rooms_that_exist() -> None:
    assert {room(path) for path in MODULES} == set(ROOMS)


def test_the_table_names_exactly_the_modules_of_each_package() -> None:
    for package in {path.parent for path in MODULES} - {PACKAGE}:
        holds = ROOMS[package.name][0].partition(":")[0]
        modules = {path.stem for path in MODULES if path.parent == package}
        assert set(re.findall(r"\w+", holds)) == modules, package.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_what_their_room_may(path: Path) -> None:
    may = set(re.findall(r"\w+", ROOMS[room(path)][1]))
    names = list(ROOMS)
    below = set(names[names.index(room(path)) + 1 :])
    if may == {"all", "below"}:
        may = below
    assert may <= below, "the table is not in the order of the arrows"
    assert imported(path) <= may


def test_the_table_allows_no_import_that_is_not_used() -> None:
    for name, (_, may) in ROOMS.items():
        if may != "all below":
            used = set().union(*(imported(path) for path in MODULES if room(path) == name))
            assert set(re.findall(r"\w+", may)) == used, name


def test_every_package_says_what_it_is_for() -> None:
    for package in {path.parent for path in MODULES}:
        text = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
        assert text, package


def test_flasks_globals_are_used_in_one_module_only() -> None:
    askers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if re.search(r"flask\.(request|current_app|g)\b|from flask import", path.read_text())
    }
    assert askers == {"handlers/request.py"}


def test_the_benchmarks_can_be_imported() -> None:
    for path in (PACKAGE.parent / "benchmarks").glob("*.py"):
        if path.stem != "__main__":
            importlib.import_module(f"benchmarks.{path.stem}")
