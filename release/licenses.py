"""Which licenses the packages have that the image installs, written to THIRD_PARTY.md.

Run it where exactly the packages of requirements.lock are installed: `make licenses` does so.
"""

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "THIRD_PARTY.md"
HEAD = """# What the image contains besides

The packages of [requirements.lock](requirements.lock), which the container image installs beside
HyperFleet API. Each is under the license that it names itself. `make licenses` writes this list.

| package | version | license | where it comes from |
| --- | --- | --- | --- |
"""


def locked() -> dict[str, str]:
    """The packages of requirements.lock, by name, and their versions."""
    pins = re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return dict(pins)


def license_of(about: metadata.PackageMetadata) -> str:
    """What a package says its license is: an expression where it has one, otherwise its classifiers, and
    otherwise the first line of its own words.
    """
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    ]
    words = [line.strip() for line in (about.get("License") or "").splitlines() if line.strip()]
    return about.get("License-Expression") or ", ".join(classifiers) or "".join(words[:1])


def home_of(about: metadata.PackageMetadata) -> str:
    """The address of a package's source or home page."""
    links = {
        name.strip().lower(): address.strip()
        for name, _, address in (line.partition(",") for line in about.get_all("Project-URL") or [])
    }
    names = ("source", "source code", "repository", "github", "homepage", "home", *links)
    named = next((links[name] for name in names if name in links), "")
    return about.get("Home-page") or named


def page() -> str:
    """THIRD_PARTY.md as it has to be.

    Raises SystemExit where a package is not installed in the version of the lock, or names no license.
    """
    rows = []
    for name, version in locked().items():
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            sys.exit(f"{name} {version} is not installed here: make licenses")
        if about["Version"] != version:
            sys.exit(f"{name} is installed as {about['Version']}, not {version}: make licenses")
        if not license_of(about):
            sys.exit(f"{name} names no license: look, and say it here")
        rows.append(f"| {name} | {version} | {license_of(about)} | {home_of(about)} |\n")
    return HEAD + "".join(rows)


def main() -> None:
    """Writes the list, or with ``--check`` compares it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--check", action="store_true", help="write nothing, fail where it is outdated"
    )
    if not arguments.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("THIRD_PARTY.md is not that of requirements.lock: make licenses")


if __name__ == "__main__":
    main()
