"""The documentation agrees with the code."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from conftest import Api
from process import run

from hyperfleet.errors import CATALOGUE
from hyperfleet.settings import catalogue as settings
from hyperfleet.settings.catalogue import DECLARED
from hyperfleet.settings.synonyms import ADDRESSES, SYNONYMS

# Pages with commands for a service that runs without authentication.
WALKS = (
    *("README.md", "docs/using.md", "docs/adapters.md", "docs/lifecycle.md"),
    *("docs/compatibility.md", "docs/history.md"),
)


def settings_page() -> str:
    """Returns docs/settings.md as it should be."""
    lines = [
        "# Settings",
        "",
        "A flag overrides its environment variable, which overrides the YAML file named by `--config`,",
        "which overrides the default. In YAML, keys can be nested: `db: {host: x}` is `db_host: x`.",
        "",
        "A setting and the file that contains it (`--db-password`, `--db-password-file`) are one",
        "setting. The one given at the place with higher precedence wins; giving both at the same place",
        "is refused.",
        "",
        "A `HYPERFLEET_*` variable that is not a setting is ignored with a warning. The service links",
        "that Kubernetes sets for a Service called `hyperfleet` or `hyperfleet-...`, such as",
        "`HYPERFLEET_PORT=tcp://10.0.0.1:8000`, are ignored with a line in the log.",
        "",
        "| flag | environment variable | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in DECLARED.items():
        variables = [f"HYPERFLEET_{name.upper()}"]
        if name in settings.OTHER_VARIABLES:
            variables.append(settings.OTHER_VARIABLES[name])
        default = field.default
        text = ", ".join(default) if isinstance(default, tuple) else str(default).lower()
        shown = "" if default in ("", None, ()) else f"`{text}`"
        flag = f"`--{name.replace('_', '-')}`"
        help_ = " ".join(str(field.metadata["help"]).split())
        lines.append(f"| {flag} | {', '.join(f'`{v}`' for v in variables)} | {shown} | {help_} |")
    lines += [
        "",
        "## Names of the original",
        "",
        "The original's YAML file (`/etc/hyperfleet/config.yaml` if no other is named), variables and",
        "flags are accepted too. If a setting is given under two names, the one above wins; for flags,",
        "the last one. Durations can be written as `1m30s`. Names without effect leave a line in the",
        "log. The variables `LOG_LEVEL`, `LOG_FORMAT`, `LOG_OUTPUT` and `DB_DEBUG`, which early",
        "versions of the original read, are ignored: they may be meant for another program.",
        "",
        "| in its file | its variable | its flags | here |",
        "| --- | --- | --- | --- |",
    ]
    for one in SYNONYMS:
        here = f"`--{one.setting.replace('_', '-')}`" if one.setting else f"no effect: {one.why}"
        names = ", ".join(f"`{name}`" for name in one.variables)
        path = f"`{one.path}` | {names}" if one.path else " | "
        flags = ", ".join(f"`{flag}`" for flag in one.flags.split())
        lines.append(f"| {path} | {flags} | {here} |")
    for flag, (host, port) in ADDRESSES.items():
        here = f"`--{host.replace('_', '-')}` and `--{port.replace('_', '-')}`"
        lines.append(f"|  |  | `{flag}` | {here} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_settings_is_up_to_date(root: Path) -> None:
    page = root / "docs" / "settings.md"
    assert page.read_text() == settings_page(), "regenerate it: python tests/test_documentation.py"


def test_the_readme_links_every_page_and_no_link_is_broken(root: Path) -> None:
    pages = {path.relative_to(root).as_posix() for path in (root / "docs").glob("*.md")}
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", (root / "README.md").read_text()))
    assert linked == pages
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_fits_one_screen_and_starts_with_its_two_commands(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    first = re.search(r"```\n(.*?)```", text, re.DOTALL)
    assert first
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make run-no-auth",
        "make test",
    ]


def test_the_runbook_covers_every_server_error(root: Path) -> None:
    text = (root / "docs" / "runbook.md").read_text()
    codes = [code for code, entry in CATALOGUE.items() if entry.status >= 500]
    assert codes
    assert [code for code in codes if f"| `{code}` |" not in text] == []


def test_the_help_names_every_setting() -> None:
    done = run("serve", "--help")
    for name in DECLARED:
        assert f"--{name.replace('_', '-')}" in done.stdout
        assert f"HYPERFLEET_{name.upper()}" in re.sub(r"\s+", "", done.stdout)


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not installed"
)
@pytest.mark.parametrize("name", WALKS)
def test_the_commands_of_a_page_work(root: Path, api: Api, name: str) -> None:
    blocks = re.findall(r"```\n(.*?)```", (root / name).read_text(), re.DOTALL)
    script = "\n".join(block for block in blocks if "curl" in block)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script.replace("http://localhost:8000", api.url)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"status": 500' not in done.stdout


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "settings.md").write_text(settings_page())
    click.echo("docs/settings.md is written.")
