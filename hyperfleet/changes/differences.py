"""What two JSON documents differ in, as operations that make one of the other (RFC 6902)."""

import asyncio
import contextlib
import json
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonpatch import JsonPatch

from hyperfleet.engine import apart

# Documents of up to so many bytes together are compared at once, which takes a few milliseconds.
SMALL = 4096
# What larger ones may cost, in a process of its own: how long it takes depends on what they hold, and a
# long key comes back in the path of each operation.
SECONDS = 2
MEMORY = 512 * 1024 * 1024
# Seconds that a pair waits for those before it; who compares much takes nothing from others but detail.
PATIENCE = 3
# Operations that take more than so many times the documents explain nothing.
LARGEST = 4


def between(before: Any, after: Any) -> list[dict[str, Any]]:
    """The operations that make the second of the first."""
    operations: list[dict[str, Any]] = JsonPatch.from_diff(before, after, optimization=False).patch
    return operations


@dataclass
class Differences:
    """Compares objects of the same members, one large pair at a time."""

    slot: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def text(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bytes:
        """The JSON text of the operations. Where it costs too much to find out what members differ in,
        or too many are compared, those that differ are replaced as a whole.

        :param before: the members, each as JSON text that PostgreSQL has written, as is ``after``
        """
        changed = [name for name in before if before[name] != after[name]]
        pair = b"[%b,%b]" % tuple(
            b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), one[name]) for name in changed)
            for one in (before, after)
        )
        if len(pair) <= SMALL:
            return json.dumps(between(*json.loads(pair))).encode()
        answer = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.slot.acquire()
            try:
                answer = await apart.answer(__name__, given=pair, seconds=SECONDS + 1, quiet=True)
            finally:
                self.slot.release()
        replaced = (
            b'{"op":"replace","path":"/%b","value":%b}' % (name.encode(), after[name])
            for name in changed
        )
        return answer or b"[%b]" % b",".join(replaced)


def _answer(pair: bytes) -> bytes:
    """What the process answers; nothing where that would be too much."""
    text = json.dumps(between(*json.loads(pair))).encode()
    return text if len(text) <= LARGEST * len(pair) else b""


if __name__ == "__main__":
    # Whoever is served meanwhile comes first.
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.buffer.write(_answer(sys.stdin.buffer.read()))
