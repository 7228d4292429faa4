"""The log: one event per line, as a JSON object or as text, with the request that it belongs to."""

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

# The id of the trace if tracing is enabled; errors then refer to it.
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
# A list for the code of the problem that answers the request.
code: ContextVar[list[str] | None] = ContextVar("code", default=None)
# The trace and the span of the request (W3C Trace Context), if known.
span: ContextVar[tuple[str, str] | None] = ContextVar("span", default=None)

TEXT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s %(caller)s] %(message)s"

# Libraries that log more than an operator wants to know.
CHATTY = ("yoyo.migrations", "connexion", "uvicorn.error", "asyncio")
# From the least to the most verbose.
LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
HIDDEN = "***"
# The signals with which an operator makes the log more or less verbose.
STEPS: dict[int, int] = {signal.SIGUSR1: 1, signal.SIGUSR2: -1}

logger = logging.getLogger(__name__)


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = identity.request_id.get()
        record.caller = identity.current.get() or "-"
        return True


# The text of each second is cached, since requests come by the thousand.
@functools.lru_cache(maxsize=1)
def _local(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@functools.lru_cache(maxsize=1)
def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


class _Text(logging.Formatter):
    """Formats lines for people.

    :param secrets: what to mask
    """

    def __init__(self, secrets: "Secrets") -> None:
        super().__init__(TEXT)
        self.secrets = secrets

    def formatTime(  # noqa: N802 (the name is of the standard library)
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """Returns the local time, such as ``2025-11-17 15:04:05,123``."""
        return f"{_local(int(record.created))},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (of the standard library)
        """Returns the message as one line, whatever a client has put into it."""
        record.message = record.message.replace("\n", "\\n").replace("\r", "\\r")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, followed by the traceback of an error."""
        text = super().format(record)
        return text if hasattr(record, "status") else self.secrets.hide(text)


class _Json(OrjsonFormatter):
    """Formats lines for machines.

    What all lines share is computed once: the library's way takes as long as all else for a line.

    :param secrets: what to mask
    """

    def __init__(self, secrets: "Secrets") -> None:
        super().__init__()
        self.secrets = secrets
        self.own = {"component": "api", "version": __version__, "hostname": socket.gethostname()}
        # Attributes that every record has, or that a line has elsewhere.
        self.known = {*self.reserved_attrs, "request_id", "caller"}

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Adds the members of a line to ``log_data``, in order."""
        line, known = log_data, self.known
        line["timestamp"] = f"{_utc(int(record.created))}.{int(record.msecs):03d}Z"
        line["level"] = record.levelname.lower()
        line["logger"] = record.name
        line["message"] = record.message
        line.update(self.own)
        line.update(message_dict)
        line.update({name: value for name, value in record.__dict__.items() if name not in known})
        request, caller = record.__dict__.get("request_id", "-"), record.__dict__.get("caller", "-")
        if request != "-":
            line["request_id"] = request
        if caller != "-":
            line["identity"] = caller
        where = span.get()
        if where is not None:
            line["trace_id"], line["span_id"] = where

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Returns the members with secrets masked."""
        if "status" in log_data:
            # The line of a request: what comes from the client is masked already.
            return log_data
        return {name: self.secrets.value(name, value) for name, value in log_data.items()}


class _Lines(logging.Handler):
    """Writes each line at once to a pipe or a file, or drops it if there is no reader or no space.

    A log that is not read must not stop the service.

    :param pipe: whether it is a pipe
    """

    def __init__(self, fd: int, *, pipe: bool) -> None:
        super().__init__()
        # A pipe is opened anew, so that O_NONBLOCK does not affect others; a file is duplicated, since
        # those that share its offset append after each other.
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK) if pipe else os.dup(fd)
        self.why = "nobody read them" if pipe else "they could not be written"
        self.lost = 0
        self.cut = False

    def close(self) -> None:
        """Closes the pipe or the file."""
        os.close(self.fd)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line, preceded by the number of lines lost before it, if any."""
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
        # A line of more than 4 kB may have been written in part.
        self.cut = written < len(data)
        return not self.cut


def _handler(stream: TextIO) -> logging.Handler:
    try:
        mode = os.fstat(stream.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
            return _Lines(stream.fileno(), pipe=stat.S_ISFIFO(mode))
    except (OSError, ValueError):
        # There is no descriptor, or the pipe belongs to another user.
        pass
    return logging.StreamHandler(stream)


class Secrets:
    """What must not appear in the log.

    :param names: the names of secrets, such as ``password``; they also match as part of a longer name
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(name.lower() for name in names)
        some = "|".join(map(re.escape, self.names)) or r"(?!)"
        self.said = re.compile(rf"""(?i)(\w*(?:{some})\w*["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&]+)""")
        self.token = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}")

    def hide(self, text: str) -> str:
        """Returns the text without the values of secrets, and without tokens."""
        return self.said.sub(rf"\1{HIDDEN}", self.token.sub(rf"\1{HIDDEN}", text))

    def value(self, name: str, value: Any) -> Any:
        """Returns a member's value, masked if need be."""
        if any(one in name.lower() for one in self.names):
            return HIDDEN
        return self.hide(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=1000)
def without_secrets(text: str) -> str:
    """Returns a text from a client with secrets masked."""
    return _secrets.hide(text)


# What is masked, by the last configuration of the log.
_secrets = Secrets(())


def configure(
    level: str, form: str = "text", masked: Sequence[str] = (), stream: TextIO | None = None
) -> None:
    """Logs events of this level and above: debug, info, warning or error.

    :param form: ``json`` or ``text``; empty means text on a terminal, JSON otherwise
    :param masked: names of secrets that must not appear in the log
    :param stream: where the log goes; stderr by default
    """
    # Values that no line shows need not be collected (Python's "Logging HOWTO", on optimization).
    logging._srcfile = None
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, name, False)
    stream = stream or sys.stderr
    handler = _handler(stream)
    handler.addFilter(_Context())
    global _secrets  # noqa: PLW0603 (there is one log)
    secrets = _secrets = Secrets(masked)
    without_secrets.cache_clear()
    text = form == "text" or (not form and stream.isatty())
    handler.setFormatter(_Text(secrets) if text else _Json(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _quieten()


def _quieten() -> None:
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
    # psycopg warns about a pipeline that an error ended; the error itself says more.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # Its pool warns about each attempt to reach a database that is away; the service says so once.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


def change_level(steps: int) -> None:
    """Makes the log more verbose by so many levels, or less so if negative, as far as there are any."""
    now = LEVELS.index(logging.root.level) + steps
    level = LEVELS[min(max(now, 0), len(LEVELS) - 1)]
    logging.root.setLevel(level)
    _quieten()
    # Logged at whatever level is enabled, so that the change can be seen.
    name = logging.getLevelName(level).lower()
    logger.log(max(level, logging.WARNING), "the log level is now %s", name)


def is_json() -> bool:
    """Returns whether lines are JSON objects."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.root.handlers)
