"""The differences between two JSON documents, as operations that turn one into the other (RFC 6902)."""

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

# Documents up to this many bytes together are compared in this process, within a few milliseconds.
SMALL = 4096
# Limits for larger ones, in a process of their own: the time depends on their contents, and a long key
# is repeated in the path of each operation.
SECONDS = 2
MEMORY = 512 * 1024 * 1024
# Seconds that a pair waits for earlier ones; a client that compares much only costs others detail.
PATIENCE = 3
# Operations more than this many times as long as the documents explain nothing.
LARGEST = 4


def between(before: Any, after: Any) -> list[dict[str, Any]]:
    """Returns the operations that turn the first document into the second."""
    operations: list[dict[str, Any]] = JsonPatch.from_diff(before, after, optimization=False).patch
    return operations


@dataclass
class Differences:
    """Compares objects with the same members, one large pair at a time."""

    slot: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def text(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bytes:
        """Returns the operations as JSON text; under load or if costly, they replace whole members.

        :param before: the members, each as JSON text written by PostgreSQL; ``after`` likewise
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
    """Returns the output of the process; empty if it would be too long."""
    text = json.dumps(between(*json.loads(pair))).encode()
    return text if len(text) <= LARGEST * len(pair) else b""


if __name__ == "__main__":
    # Requests that are being served meanwhile come first.
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.buffer.write(_answer(sys.stdin.buffer.read()))
