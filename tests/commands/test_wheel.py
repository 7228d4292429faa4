"""The wheel works where nothing but it is."""

import subprocess
import sys
from pathlib import Path

import pytest
import requests
from process import Serving, run

from hyperfleet import __commit__

pytestmark = pytest.mark.slow


def test_an_installed_wheel_migrates_serves_and_shows_the_contract(
    tmp_path: Path, root: Path, database: str
) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(root)],
        check=True,
        capture_output=True,
    )
    # The pip that is here does: to install one there takes longer than the wheel.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    [wheel] = (tmp_path / "dist").glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", f"{wheel}[embedded]"], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = str(python.parent / "hyperfleet")

    version = wheel.name.split("-")[1]
    assert run("--version", command=command, cwd=empty).stdout == f"{version}\n"
    told = run("version", command=command, cwd=empty).stdout
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    # A source distribution has no history, and brings the commit along.
    assert told == f"{version} (commit {commit.stdout.strip() or __commit__})\n"
    with Serving(
        "--no-auth", "--data-dir", str(tmp_path / "data"), command=command, cwd=empty
    ) as server:
        assert requests.get(server.url + "/api/hyperfleet/v1/clusters", timeout=5).json()["total"] == 0
        page = requests.get(server.url + "/openapi-ui/", timeout=5).text
        assert "swagger-ui-bundle.js" in page
        contract = requests.get(server.url + "/openapi", timeout=5).json()
        assert contract["paths"]["/api/hyperfleet/v1/clusters"]["get"]["operationId"] == "getClusters"
        assert server.stop() == 0
    listed = run("migrate", "--list", "--database-url", database, command=command, cwd=empty)
    assert listed.returncode == 0
    assert listed.stdout.startswith("applied")
    assert list(empty.iterdir()) == []
