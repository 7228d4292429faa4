"""Work that would hold up all others, in a process of its own that a module is the program of."""

import asyncio
import logging
import sys

logger = logging.getLogger(__name__)


async def answer(
    module: str, *arguments: str, given: bytes = b"", seconds: float, quiet: bool = False
) -> bytes:
    """What the process writes; empty where it fails, or can't be started.

    :param given: what it reads
    :param quiet: whether nobody is to hear of what it complains about
    Raises TimeoutError, and ends it, when it takes longer than so many seconds.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", module, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL if quiet else None,
            # A Ctrl-C in the terminal is for the service.
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
