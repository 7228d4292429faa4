"""An issuer of tokens like real ones: key pairs, and a server that publishes the public keys."""

import ipaddress
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from jose import jwk, jwt

from hyperfleet.watched import LOOK_EVERY

PRIVATE = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1}


class KeyPair:
    """A key pair for an algorithm, with an id."""

    def __init__(self, kid: str, algorithm: str = "RS256", bits: int = 2048) -> None:
        self.kid = kid
        self.algorithm = algorithm
        if algorithm.startswith("RS"):
            self.key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        else:
            self.key = ec.generate_private_key(CURVES[algorithm]())
        self.private = self.key.private_bytes(*PRIVATE).decode()
        self.public = self.key.public_key().public_bytes(*PUBLIC).decode()
        # Reading and checking a key takes a hundred times as long as signing.
        self.signer = jwk.construct(self.private, algorithm)

    def jwk(self, **members: Any) -> dict[str, Any]:
        return {
            **jwk.construct(self.public, self.algorithm).to_dict(),
            "kid": self.kid,
            "use": "sig",
            **members,
        }

    def token(self, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Returns a valid access token, with these claims changed; None omits one."""
        claims = {**good(), **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.signer, self.algorithm, {"kid": self.kid, **(headers or {})})


def good() -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": "https://issuer.example",
        "aud": "fleet",
        "sub": "f:1234:alice",
        "typ": "Bearer",
        "iat": now,
        "exp": now + 600,
        "email": "alice@example.com",
        "preferred_username": "alice",
    }


@cache
def key_pair(kid: str = "one", algorithm: str = "RS256", bits: int = 2048) -> KeyPair:
    """Returns the same key pair for the same arguments, since making one takes a while."""
    return KeyPair(kid, algorithm, bits)


def key_set(*pairs: KeyPair) -> dict[str, Any]:
    return {"keys": [pair.jwk() for pair in pairs]}


Answer = tuple[int, dict[str, str], bytes]


def change(file: Path, text: str | None) -> None:
    """Writes or removes a file that a service watches, and waits until that takes effect."""
    file.unlink() if text is None else file.write_text(text)
    time.sleep(LOOK_EVERY)


class _Server(ThreadingHTTPServer):
    # By default it is 5, and a client that finds the queue full tries again after a second.
    request_queue_size = 100


class JsonServer:
    """A small HTTP server; ``answer`` makes its responses, ``asked`` keeps the requests."""

    def __init__(self, answer: Callable[[str, str, bytes, Any], Answer] | None = None) -> None:
        self.answer = answer or (lambda *_: (404, {}, b""))
        self.asked: list[tuple[str, str, bytes, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.command, self.path, body, dict(self.headers)))
                status, headers, content = outer.answer(self.command, self.path, body, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> "JsonServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class KeyServer(JsonServer):
    """Publishes ``pairs``, or ``broken`` instead, after ``delay`` seconds; all may be changed."""

    def __init__(self, *pairs: KeyPair) -> None:
        self.pairs = list(pairs)
        self.broken: Answer | None = None
        self.delay = 0.0
        super().__init__(self.publish)

    def publish(self, *_: Any) -> Answer:
        content = json.dumps(key_set(*self.pairs)).encode()
        time.sleep(self.delay)
        return self.broken or (200, {"Content-Type": "application/json"}, content)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Writes a self-signed certificate for localhost and its key; returns their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "tls.crt").write_bytes(signed.public_bytes(pem))
    (folder / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "tls.crt", folder / "tls.key"
