"""What the tests of clusters and node pools prove also holds for declared kinds that are like them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


# One part for each of two test processes.
@pytest.mark.parametrize(
    "suites",
    [
        ("resources/test_patch", "resources/test_etags", "changes/test_rollback"),
        (
            *("resources/test_delete", "resources/test_force_delete", "resources/test_idempotency"),
            "changes/test_history",
        ),
    ],
)
def test_suites_of_clusters_and_node_pools_pass_for_declared_kinds(suites: tuple[str, ...]) -> None:
    # In a process of its own, since kinds are declared once, before anything else.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"),
            *(str(TESTS / f"{suite}.py") for suite in suites),
            *("-k", "Channel or Version"),
        ],
        env={**os.environ, "TEST_KINDS": "Channel,Version"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert all(f"{suite}.py " in done.stdout for suite in suites)
