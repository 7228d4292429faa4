"""The log: one line for each event, with the id of the request that it belongs to."""

import logging
import time
from contextvars import ContextVar

from hyperfleet.auth import identity

# The id of the request at hand, for log lines and errors.
trace_id: ContextVar[str] = ContextVar("trace_id", default="-")

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(trace_id)s %(caller)s] %(message)s"

# Libraries that tell more than an operator wants to know.
CHATTY = ("yoyo.migrations", "connexion", "uvicorn.error", "asyncio", "psycopg.pool")


class _TraceFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.trace_id = trace_id.get()
        record.caller = identity.current.get() or "-"
        return True


class _Formatter(logging.Formatter):
    """Writes the time of each second once: requests come by the thousand."""

    second = (0, "")

    def formatTime(  # noqa: N802 (the name is of the standard library)
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """``2025-11-17 15:04:05,123``, local time."""
        seconds = int(record.created)
        if seconds != self.second[0]:
            self.second = seconds, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
        return f"{self.second[1]},{int(record.msecs):03d}"


def configure(level: str) -> None:
    """Logs to stderr what is at least of this level: debug, info, warning or error."""
    # What no line shows is not looked up for each (Python's "Logging HOWTO", on optimization).
    logging._srcfile = None
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, name, False)
    handler = logging.StreamHandler()
    handler.addFilter(_TraceFilter())
    handler.setFormatter(_Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
    # It warns of a pipeline that an error ended; the error itself says more.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
