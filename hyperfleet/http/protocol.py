"""The HTTP protocol of a connection, with the limits of time and size that uvicorn lacks."""

import array
import asyncio
import contextlib
import fcntl
import re
import termios
import threading
from collections.abc import Callable
from typing import Any, cast

import httptools
import uuid_utils
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from hyperfleet import errors
from hyperfleet.auth.identity import id_of, request_id
from hyperfleet.errors import Problem
from hyperfleet.http.aside import ASIDE, Aside
from hyperfleet.http.problems import encoded, render
from hyperfleet.settings.catalogue import Settings

# Seconds after which a connection with a late body is closed. The limits layer sends a better answer
# before; this is for clients that do not react to it.
GRACE = 2.0
# Seconds for a client to answer the closing of a TLS connection, or to send its request on a connection
# that was accepted too late.
GOODBYE = 0.5
# Seconds for a refused client to finish sending; if closed earlier, it would miss the response.
LINGER = 2.0
# Bytes of a body that is sent without being joined with its head.
LARGE = 65_536
# Methods whose operations all have a body.
WRITING = ("POST", "PUT", "PATCH")
# What a Host header may name: a host and a port, or nothing (RFC 9112, 3.2; RFC 3986, 3.2.2).
HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[\w.~:%-]+\])(?::\d*)?")
NOT_ASCII = re.compile(rb"[\x80-\xff]")
# The headers that determine where a request ends.
FRAMING = (b"content-length", b"transfer-encoding")


class _Joined:
    """A transport that sends the head of a response together with the beginning of its body.

    Sending them separately takes a tenth of the total time of a small response.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop = transport, loop
        self.held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        """Sends what was held back together with this, or holds this back until the loop runs."""
        if self.held:
            held, self.held = self.held, b""
            # Joining them would copy a large body, which takes longer than sending them separately.
            self.transport.writelines([held, data] if len(data) > LARGE else [held + data])
        else:
            self.held = data
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what was held back, unless the client has gone in the meantime."""
        held, self.held = self.held, b""
        if held and not self.transport.is_closing():
            self.transport.write(held)

    def close(self) -> None:
        """Closes the connection once everything is sent."""
        self.flush()
        self.transport.close()

    def get_write_buffer_size(self) -> int:
        """Returns the number of bytes that have not been sent yet."""
        return self.transport.get_write_buffer_size() + len(self.held)


