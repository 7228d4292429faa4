"""Connections: TLS, headers for browsers, CORS, and limits on size and time."""

import json
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from conftest import Api
from cryptography.hazmat.primitives import serialization
from issuer import key_pair, key_set, self_signed
from process import Serving, run

from hyperfleet import errors
from hyperfleet.contract import document as contract
from hyperfleet.http.certificate import Certificate
from hyperfleet.settings.catalogue import CONSOLES

pytestmark = pytest.mark.slow

Start = Callable[..., Api]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), 20) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_the_api_is_served_over_tls(service: Start, files: tuple[Path, Path]) -> None:
    cert, key = files
    api = service(enable_https=True, https_cert_file=cert, https_key_file=key)
    api.verify = str(cert)
    assert api.url.startswith("https://")
    response = api.get("/clusters")
    assert response.status_code == 200
    assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(api.base + "/clusters", timeout=5)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(api.base.replace("https:", "http:") + "/clusters", timeout=5)


@pytest.mark.parametrize(
    ("version", "works"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)]
)
def test_old_versions_of_tls_are_refused(
    service: Start, files: tuple[Path, Path], version: str, works: bool
) -> None:
    cert, key = files
    api = service(enable_https=True, https_cert_file=cert, https_key_file=key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cert)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with connected(api.url) as connection:
        if works:
            context.wrap_socket(connection, server_hostname="localhost").close()
        else:
            with pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(connection, server_hostname="localhost")


def test_tls_is_enabled_for_each_listener_separately(database: str, files: tuple[Path, Path]) -> None:
    cert, key = files
    given = (
        "--no-auth",
        "--database-url",
        database,
        f"--https-cert-file={cert}",
        f"--https-key-file={key}",
    )
    with Serving(*given, "--enable-health-check-https", "--enable-metrics-https=true") as server:
        assert requests.get(server.url + "/api/hyperfleet", timeout=5).status_code == 200
        for url, path in ((server.health, "/healthz"), (server.metrics, "")):
            assert url.startswith("https://")
            assert requests.get(url + path, verify=str(cert), timeout=5).status_code == 200
    with Serving(*given, "--enable-https") as server:
        assert (
            requests.get(server.url + "/api/hyperfleet", verify=str(cert), timeout=5).status_code == 200
        )
        assert requests.get(server.health + "/healthz", timeout=5).status_code == 200
        assert requests.get(server.metrics, timeout=5).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a part"])
def test_a_connection_without_a_complete_client_hello_is_closed(
    service: Start, files: tuple[Path, Path], begun: bytes
) -> None:
    cert, key = files
    api = service(enable_https=True, https_cert_file=cert, https_key_file=key, read_timeout=1)
    with connected(api.url) as connection:
        start = time.monotonic()
        connection.sendall(begun)
        assert read_all(connection) == b""
        assert 0.8 < time.monotonic() - start < 10


