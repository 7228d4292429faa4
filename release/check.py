"""Whether what is in dist/ may be released: its version, the changelog and the chart agree."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def section(changelog: str, title: str) -> str:
    """What the changelog says under a title, such as ``0.2.0`` or ``Unreleased``, without headings;
    nothing where it lacks that title.
    """
    title = rf"^## \[?{re.escape(title)}\]?(?: [^\n]*)?\n"
    found = re.search(rf"{title}(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    lines = found[1].splitlines() if found else []
    return "\n".join(line for line in lines if not line.startswith("#")).strip()


def faults(version: str, changelog: str, chart: str) -> list[str]:
    """What keeps a version from being released.

    :param version: that of the wheel: ``0.2.0`` with a tag, ``0.2.0.post1.dev3`` after it
    :param changelog: the text of CHANGELOG.md
    :param chart: the text of Chart.yaml
    """
    found = []
    release = re.fullmatch(r"\d+\.\d+\.\d+", version)
    if release and not section(changelog, version):
        found.append(f"CHANGELOG.md has no section for {version}")
    if not release and not section(changelog, "Unreleased"):
        found.append("CHANGELOG.md says nothing under Unreleased")
    of = re.search(r"^appVersion: \"?([^\"\s]+)", chart, re.MULTILINE)
    if release and (not of or of[1] != version):
        found.append(f"the chart's appVersion is not {version}")
    return found


def built(dist: Path) -> str:
    """The version of the one wheel and the one sdist in a folder.

    Raises SystemExit where there are others, or where one lacks the contract, migrations or the commit.
    """
    wheels, sdists = [*dist.glob("*.whl")], [*dist.glob("*.tar.gz")]
    if len(wheels) != 1 or len(sdists) != 1:
        sys.exit("dist/ must hold one wheel and one sdist")
    version = wheels[0].name.split("-")[1]
    if sdists[0].name != f"hyperfleet_api-{version}.tar.gz":
        sys.exit(f"{wheels[0].name} and {sdists[0].name} are of different versions")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = set(wheel.namelist())
    with tarfile.open(sdists[0]) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"hyperfleet/openapi/openapi.yaml", "hyperfleet/migrations/0001.resources.sql"}
    needed.add("hyperfleet/COMMIT")
    missing = [*needed - names, *{"openapi/openapi.yaml", "hyperfleet/COMMIT", "LICENSE"} - packed]
    if missing:
        sys.exit(f"wheel or sdist lacks {', '.join(missing)}")
    return version


def main() -> None:
    """Checks dist/."""
    version = built(ROOT / "dist")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    chart = (ROOT / "deploy" / "chart" / "Chart.yaml").read_text(encoding="utf-8")
    found = faults(version, changelog, chart)
    if found:
        sys.exit("\n".join(found))
    print(f"{version} may be released.")


if __name__ == "__main__":
    main()
