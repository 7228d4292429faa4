"""Work in a process of its own ends with its time."""

import asyncio
import time
from pathlib import Path

import pytest

from hyperfleet.engine import apart


def children() -> set[str]:
    return {
        child
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    }


def test_a_process_that_takes_too_long_is_killed() -> None:
    async def main() -> None:
        before = children()
        with pytest.raises(TimeoutError):
            await apart.answer("http.server", "0", "--bind", "127.0.0.1", seconds=1, quiet=True)
        deadline = time.monotonic() + 5
        while children() - before:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    asyncio.run(main())