def test_serve_refuses_tls_with_missing_or_swapped_files(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    cert, key = files
    for given in ((), (f"--https-cert-file={cert}",)):
        done = run("serve", "--no-auth", "--enable-https", *given)
        assert done.returncode == 2
        assert "--https-cert-file and --https-key-file" in done.stdout
    done = run(
        "serve", "--no-auth", "--enable-https", f"--https-cert-file={key}", f"--https-key-file={cert}"
    )
    assert done.returncode == 2
    assert str(key) in done.stdout


def processes(first: int) -> list[int]:
    """Returns the ids of the processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{first}/task/{first}/children").read_text().split()]


def served_certificate(url: str) -> bytes:
    """Returns the certificate that a new connection gets."""
    where = urlsplit(url)
    pem = ssl.get_server_certificate((str(where.hostname), int(where.port or 0)), timeout=20)
    return ssl.PEM_cert_to_DER_cert(pem)


def test_a_renewed_certificate_is_used_by_all_workers_and_listeners_without_a_restart(
    database: str, tmp_path: Path
) -> None:
    """The link to the folder is swapped, as for a Secret that Kubernetes has mounted."""
    folders = [tmp_path / name for name in ("old", "broken", "new")]
    ders = []
    for folder in folders:
        folder.mkdir()
        cert, _ = self_signed(folder)
        ders.append(ssl.PEM_cert_to_DER_cert(cert.read_text()))
    (folders[1] / "tls.key").write_bytes((folders[2] / "tls.key").read_bytes())

    def swap(folder: Path) -> None:
        (tmp_path / "next").symlink_to(folder)
        (tmp_path / "next").replace(tmp_path / "data")

    swap(folders[0])
    given = (
        *("--no-auth", "--workers=2", "--database-url", database, "--enable-https"),
        *("--enable-health-check-https", "--enable-metrics-https"),
        *(f"--https-cert-file={tmp_path}/data/tls.crt", f"--https-key-file={tmp_path}/data/tls.key"),
    )
    with Serving(*given) as server, requests.Session() as kept:
        urls = [server.url] * 8 + [server.health, server.metrics]
        asked: Any = {
            "url": server.url + "/api/hyperfleet",
            "verify": str(folders[0] / "tls.crt"),
            "timeout": 20,
        }
        assert kept.get(**asked).status_code == 200
        swap(folders[1])
        time.sleep(3)
        assert {served_certificate(url) for url in urls} == {ders[0]}
        assert server.output.count("the last certificate stays in force") == 2
        swap(folders[2])
        end = time.monotonic() + 20
        while {served_certificate(url) for url in urls} != {ders[2]} and time.monotonic() < end:
            time.sleep(0.2)
        assert {served_certificate(url) for url in urls} == {ders[2]}
        # Existing connections stay open.
        assert kept.get(**asked).status_code == 200
        # A worker that replaces another one serves the connections that waited for it.
        worker = processes(server.process.pid)[-1]
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(16) as threads:
            waiting = [threads.submit(served_certificate, server.url) for _ in range(16)]
            time.sleep(0.5)
            os.kill(worker, signal.SIGKILL)
            assert {one.result() for one in waiting} == {ders[2]}


def handshake_certificate(given: ssl.SSLContext, name: str | None) -> bytes:
    """Returns the certificate that a client gets from a server with this context."""
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(back, there, server_hostname=name)
    server = given.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return client.getpeercert(binary_form=True) or b""


def test_no_handshake_fails_while_a_certificate_is_renewed(tmp_path: Path) -> None:
    ders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cert, _ = self_signed(tmp_path / name)
        ders.append(ssl.PEM_cert_to_DER_cert(cert.read_text()))

    def swap(name: str) -> None:
        (tmp_path / "next").symlink_to(tmp_path / name)
        (tmp_path / "next").replace(tmp_path / "data")

    swap("one")
    certificate = Certificate(tmp_path / "data" / "tls.crt", tmp_path / "data" / "tls.key")
    ended = threading.Event()

    def renewing() -> None:
        while not ended.wait(0.01):
            for name in ("two", "one"):
                swap(name)
                certificate.renew()

    thread = threading.Thread(target=renewing)
    thread.start()
    try:
        for _ in range(300):
            for name in ("test", None):
                assert handshake_certificate(certificate.context, name) in ders
    finally:
        ended.set()
        thread.join()
    swap("two")
    certificate.renew()
    assert {handshake_certificate(certificate.context, name) for name in ("test", None)} == {ders[1]}


def test_a_certificate_and_its_key_may_be_replaced_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    cert, key = self_signed(tmp_path)
    certificate = Certificate(cert, key)
    for files in ((cert, key), (key, cert)):
        before = handshake_certificate(certificate.context, None)
        renewed, _ = self_signed(tmp_path / "new")
        new = ssl.PEM_cert_to_DER_cert(renewed.read_text())
        for file, expected in zip(files, (before, new), strict=True):
            (tmp_path / "new" / file.name).replace(file)
            certificate.renew()
            assert handshake_certificate(certificate.context, None) == expected
    # Nor does it matter if one of them is missing for a moment.
    key.unlink()
    certificate.renew()
    assert handshake_certificate(certificate.context, None) == new


def test_a_key_with_a_passphrase_is_refused_without_a_prompt(
    database: str, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    certificate, key = files
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    arguments = ["--no-auth", f"--database-url={database}", "--enable-https"]
    arguments += [f"--https-cert-file={certificate}", f"--https-key-file={locked}"]
    for command in (["serve", "--port=0"], ["config", "--check"]):
        refused = run(*command, *arguments)
        assert refused.returncode != 0
        assert "a key with a passphrase cannot be used" in refused.stdout


def test_with_authentication_the_service_listens_on_all_addresses(database: str, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(key_set(key_pair())))
    given = ("--database-url", database, f"--jwk-cert-file={keys}")
    with Serving(*given, env={"HYPERFLEET_JWK_CERT_URL": ""}) as server:
        assert "//0.0.0.0:" in server.url
        assert "Access    bearer tokens" in server.output
        local = server.url.replace("0.0.0.0", "127.0.0.1") + "/api/hyperfleet/v1/clusters"
        assert requests.get(local, timeout=5).status_code == 401
        token = {"Authorization": f"Bearer {key_pair().token()}"}
        assert requests.get(local, headers=token, timeout=5).status_code == 200
    done = run("serve", "--database-url", database, env={"HYPERFLEET_JWK_CERT_URL": ""})
    assert done.returncode == 2
    assert "no keys to verify them with" in done.stdout


def test_responses_carry_the_security_headers_for_browsers(api: Api) -> None:
    for response in (
        api.get("/clusters"),
        api.get("/nothing"),
        api.post("/clusters", json={}),
        api.get("//openapi"),
        api.options("/clusters"),
    ):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        # The contract may be cached, but must be revalidated.
        kept = "no-cache" if response.url.endswith("/openapi") else "no-store"
        assert response.headers["Cache-Control"] == kept
        assert (
            response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        )
        assert "Strict-Transport-Security" not in response.headers
        assert "Server" not in response.headers
    page = api.get("//openapi-ui/")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Frame-Options"] == "DENY"


def preflight(
    api: Api, origin: str, method: str = "PATCH", headers: str = "authorization"
) -> requests.Response:
    return api.options(
        "/clusters",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )


def test_pages_of_the_consoles_may_call_the_api(api: Api) -> None:
    assert "https://console.redhat.com" in CONSOLES
    for origin in CONSOLES:
        response = preflight(api, origin)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
        assert "PATCH" in response.headers["Access-Control-Allow-Methods"]
        assert response.headers["Access-Control-Max-Age"] == "600"
    response = api.get("/clusters", headers={"Origin": CONSOLES[0]})
    assert response.headers["Access-Control-Allow-Origin"] == CONSOLES[0]
    assert {"ETag", "Location", "X-Request-ID"} <= set(
        response.headers["Access-Control-Expose-Headers"].split(", ")
    )
    assert "Origin" in response.headers["Vary"]
    # A cache must not serve what it has got for other clients, without the header above.
    assert "Origin" in api.get("/clusters").headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in response.headers
    # Errors too, so that the page can show them.
    missing = api.get("/nothing", headers={"Origin": CONSOLES[0]})
    assert (missing.status_code, missing.headers["Access-Control-Allow-Origin"]) == (404, CONSOLES[0])


def test_pages_may_use_every_method_and_header_of_the_contract(api: Api) -> None:
    document = contract.load()
    operations = [*contract.operations(document)]
    for method in {method.upper() for _, method, _ in operations}:
        assert preflight(api, CONSOLES[0], method).status_code == 200, method
    parameters = document["components"]["parameters"].values()
    sent = {one["name"] for one in parameters if one["in"] == "header"}
    assert {"If-Match", "If-None-Match", "Hyperfleet-Position"} <= sent
    for name in (*sent, "Content-Type", "X-Request-ID"):
        assert preflight(api, CONSOLES[0], headers=f"authorization,{name.lower()}").ok, name
    assert preflight(api, CONSOLES[0], headers="x-other").status_code == 405
    answers = [*document["components"]["responses"].values()]
    answers += [one for *_, operation in operations for one in operation["responses"].values()]
    read = {name for answer in answers for name in answer.get("headers", {})}
    exposed = api.get("/clusters", headers={"Origin": CONSOLES[0]}).headers[
        "Access-Control-Expose-Headers"
    ]
    assert {*read, "Hyperfleet-Position"} <= {*exposed.split(", ")}


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "https://console.redhat.com.evil.example", "null"),
        *("http://console.redhat.com", "https://console.redhat.com:8443", "https://CONSOLE.redhat.com"),
    ],
)
def test_pages_of_other_origins_may_not_call_the_api(api: Api, origin: str) -> None:
    refused = preflight(api, origin)
    assert refused.status_code == 405
    assert refused.json()["code"] == errors.BAD_METHOD
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert "Access-Control-Allow-Origin" not in api.get("/clusters", headers={"Origin": origin}).headers


def test_the_allowed_origins_are_configurable(service: Start) -> None:
    mine = service(cors_origins=("https://mine.example",))
    assert preflight(mine, "https://mine.example").status_code == 200
    assert preflight(mine, CONSOLES[0]).status_code == 405
    assert preflight(service(cors_origins=()), CONSOLES[0]).status_code == 405


def test_a_preflight_needs_no_token(service: Start, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(key_set(key_pair())))
    api = service(no_auth=False, jwk_cert_url="", jwk_cert_file=keys)
    assert preflight(api, CONSOLES[0]).status_code == 200
    refused = api.get("/clusters", headers={"Origin": CONSOLES[0]})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == CONSOLES[0]
    assert "WWW-Authenticate" in refused.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    "headers",
    [{"X-Filler": "x" * 40_000}, {f"X-Filler-{number}": "x" * 100 for number in range(400)}],
)
def test_large_headers_are_refused(api: Api, headers: dict[str, str]) -> None:
    response = api.get("/clusters", headers=headers)
    assert (response.status_code, response.json()["code"]) == (431, errors.HEADERS_TOO_LARGE)
    # Those of earlier requests on the connection do not count.
    for _ in range(3):
        accepted = api.get("/clusters", headers={"X-Filler": "x" * 20_000})
        assert (accepted.status_code, accepted.headers.get("Connection")) == (200, None)


# The parser refuses URLs of 64 kB and more.
@pytest.mark.parametrize("size", [40_000, 70_000])
@pytest.mark.parametrize("path", ["/clusters?search=", "/clusters/"])
def test_a_long_url_is_refused_like_large_headers(api: Api, path: str, size: int) -> None:
    response = api.get(path + "x" * size)
    assert (response.status_code, response.json()["code"]) == (431, errors.HEADERS_TOO_LARGE)


def test_endless_headers_are_refused_and_the_connection_is_closed(api: Api) -> None:
    """A client that keeps sending gets a response, is read for a moment, and is disconnected."""
    with connected(api.url) as connection:
        connection.sendall(b"GET /api/hyperfleet HTTP/1.1\r\nX-Filler: ")
        start, sent = time.monotonic(), 0
        try:
            while time.monotonic() < start + 15:
                sent += connection.send(b"x" * 65536)
                time.sleep(0.01)
        except OSError:
            pass
        assert time.monotonic() - start < 10
    with connected(api.url) as connection:
        connection.sendall(b"GET /api/hyperfleet HTTP/1.1\r\nX-Filler: " + b"x" * 1_000_000)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert errors.HEADERS_TOO_LARGE.encode() in answer
    assert api.get("//api/hyperfleet").status_code == 200


def trickle(
    connection: socket.socket, first: bytes, piece: bytes, seconds: float
) -> tuple[bytes, float]:
    """Sends a piece every tenth of a second; returns what was received, and the seconds it took."""
    start = time.monotonic()
    connection.sendall(first)
    connection.settimeout(0.1)
    received = b""
    while time.monotonic() < start + seconds:
        try:
            got = connection.recv(65536)
            received += got
            if not got:
                break
        except TimeoutError:
            pass
        except OSError:
            break
        try:
            connection.sendall(piece)
        except OSError:
            break
    return received, time.monotonic() - start


HEAD = b"POST /api/hyperfleet/v1/clusters HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET /api/hyperfleet HTTP/1.1\r\nX-Filler: ", b"x"),
        (b"GET /api/hyperfleet HTTP/1.1\r\n", b"X-A: b\r\n"),
        (b"G", b""),
        (b"\r\n", b"\r\n"),
        (HEAD + b"Content-Length: 1000\r\n\r\n{", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b""),
    ],
)
def test_a_client_that_sends_too_slowly_gets_408(service: Start, first: bytes, piece: bytes) -> None:
    api = service(read_timeout=1)
    with connected(api.url) as connection:
        received, took = trickle(connection, first, piece, 20)
    assert 0.8 < took < 10
    assert received.startswith(b"HTTP/1.1 408 "), received
    assert errors.TOO_SLOW.encode() in received
    assert api.get("/clusters").status_code == 200


def test_a_connection_without_a_request_is_closed(service: Start) -> None:
    api = service(read_timeout=1)
    with connected(api.url) as connection:
        start = time.monotonic()
        assert read_all(connection) == b""
        assert 0.8 < time.monotonic() - start < 10


def test_a_slow_body_that_no_one_reads_is_cut_off_too(service: Start, tmp_path: Path) -> None:
    """The 401 comes long before the whole body; the connection does not stay open for the rest."""
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(key_set(key_pair())))
    api = service(no_auth=False, jwk_cert_url="", jwk_cert_file=keys, read_timeout=1)
    with connected(api.url) as connection:
        received, took = trickle(connection, HEAD + b"Content-Length: 1000\r\n\r\n", b" ", 20)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert took < 10


def test_each_request_on_a_connection_has_its_own_read_timeout(service: Start) -> None:
    api = service(read_timeout=1)
    with connected(api.url) as connection:
        request = b"GET /api/hyperfleet HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            # Between requests, the connection may be idle.
            time.sleep(1.3)
        received, took = trickle(connection, b"GET /api", b"x", 20)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert took < 10


def test_a_request_may_arrive_slowly_behind_one_that_is_answered_slowly(
    service: Start, database: str
) -> None:
    api = service(read_timeout=1, statement_timeout=20)
    cluster = api.cluster()
    change = b'{"spec": {"a": 1}}'
    first = f"PATCH {cluster['href']} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(change)}\r\n\r\n"
    with connected(api.url) as connection, psycopg.connect(database) as lock:
        lock.execute("SELECT 1 FROM clusters FOR UPDATE")
        connection.sendall(first.encode() + change + b"GET /api/hyperfleet HTTP/1.1\r\n")
        time.sleep(1.5)
        connection.sendall(b"Host: x\r\nConnection: close\r\n\r\n")
        lock.rollback()
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 2


def test_bytes_that_are_not_http_get_the_standard_error(api: Api) -> None:
    with connected(api.url) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == errors.BAD_REQUEST


def test_a_large_body_is_refused_with_and_without_a_token(service: Start, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(key_set(key_pair())))
    api = service(no_auth=False, jwk_cert_url="", jwk_cert_file=keys, max_body_size=2048)
    token = {"Authorization": f"Bearer {key_pair().token()}"}
    response = api.post(
        "/clusters", data=b" " * 3000, headers={**token, "Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (413, errors.TOO_LARGE)
    assert api.post("/clusters", data=b" " * 3000).status_code in (401, 413)


def test_a_preflight_has_a_request_id_and_is_logged_and_counted(database: str) -> None:
    with Serving("--no-auth", "--database-url", database) as server:
        response = preflight(Api(server.url), CONSOLES[0])
        assert response.status_code == 200
        request_id = response.headers["X-Request-ID"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        metrics = requests.get(server.metrics, timeout=5).text
        counted = re.compile(r'.*_total{.*method="OPTIONS".*')
        (line,) = filter(counted.fullmatch, metrics.splitlines())
        assert 'code="200"' in line
        assert line.endswith(" 1.0")
        server.stop()
        (line,) = [line for line in server.output.splitlines() if request_id in line]
        assert "OPTIONS /api/hyperfleet/v1/clusters 200" in line
