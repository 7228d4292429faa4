"""The parts of a release agree: version, lock file, licenses, and what `make release-check` looks at."""

import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCK, re.MULTILINE))
BIN = ROOT / ".tools" / "release" / "bin"
needs_builders = pytest.mark.skipif(
    not (BIN / "hatchling").exists() or not shutil.which("git"),
    reason="needs git, and hatchling, which make test-tools installs",
)
SOURCES = ("hyperfleet", "openapi", "migrations", "hatch_build.py", "pyproject.toml", "README.md")


def script(name: str) -> ModuleType:
    """Loads a module from the folder release, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / "release" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_file_pins_a_matching_version_of_each_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["tracing"]]:
        needed = Requirement(text)
        assert needed.specifier.contains(PINS[canonicalize_name(needed.name)]), text
    for text in extras["embedded"]:
        assert canonicalize_name(Requirement(text).name) not in PINS, text
    assert "pytest" not in PINS


def test_each_pin_in_the_lock_file_has_hashes_and_no_url() -> None:
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PINS)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK
    assert "make lock" in LOCK


def test_the_list_of_licenses_names_exactly_the_locked_packages_and_none_under_the_gpl() -> None:
    page = (ROOT / "THIRD_PARTY.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9.-]+) \| (\d\S*) \| (.+?) \| .*\|$", page, re.MULTILINE)
    assert {name: version for name, version, _ in rows} == PINS
    # No license may restrict serving it to others, or shipping it with other software.
    assert not [row for row in rows if re.search(r"AGPL|(?<!L)GPL|unknown", row[2], re.IGNORECASE)]


def test_a_release_needs_a_section_in_the_changelog_and_a_matching_chart() -> None:
    faults = script("check").faults
    changelog = "## Unreleased\n\n### Added\n\n## [0.2.0] - 2026-12-01\n\n### Added\n- It.\n\n## 0.1.0\n"
    chart = 'version: 1.0.0\nappVersion: "0.2.0"\n'
    assert faults("0.2.0", changelog, chart) == []
    assert faults("0.1.0", changelog, chart) == [
        "CHANGELOG.md has no section for 0.1.0",
        "the chart's appVersion is not 0.1.0",
    ]
    between = "0.2.0.post1.dev3+g0123456"
    assert faults(between, changelog, chart) == ["CHANGELOG.md says nothing under Unreleased"]
    assert faults(between, changelog.replace("Unreleased\n", "Unreleased\n- More.\n"), chart) == []
    assert faults(between, (ROOT / "CHANGELOG.md").read_text(), chart) == []


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=HyperFleet", "-c", "user.email=hyperfleet@localhost")
    return subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources of the wheel, as the first commit of a new repository."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (*SOURCES, "LICENSE", "CHANGELOG.md", "THIRD_PARTY.md", "requirements.lock"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def hatch(folder: Path, *words: str, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if "HYPERFLEET" not in name}
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]], cwd=folder, check=True, capture_output=True, text=True,
        env={**clean, **env},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.tools
@needs_builders
def test_the_version_comes_from_the_tag_and_is_0_1_0_without_one(checkout: Path) -> None:
    told = hatch(checkout, "hatchling", "version")
    assert re.fullmatch(r"0\.1\.0\.post1\.dev\d+\+g[0-9a-f]+", told)
    git(checkout, "tag", "v0.2.0")
    assert hatch(checkout, "hatchling", "version") == "0.2.0"
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=second")
    told = hatch(checkout, "hatchling", "version")
    assert re.fullmatch(r"0\.2\.0\.post1\.dev1\+g[0-9a-f]+", told)
    shutil.rmtree(checkout / ".git")
    assert hatch(checkout, "hatchling", "version") == "0.1.0"
    assert hatch(checkout, "hatchling", "version", SETUPTOOLS_SCM_PRETEND_VERSION="3.4.5") == "3.4.5"


def contents(dist: Path) -> tuple[str, str]:
    """The version and the commit of the wheel in a folder."""
    [path] = dist.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        [about] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        version = message_from_string(wheel.read(about).decode())["Version"]
        return version, wheel.read("hyperfleet/COMMIT").decode().strip()


@pytest.mark.tools
@needs_builders
def test_a_wheel_knows_its_version_and_commit_even_when_built_from_the_sdist(
    checkout: Path, tmp_path: Path
) -> None:
    build = ("python", "-m", "build", "--no-isolation", "--outdir")
    git(checkout, "tag", "v0.2.0")
    commit = git(checkout, "rev-parse", "HEAD")
    # The sdist, and a wheel built from its contents.
    hatch(checkout, *build, str(tmp_path / "both"))
    assert contents(tmp_path / "both") == ("0.2.0", commit)
    with tarfile.open(tmp_path / "both" / "hyperfleet_api-0.2.0.tar.gz") as sdist:
        sdist.extractall(tmp_path, filter="data")
    hatch(tmp_path / "hyperfleet_api-0.2.0", *build, str(tmp_path / "again"), "--wheel")
    assert contents(tmp_path / "again") == ("0.2.0", commit)
    # As the image is built.
    shutil.rmtree(checkout / ".git")
    told = {"SETUPTOOLS_SCM_PRETEND_VERSION": "7.8.9", "HYPERFLEET_COMMIT": "c0ffee"}
    hatch(checkout, *build, str(tmp_path / "told"), "--wheel", **told)
    assert contents(tmp_path / "told") == ("7.8.9", "c0ffee")
    assert git(ROOT, "status", "--porcelain", "--", "hyperfleet/COMMIT") == ""
