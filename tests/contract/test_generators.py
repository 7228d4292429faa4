"""What code generators make of the served contract compiles and works.

These tests need what ``make test-tools`` installs, and are left out of ``make test``.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Api

pytestmark = pytest.mark.tools

PROGRAMS = Path(__file__).parents[1] / "generators"
TOOLS = Path(__file__).parents[2] / ".tools"


def tool(path: str) -> str:
    """Returns the path of an installed tool, or skips the test if it is not installed."""
    if not (TOOLS / path).exists():
        pytest.skip(f"{path} is not installed; make test-tools does")
    return str(TOOLS / path)


def run(*arguments: str, cwd: Path, **env: str) -> None:
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def document(api: Api, tmp_path: Path) -> Path:
    """A file with the contract as it is served."""
    file = tmp_path / "openapi.json"
    file.write_bytes(api.get("//openapi").content)
    return file


def test_oapi_codegen_generates_a_go_client_that_compiles_and_works(
    api: Api, document: Path, tmp_path: Path
) -> None:
    generator = tool("bin/oapi-codegen")
    package = tmp_path / "hyperfleet"
    package.mkdir()
    made = package / "client.gen.go"
    options = ("-generate", "types,client", "-package", "hyperfleet", "-o", str(made))
    run(generator, *options, str(document), cwd=tmp_path)
    shutil.copy(PROGRAMS / "walk.go", tmp_path)
    run("go", "mod", "init", "example.org/walk", cwd=tmp_path)
    run("go", "get", "github.com/oapi-codegen/runtime@v1.1.1", cwd=tmp_path)
    run("go", "build", "-o", "walk", ".", cwd=tmp_path)
    run("./walk", api.url, cwd=tmp_path)


def test_openapi_python_client_generates_a_client_that_works(
    api: Api, document: Path, tmp_path: Path
) -> None:
    generator = tool("python/bin/openapi-python-client")
    package = tmp_path / "hyperfleet_client"
    options = ("--path", str(document), "--meta", "none", "--output-path", str(package))
    run(generator, "generate", "--fail-on-warning", *options, cwd=tmp_path, PATH=paths())
    python = tool("python/bin/python")
    run(python, "-m", "compileall", "-q", str(package), cwd=tmp_path)
    run(python, str(PROGRAMS / "walk.py"), api.url, cwd=tmp_path, PYTHONPATH=str(tmp_path))


def paths() -> str:
    return f"{TOOLS / 'python' / 'bin'}{os.pathsep}{os.environ['PATH']}"


def test_openapi_typescript_generates_types_that_compile_and_fit(
    api: Api, document: Path, tmp_path: Path
) -> None:
    generator = tool("node/node_modules/.bin/openapi-typescript")
    (tmp_path / "node_modules").symlink_to(TOOLS / "node" / "node_modules")
    run(generator, str(document), "-o", str(tmp_path / "schema.d.ts"), cwd=tmp_path)
    shutil.copy(PROGRAMS / "walk.ts", tmp_path)
    compiler = tool("node/node_modules/.bin/tsc")
    options = ("--strict", "--target", "es2022", "--module", "commonjs", "--moduleResolution", "node10")
    run(compiler, *options, "--skipLibCheck", "--types", "node", "walk.ts", cwd=tmp_path)
    run("node", "walk.js", api.url, cwd=tmp_path)
