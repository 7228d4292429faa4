"""Work that would hold up everything else, done by a module in a process of its own."""

import asyncio
import logging
import sys

logger = logging.getLogger(__name__)


async def answer(
    module: str, *arguments: str, given: bytes = b"", seconds: float, quiet: bool = False
) -> bytes:
    """Returns what the process writes to stdout; empty if it fails or cannot be started.

    :param given: what it reads from stdin
    :param quiet: whether its stderr is discarded
    Raises TimeoutError, and kills the process, if it takes longer than this many seconds.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", module, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL if quiet else None,
            # A Ctrl-C in the terminal is meant for the service.
            start_new_session=True,
        )
    except OSError as error:
        logger.warning("no process for %s can be started: %s", module, error.strerror)
        return b""
    try:
        async with asyncio.timeout(seconds):
            written, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
    return written if process.returncode == 0 else b""
