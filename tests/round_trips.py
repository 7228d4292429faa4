"""A proxy between the service and PostgreSQL that counts round trips."""

import socket
import threading
from contextlib import suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo

# A complete Flush message: its type and its length (PostgreSQL's frontend/backend protocol).
FLUSH = b"H\x00\x00\x00\x04"


class RoundTrips:
    """A proxy in front of a PostgreSQL server.

    Counts a round trip whenever the client sends work after the server has sent something: what a client
    sends without waiting for a response in between travels together. A message that only asks for the
    rest of a response (Flush) is not work.
    """

    def __init__(self, conninfo: str) -> None:
        parts = conninfo_to_dict(conninfo)
        host, port = str(parts["host"]), int(str(parts.get("port") or 5432))
        self.target = (f"{host}/.s.PGSQL.{port}", None) if host.startswith("/") else (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.conninfo = make_conninfo(
            conninfo, host="127.0.0.1", port=self.listener.getsockname()[1], sslmode="disable"
        )
        self.count = 0
        self.last = "server"
        self.lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def reset(self) -> None:
        with self.lock:
            self.count = 0

    def close(self) -> None:
        self.listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                path, port = self.target
                if port is None:
                    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    server.connect(path)
                else:
                    server = socket.create_connection((path, port))
                for pair in ((client, server, "client"), (server, client, "server")):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, who: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self.lock:
                    if who == "server":
                        self.last = who
                    elif data.replace(FLUSH, b""):
                        self.count += self.last == "server"
                        self.last = who
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


SAID = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
GOODBYE = b"E" + (len(SAID) + 4).to_bytes(4) + SAID


class LastWords(RoundTrips):
    """When ``wanted``, ends the session between the response to a command and ReadyForQuery.

    :param command: the server's tag for the completed command: ``COMMIT``, ``SELECT 1``
    """

    wanted = False

    def __init__(self, conninfo: str, command: str) -> None:
        tag = command.encode() + b"\0"
        self.done = b"C" + (len(tag) + 4).to_bytes(4) + tag
        super().__init__(conninfo)

    def _copy(self, source: socket.socket, sink: socket.socket, who: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                before, done, _ = data.partition(self.done)
                if self.wanted and done:
                    self.wanted = False
                    sink.sendall(before + done + GOODBYE)
                    break
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
