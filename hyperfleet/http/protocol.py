"""How a connection reads requests: within a time and a size, which the server itself leaves open."""

import array
import asyncio
import contextlib
import fcntl
import http
import re
import termios
import threading
from collections.abc import Callable
from typing import Any, cast

import httptools
import uuid_utils
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.http.problems import render
from hyperfleet.observe.log import trace_id
from hyperfleet.settings.catalogue import Settings

# The layer inside answers a body that is late in a better way; this one ends who does not listen.
GRACE = 2.0
# Seconds in which a client may answer to the end of a TLS connection, or send its request on one that
# has come too late.
GOODBYE = 0.5
# Seconds in which a client that is refused may finish what it sends: it would miss the answer if the
# connection closed before.
LINGER = 2.0
# Methods whose operations all have a body.
WRITING = ("POST", "PUT", "PATCH")
# What a Host header may name: a host and a port, or nothing (RFC 9112, 3.2; RFC 3986, 3.2.2).
HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[\w.~:%-]+\])(?::\d*)?")
# What says where a request ends.
FRAMING = (b"content-length", b"transfer-encoding")


class _Joined:
    """A transport that sends the head of an answer together with the beginning of its body: to send
    each on its own takes a tenth of all that a small answer takes.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop = transport, loop
        self.held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        """Sends what was held back, and this; or holds it back until the loop comes round."""
        if self.held:
            held, self.held = self.held, b""
            self.transport.write(held + data)
        else:
            self.held = data
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what was held back, unless the client has gone meanwhile."""
        held, self.held = self.held, b""
        if held and not self.transport.is_closing():
            self.transport.write(held)

    def close(self) -> None:
        """Closes the connection when all is sent."""
        self.flush()
        self.transport.close()

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet."""
        return self.transport.get_write_buffer_size() + len(self.held)


class Protocol(HttpToolsProtocol):
    """The server's protocol, with limits.

    :param settings: what a request may cost
    :param refused: told of what was refused before it was a request: the client's address and the status
    :param leaving: set once the server ends
    :param begun: set before, as soon as the service is asked to stop
    """

    def __init__(
        self,
        *args: Any,
        settings: Settings,
        refused: Callable[[str, int], object],
        leaving: asyncio.Event,
        begun: threading.Event,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.tell_refused = refused
        self.leaving, self.begun = leaving, begun
        self.deadline: asyncio.TimerHandle | None = None
        self.in_head = True
        self.head_size = 0
        # Bytes since the last of a body that are none of it.
        self.beside = 0
        # Whether the parser is told once more what a head has said.
        self.repeating = False
        self.refused = False
        self.stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first request."""
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self._start_clock()
        if self.leaving.is_set():
            # It was being accepted when all others were told. What it was made for may be on its way.
            self.loop.call_later(GOODBYE, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        self._stop_clock()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Passes on what belongs to a request that is within its limits."""
        if self.refused:
            return
        self._start_clock()
        self._unset_keepalive_if_required()
        if self.in_head:
            self.head_size += len(data)
        else:
            self.beside += len(data)
        self._parse(data)
        # A head that is complete is measured inside, where the answer is like all others.
        size = self.head_size if self.in_head else self.beside
        if size > self.settings.max_header_size and not self.transport.is_closing():
            self._refuse(Problem(errors.HEADERS_TOO_LARGE))

    def _parse(self, data: bytes) -> None:
        """Reads; what asks for another protocol is a request like all others (RFC 9110, 7.8)."""
        left = memoryview(data)
        try:
            while left:
                try:
                    self.parser.feed_data(left)
                    return
                except httptools.HttpParserUpgrade as asked:
                    left = left[asked.args[0] :]
                    self._stay()
        except httptools.HttpParserError as error:
            said = error.__context__
            self._refuse(said if isinstance(said, Problem) else Problem(errors.BAD_REQUEST))

    def _stay(self) -> None:
        """Has the body read of a request that asks for another protocol. Its own parser leaves that to
        the other, so that a body would be taken for the next request.
        """
        framing = (b"%s: %s\r\n" % one for one in self.headers if one[0] in FRAMING)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.repeating = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))

    def on_message_begin(self) -> None:
        """A request begins, maybe within the bytes that ended the one before."""
        if not self.repeating:
            self._start_clock()
            super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is read; what comes after a body is none (RFC 9110, 6.5.1), and not kept."""
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is read."""
        if self.repeating:
            self.repeating = False
            return
        old = self.parser.get_http_version() == "1.0"
        if old:
            # It does not know that it waits for anything (RFC 9110, 10.1.1).
            self.expect_100_continue = False
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not (hosts or old):
            # Whoever is in between may have gone by another than is read here (RFC 9112, 3.2).
            message = f"The request has {len(hosts)} Host headers; it must have one."
            raise Problem(errors.BAD_REQUEST, message)
        if hosts and not HOST.fullmatch(hosts[0]):
            raise Problem(errors.BAD_REQUEST, "The Host header must name a host, and may name a port.")
        # Raises for an address that is none, which is a fault of the head.
        super().on_headers_complete()
        self.in_head = False
        if self.leaving.is_set() or self.begun.is_set():
            # Who comes again comes to another; the end would meet the request on its way otherwise.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body is read."""
        self.beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is read whole."""
        if self.parser.should_upgrade():
            # Its body is not.
            return
        self._stop_clock()
        self.in_head, self.head_size, self.beside = True, 0, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not take what it is sent as fast as it is sent."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """It has taken enough."""
        super().resume_writing()
        if self.stuck is not None:
            self.stuck.cancel()
            self.stuck = None

    def _watch_taking(self) -> None:
        self.stuck = self.loop.call_later(self.settings.write_timeout, self._end_stuck, self._untaken())

    def _untaken(self) -> int:
        """Bytes that the client has not confirmed: of the kernel too, which holds megabytes."""
        held = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        return int(self.transport.get_write_buffer_size() + held[0])

    def _end_stuck(self, left: int) -> None:
        if self._untaken() < left:
            self._watch_taking()
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """Lets a request under way end; a client that is idle is not waited for to say goodbye, as TLS
        would.
        """
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(GOODBYE, self.transport.abort)

    def _start_clock(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.settings.read_timeout, self._late)

    def _stop_clock(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _late(self) -> None:
        self.deadline = None
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or (self.in_head and answering):
            # It is the service that is slow, with what came before.
            self._start_clock()
        elif not self.in_head:
            self.loop.call_later(GRACE, self._end_late_body)
        elif self.head_size:
            self._refuse(Problem(errors.TOO_SLOW))
        else:
            # Opened and never used.
            self.transport.close()

    def _end_late_body(self) -> None:
        if not self.in_head:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answers without the application, and listens for a moment, without keeping what comes."""
        if self.refused:
            return
        self.refused = True
        self._stop_clock()
        within = self._reads_body()
        if within:
            # The rest of the body never comes: nobody is to wait for it, nor to answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self.cycle is not None and not self.cycle.response_complete:
            # Nothing may come between the parts of an answer to what came before.
            self.cycle.keep_alive = False
            return
        elif not self.in_head:
            # It has its answer.
            self.loop.call_later(LINGER, self.transport.close)
            return
        token = trace_id.set(str(uuid_utils.uuid7()))
        body, headers = render(problem, "", "")
        headers |= {
            "content-length": str(len(body)),
            "x-request-id": trace_id.get(),
            "connection": "close",
        }
        status = http.HTTPStatus(problem.entry.status)
        if not within:
            self.tell_refused(self.client[0] if self.client else "", status.value)
        trace_id.reset(token)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self.transport.write(head.encode() + body)
        self.loop.call_later(LINGER, self.transport.close)

    def _reads_body(self) -> bool:
        """Whether a request has begun that does nothing before its body is whole, which it is not."""
        cycle = self.cycle
        return (
            cycle is not None
            and cycle.more_body
            and not cycle.response_started
            and not self.pipeline
            and cycle.scope["method"] in WRITING
        )
