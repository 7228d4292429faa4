"""The wheel works where nothing else is installed but its dependencies."""

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import requests
from packaging.requirements import Requirement
from process import Serving, run

from hyperfleet import __commit__

pytestmark = pytest.mark.slow


def required(package: Distribution, extras: set[str], found: dict[str, Distribution]) -> None:
    """Adds the installed requirements of a package, and theirs in turn."""
    for one in map(Requirement, package.requires or ()):
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
            continue
        named = " ".join([one.name, *sorted(one.extras)])
        if named not in found:
            found[named] = distribution(one.name)
            assert one.specifier.contains(found[named].version, prereleases=True), one
            required(found[named], one.extras, found)


def link(package: Distribution, place: Path) -> None:
    """Links the files of a package into another place, without its scripts."""
    for file in package.files or ():
        if ".." not in file.parts:
            there = place / file
            there.parent.mkdir(parents=True, exist_ok=True)
            if not there.exists():
                there.symlink_to(file.locate())


def test_an_installed_wheel_migrates_serves_and_shows_the_contract(
    tmp_path: Path, root: Path, database: str
) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(root)],
        check=True,
        capture_output=True,
    )
    # Uses the pip of this environment: installing one there takes longer than the wheel itself. Only
    # the wheel's requirements are linked from here: resolving and fetching them takes far longer still.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    [wheel] = (tmp_path / "dist").glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = ["install", "--quiet", "--no-compile", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    [site] = (tmp_path / "venv" / "lib").glob("*/site-packages")
    [metadata] = site.glob("hyperfleet_api-*.dist-info")
    packages: dict[str, Distribution] = {}
    required(Distribution.at(metadata), {"embedded"}, packages)
    for package in packages.values():
        link(package, site)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = str(python.parent / "hyperfleet")

    version = wheel.name.split("-")[1]
    assert run("--version", command=command, cwd=empty).stdout == f"{version}\n"
    told = run("version", command=command, cwd=empty).stdout
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    # A source distribution has no history, and carries the commit in a file.
    assert told == f"{version} (commit {commit.stdout.strip() or __commit__})\n"
    with Serving(
        "--no-auth", "--data-dir", str(tmp_path / "data"), command=command, cwd=empty
    ) as server:
        assert requests.get(server.url + "/api/hyperfleet/v1/clusters", timeout=5).json()["total"] == 0
        page = requests.get(server.url + "/openapi-ui/", timeout=5).text
        assert "swagger-ui-bundle.js" in page
        contract = requests.get(server.url + "/openapi", timeout=5).json()
        assert contract["paths"]["/api/hyperfleet/v1/clusters"]["get"]["operationId"] == "getClusters"
        assert server.stop() == 0, server.output
    listed = run("migrate", "--list", "--database-url", database, command=command, cwd=empty)
    assert listed.returncode == 0
    assert listed.stdout.startswith("applied")
    assert list(empty.iterdir()) == []