def _encoded(head: bytes) -> bytes:
    """Returns the beginning of a request with its target percent-encoded, as its parser demands.

    Shells and Go's clients send the bytes that they were given; header fields may have any.
    """
    line, end, rest = head.partition(b"\r\n")
    if not end:
        # Longer than one packet, or no request at all.
        return head
    return NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], line) + end + rest


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, with limits.

    :param settings: the limits of a request
    :param refused: called with the client's address and the status if input is refused before it becomes
        a request
    :param leaving: set once the server stops
    :param begun: set before that, as soon as the service is asked to stop
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
        # Bytes received since the last part of a body that do not belong to it.
        self.beside = 0
        # Whether a new parser is being fed a head that has already been read.
        self.repeating = False
        self.refused = False
        self.stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first request."""
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self._start_clock()
        if self.leaving.is_set():
            # Accepted while the others were told to close. Its first request may be on the way.
            self.loop.call_later(GOODBYE, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks, and tells a request that waits for its turn."""
        self._stop_clock()
        self.resume_writing()
        super().connection_lost(exc)
        scope: Any = self.cycle.scope if self.cycle is not None else {}
        aside: Aside | None = scope.get(ASIDE)
        if aside is not None and aside.gone is not None:
            aside.gone()

    def data_received(self, data: bytes) -> None:
        """Parses received data, as long as it is within the limits."""
        if self.refused:
            return
        self._start_clock()
        self._unset_keepalive_if_required()
        if self.in_head:
            if not self.head_size and not data.isascii():
                data = _encoded(data)
            self.head_size += len(data)
        else:
            self.beside += len(data)
        self._parse(data)
        # A complete head is measured by the limits layer, which responds like every other layer.
        size = self.head_size if self.in_head else self.beside
        if size > self.settings.max_header_size and not self.transport.is_closing():
            self._refuse(Problem(errors.HEADERS_TOO_LARGE))

    def _parse(self, data: bytes) -> None:
        """Parses data; a request to upgrade to another protocol is like any other (RFC 9110, 7.8)."""
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
            if not isinstance(said, Problem):
                # The parser of addresses takes none of 64 kB and more.
                large = len(self.url) > self.settings.max_header_size
                address = isinstance(said, httptools.HttpParserInvalidURLError)
                said = Problem(errors.HEADERS_TOO_LARGE if address and large else errors.BAD_REQUEST)
            self._refuse(said)

    def _stay(self) -> None:
        """Continues with the body of a request that asks for another protocol.

        Its parser leaves the body to that protocol, and would take it for the next request.
        """
        framing = (b"%s: %s\r\n" % one for one in self.headers if one[0] in FRAMING)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.repeating = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))

    def on_message_begin(self) -> None:
        """Starts the clock of a request, which may begin in the bytes that ended the previous one."""
        if not self.repeating:
            self._start_clock()
            super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header; a field after the body is a trailer, and dropped (RFC 9110, 6.5.1)."""
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Checks the head once it is complete, and starts the request."""
        if self.repeating:
            self.repeating = False
            return
        old = self.parser.get_http_version() == "1.0"
        if old:
            # HTTP/1.0 clients do not wait for 100 (Continue) (RFC 9110, 10.1.1).
            self.expect_100_continue = False
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not (hosts or old):
            # A proxy may have used a different Host than would be used here (RFC 9112, 3.2).
            message = f"The request has {len(hosts)} Host headers; it must have one."
            raise Problem(errors.BAD_REQUEST, message)
        if hosts and not HOST.fullmatch(hosts[0]):
            raise Problem(errors.BAD_REQUEST, "The Host header must name a host, and may name a port.")
        # Raises if the target is not a URL, while in_head still says that the head is at fault.
        super().on_headers_complete()
        self.in_head = False
        if self.leaving.is_set() or self.begun.is_set():
            # The client's next request then goes elsewhere, rather than meet this connection closing.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Passes on a part of the body."""
        self.beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the clock of a request that was read completely."""
        if self.parser.should_upgrade():
            # Its body has not been read.
            return
        self._stop_clock()
        self.in_head, self.head_size, self.beside = True, 0, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Called when the client reads more slowly than the response is sent."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Called when the client has caught up."""
        super().resume_writing()
        if self.stuck is not None:
            self.stuck.cancel()
            self.stuck = None

    def _watch_taking(self) -> None:
        self.stuck = self.loop.call_later(self.settings.write_timeout, self._end_stuck, self._untaken())

    def _untaken(self) -> int:
        """Returns how many bytes the client has not acknowledged, including the kernel's megabytes."""
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
        """Closes the connection after its request; does not wait long for an idle TLS client."""
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
            # The service is slow, with an earlier request.
            self._start_clock()
        elif not self.in_head:
            self.loop.call_later(GRACE, self._end_late_body)
        elif self.head_size:
            self._refuse(Problem(errors.TOO_SLOW))
        else:
            # The connection was never used.
            self.transport.close()

    def _end_late_body(self) -> None:
        if not self.in_head:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Sends an error without the application, then discards input until the connection closes."""
        if self.refused:
            return
        self.refused = True
        self._stop_clock()
        within = self._reads_body()
        if within:
            # The rest of the body never comes: the application must neither wait for it nor respond.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self.cycle is not None and not self.cycle.response_complete:
            # Nothing may come between the parts of the response to an earlier request.
            self.cycle.keep_alive = False
            return
        elif not self.in_head:
            # The request has been answered.
            self.loop.call_later(LINGER, self.transport.close)
            return
        # Within a request, its own, under which the application logs it.
        told = id_of(cast(Scope, self.cycle.scope)) if within else str(uuid_utils.uuid7())
        token = request_id.set(told)
        body, headers = render(problem, "", "")
        headers |= {"x-request-id": told, "connection": "close"}
        status = problem.entry.status
        if not within:
            self.tell_refused(self.client[0] if self.client else "", status)
        request_id.reset(token)
        head = b"".join(b"%b: %b\r\n" % one for one in encoded(status, headers, body))
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self.loop.call_later(LINGER, self.transport.close)

    def _reads_body(self) -> bool:
        """Returns whether the current request has done nothing yet because its body is incomplete."""
        cycle = self.cycle
        return (
            cycle is not None
            and cycle.more_body
            and not cycle.response_started
            and not self.pipeline
            and cycle.scope["method"] in WRITING
        )
