"""The log: one event a line, as a JSON object or as text, with the request that it belongs to."""

import functools
import logging
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.orjson import OrjsonFormatter

from hyperfleet import __version__
from hyperfleet.auth import identity

# The id of the request at hand, for log lines and errors.
trace_id = identity.request_id
# The id of the trace, where traces are made: what errors refer to then.
traced: ContextVar[str] = ContextVar("traced", default="")
# Where the code of the problem goes that a request is answered with.
code: ContextVar[list[str] | None] = ContextVar("code", default=None)
# The trace and the span that it belongs to (W3C Trace Context), where those are known.
span: ContextVar[tuple[str, str] | None] = ContextVar("span", default=None)

TEXT = "%(asctime)s %(levelname)s %(name)s [%(trace_id)s %(caller)s] %(message)s"

# Libraries that tell more than an operator wants to know.
CHATTY = ("yoyo.migrations", "connexion", "uvicorn.error", "asyncio")
# From the least to the most that is told.
LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
HIDDEN = "***"
# What an operator asks for with a signal: to be told more, or less.
STEPS: dict[int, int] = {signal.SIGUSR1: 1, signal.SIGUSR2: -1}

logger = logging.getLogger(__name__)


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.trace_id = trace_id.get()
        record.caller = identity.current.get() or "-"
        return True


# The text of each second is made once: requests come by the thousand.
@functools.lru_cache(maxsize=1)
def _local(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@functools.lru_cache(maxsize=1)
def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


class _Text(logging.Formatter):
    """Lines for people.

    :param secrets: what is hidden
    """

    def __init__(self, secrets: "Secrets") -> None:
        super().__init__(TEXT)
        self.secrets = secrets

    def formatTime(  # noqa: N802 (the name is of the standard library)
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """``2025-11-17 15:04:05,123``, local time."""
        return f"{_local(int(record.created))},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (of the standard library)
        """A message is one line, whatever a client has put into it."""
        record.message = record.message.replace("\n", "\\n").replace("\r", "\\r")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line; below it, where an error came from."""
        text = super().format(record)
        return text if hasattr(record, "status") else self.secrets.hide(text)


class _Json(OrjsonFormatter):
    """Lines for machines. What is the same for each is looked up once: the library's own way through
    formats, names and defaults takes as long as all else that is done for a line.

    :param secrets: what is hidden
    """

    def __init__(self, secrets: "Secrets") -> None:
        super().__init__()
        self.secrets = secrets
        self.own = {"component": "api", "version": __version__, "hostname": socket.gethostname()}
        # What any record has, or is said elsewhere in a line.
        self.known = {*self.reserved_attrs, "trace_id", "caller"}

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Puts the members of a line into ``log_data``, in their order."""
        line, known = log_data, self.known
        line["timestamp"] = f"{_utc(int(record.created))}.{int(record.msecs):03d}Z"
        line["level"] = record.levelname.lower()
        line["logger"] = record.name
        line["message"] = record.message
        line.update(self.own)
        line.update(message_dict)
        line.update({name: value for name, value in record.__dict__.items() if name not in known})
        request, caller = record.__dict__.get("trace_id", "-"), record.__dict__.get("caller", "-")
        if request != "-":
            line["request_id"] = request
        if caller != "-":
            line["identity"] = caller
        where = span.get()
        if where is not None:
            line["trace_id"], line["span_id"] = where

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The members as they may be shown."""
        if "status" in log_data:
            # Of a request: what a client has put into it is hidden already.
            return log_data
        return {name: self.secrets.value(name, value) for name, value in log_data.items()}


class _Lines(logging.Handler):
    """Writes each line at once to a pipe or a file, and drops it where nobody reads or there is no room:
    who does not take the log must not stop the service.

    :param pipe: whether it is one
    """

    def __init__(self, fd: int, *, pipe: bool) -> None:
        super().__init__()
        # A pipe as a description of its own, so that nobody else's writes change; a file as it is, since
        # all who write to it go on behind each other.
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK) if pipe else os.dup(fd)
        self.why = "nobody read them" if pipe else "they could not be written"
        self.lost = 0
        self.cut = False

    def close(self) -> None:
        """Lets go of the pipe or the file."""
        os.close(self.fd)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line, and before it how many were lost."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if self.lost:
            told = "%d lines were lost: %s"
            lost = logging.LogRecord(__name__, logging.WARNING, "", 0, told, (self.lost, self.why), None)
            self.filter(lost)
            if not self._write(self.format(lost)):
                self.lost += 1
                return
            self.lost = 0
        if not self._write(line):
            self.lost += 1

    def _write(self, line: str) -> bool:
        data = (b"\n" if self.cut else b"") + f"{line}\n".encode(errors="backslashreplace")
        try:
            written = os.write(self.fd, data)
        except OSError:
            return False
        # A line of more than 4 kB may have found less room than it needs.
        self.cut = written < len(data)
        return not self.cut


def _handler(stream: TextIO) -> logging.Handler:
    try:
        mode = os.fstat(stream.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
            return _Lines(stream.fileno(), pipe=stat.S_ISFIFO(mode))
    except (OSError, ValueError):
        # No descriptor, or a pipe of somebody else's.
        pass
    return logging.StreamHandler(stream)


class Secrets:
    """What must not be in a log.

    :param names: what it is called, such as ``password``; also as a part of a longer name
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(name.lower() for name in names)
        some = "|".join(map(re.escape, self.names)) or r"(?!)"
        self.said = re.compile(rf"""(?i)(\w*(?:{some})\w*["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&]+)""")
        self.token = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}")

    def hide(self, text: str) -> str:
        """The text without the values that are called so, and without tokens."""
        return self.said.sub(rf"\1{HIDDEN}", self.token.sub(rf"\1{HIDDEN}", text))

    def value(self, name: str, value: Any) -> Any:
        """What may be shown of a member of a line."""
        if any(one in name.lower() for one in self.names):
            return HIDDEN
        return self.hide(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=1000)
def shown(text: str) -> str:
    """What may be shown of a text that a client has sent."""
    return _secrets.hide(text)


# What is hidden, as the log was configured last.
_secrets = Secrets(())


def configure(
    level: str, form: str = "text", masked: Sequence[str] = (), stream: TextIO | None = None
) -> None:
    """Logs what is at least of this level: debug, info, warning or error.

    :param form: ``json`` or ``text``; empty: text on a terminal
    :param masked: names of what must not be in the log
    :param stream: where it goes; stderr if not given
    """
    # What no line shows is not looked up for each (Python's "Logging HOWTO", on optimization).
    logging._srcfile = None
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, name, False)
    stream = stream or sys.stderr
    handler = _handler(stream)
    handler.addFilter(_Context())
    global _secrets  # noqa: PLW0603 (there is one log)
    secrets = _secrets = Secrets(masked)
    shown.cache_clear()
    text = form == "text" or (not form and stream.isatty())
    handler.setFormatter(_Text(secrets) if text else _Json(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _quieten()


def _quieten() -> None:
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
    # It warns of a pipeline that an error ended; the error itself says more.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # And of each try of a database that is away, which the service says once.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


def tell(steps: int) -> None:
    """Tells more, or with a negative number less, from now on, as far as there are levels."""
    now = LEVELS.index(logging.root.level) + steps
    level = LEVELS[min(max(now, 0), len(LEVELS) - 1)]
    logging.root.setLevel(level)
    _quieten()
    # Whatever the level is, so that it can be seen that it was changed.
    name = logging.getLevelName(level).lower()
    logger.log(max(level, logging.WARNING), "the log level is now %s", name)


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.root.handlers)
