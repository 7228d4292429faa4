"""What hatchling does besides: it writes down, in the wheel and the sdist, of which commit they are."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHERE = "hyperfleet/COMMIT"


def commit(root: Path) -> str | None:
    """The commit that is built: the one that ``HYPERFLEET_COMMIT`` names, or that of the checkout; None
    where neither is there, as in an sdist, which has brought it along.
    """
    told = os.environ.get("HYPERFLEET_COMMIT")
    if told or not (root / ".git").exists():
        return told
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


class CommitHook(BuildHookInterface[Any]):
    """Adds a file with the commit, unless a checkout is installed as it is: that one moves on."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build."""
        found = None if version == "editable" else commit(Path(self.root))
        if found:
            self.folder = tempfile.TemporaryDirectory()
            written = Path(self.folder.name) / "COMMIT"
            written.write_text(found + "\n")
            build_data["force_include"][str(written)] = WHERE
