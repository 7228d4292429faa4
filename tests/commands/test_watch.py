"""`hyperfleet watch` prints changes and continues after interruptions."""

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from conftest import Api
from issuer import Answer, JsonServer
from process import CLEAN, HYPERFLEET, Serving, run, run_here
from provider_samples import PROVIDERS

from hyperfleet.commands import watch as command

pytestmark = pytest.mark.slow


class Watching:
    """A running `hyperfleet watch`: the lines of its standard output and of its standard error."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [HYPERFLEET, "watch", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**CLEAN, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self.said: list[str] = []
        for source, into in ((self.process.stdout, self.lines), (self.process.stderr, self.said)):
            threading.Thread(target=into.extend, args=[source], daemon=True).start()

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not met():
            assert time.monotonic() < deadline, (self.lines, self.said)
            assert self.process.poll() is None, self.said
            time.sleep(0.05)


@contextmanager
def watching(api: Api, *arguments: str) -> Iterator[Watching]:
    # It starts after a token, so that nothing depends on when the process is ready.
    token = api.get("/changes").json()["next"]
    one = Watching(f"--url={api.url}", f"--after={token}", *arguments)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait(10)


def test_changes_are_printed_as_text_or_as_json(api: Api) -> None:
    with (
        watching(api) as text,
        watching(
            api, "--output=json", "--kind=Cluster", "--search=name = 'c2'", "--fields=name"
        ) as lines,
    ):
        cluster = api.cluster("c1")
        api.report(cluster)
        api.cluster("c2")
        text.until(lambda: len(text.lines) == 3)
        lines.until(lambda: len(lines.lines) == 1)
    [first, second, _] = text.lines
    assert f" created  Cluster c1 ({cluster['id']}) generation 1 by system@hyperfleet.local" in first
    assert second.endswith(" generation 1 by dns\n")
    item = json.loads(lines.lines[0])
    assert item["resource"] == {"id": item["id"], "name": "c2"}


def test_watch_continues_after_an_interruption_and_says_when_to_list_again(
    database: str, sql: psycopg.Connection
) -> None:
    arguments = ["--no-auth", "--database-url", database]
    with ExitStack() as stack:
        first = Serving(*arguments)
        api, port = Api(first.url), first.url.rpartition(":")[2]
        one = stack.enter_context(watching(api))
        api.cluster("c1")
        one.until(lambda: len(one.lines) == 1)
        first.stop()
        one.until(lambda: "trying again" in "".join(one.said))
        sql.execute("UPDATE clusters SET generation = 2, version = 2")
        with Serving(*arguments, f"--port={port}"):
            one.until(lambda: len(one.lines) == 2)
            assert " updated  Cluster c1 " in one.lines[1]
            sql.execute("TRUNCATE clusters CASCADE")
            one.until(lambda: "list again" in "".join(one.said))
            time.sleep(1)
            api.cluster("c3")
            one.until(lambda: len(one.lines) == 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_watch_prints_how_to_continue(api: Api, number: int) -> None:
    with watching(api) as one:
        api.cluster("before")
        one.until(lambda: len(one.lines) == 1)
        time.sleep(0.2)
        one.process.send_signal(number)
        assert one.process.wait(10) != 0
    deadline = time.monotonic() + 5
    while not one.said:
        assert time.monotonic() < deadline
    told = one.said[0].removeprefix("To continue from here: ").split()
    api.cluster("between")
    again = Watching(f"--url={api.url}", *told)
    try:
        again.until(lambda: len(again.lines) == 1)
    finally:
        again.process.kill()
        again.process.wait(10)
    assert " Cluster between " in again.lines[0]


def test_a_rejected_request_ends_the_watch_with_the_reason(api: Api) -> None:
    done = run("watch", f"--url={api.url}", "--kind=Cluser")
    assert done.returncode == 1
    assert "did you mean Cluster" in done.stdout


def test_the_url_may_include_the_path_of_the_api(api: Api) -> None:
    for url in (f"{api.url}/api/hyperfleet/v1", f"{api.url}/api/hyperfleet/v1/"):
        done = run("watch", f"--url={url}", "--kind=Cluser")
        assert "did you mean Cluster" in done.stdout


def test_a_watch_survives_the_removal_of_its_token_file(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("mine")
    with watching(api, f"--token-file={file}") as one:
        api.cluster("c1")
        one.until(lambda: len(one.lines) == 1)
        file.unlink()
        api.cluster("c2")
        one.until(lambda: len(one.lines) == 2)
        api.cluster("c3")
        one.until(lambda: len(one.lines) == 3)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(410, b"{}", "Error: Gone\n"), (404, b'{"detail": null}', "Error: Not Found\n")],
)
def test_an_error_from_a_server_other_than_the_api_ends_the_watch_with_the_reason(
    status: int, body: bytes, told: str
) -> None:
    with JsonServer(lambda *_: (status, {}, body)) as server:
        done = run("watch", f"--url={server.url}")
    assert (done.returncode, done.stdout) == (1, told)


@pytest.mark.parametrize("url", ["localhost:1", "nowhere", "http://"])
def test_an_invalid_url_is_reported(url: str) -> None:
    ended = run("watch", f"--url={url}", "--after=x")
    assert ended.returncode == 1
    assert "Error: --url" in ended.stdout


@pytest.mark.parametrize(
    "body",
    [
        b'{"status": "ok"}',
        b'{"kind": "ChangeList"}',
        b'{"kind": "ChangeList", "items": []}',
        b'{"kind": "ChangeList", "items": null, "next": "there"}',
    ],
)
def test_a_server_that_is_not_the_api_is_reported_and_asked_again(body: bytes) -> None:
    with JsonServer(lambda *_: (200, {}, body)) as server:
        one = Watching(f"--url={server.url}")
        try:
            one.until(lambda: len(server.asked) > 1)
            one.until(lambda: "the server that answers is not the API; trying again\n" in one.said)
        finally:
            one.process.kill()
            one.process.wait(10)


def test_the_pauses_grow_until_the_service_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=pauses.append))
    page, away = (200, {}, b'{"items": [], "next": "there"}'), (503, {}, b"{}")
    answers: Iterator[Answer] = iter([*[away] * 6, page, away, away, (403, {}, b"{}")])
    with JsonServer(lambda *_: next(answers)) as server:
        done = run_here("watch", f"--url={server.url}")
    assert done.returncode == 1
    assert pauses == [0.5, 1, 2, 4, 8, 10, 0.5, 1]
    # Until it knows its place, it asks only for that, so that it can be continued from the beginning.
    assert ["wait=" in path for _, path, *_ in server.asked] == [False] * 7 + [True] * 3


@pytest.mark.parametrize(("held", "sent"), [("filed\n", "filed"), ("\n", "given"), ("", "given")])
def test_a_token_file_may_end_in_a_newline_and_does_not_count_while_it_is_empty(
    tmp_path: Path, held: str, sent: str
) -> None:
    file = tmp_path / "token"
    file.write_text(held)
    with JsonServer(lambda *_: (403, {}, b"{}")) as server:
        run_here("watch", f"--url={server.url}", "--token=given", f"--token-file={file}")
    assert [headers["Authorization"] for *_, headers in server.asked] == [f"Bearer {sent}"]


def test_a_token_file_that_is_not_text_is_ignored(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe")
    done = run("watch", f"--url={api.url}", "--kind=Cluser", f"--token-file={file}")
    assert "did you mean Cluster" in done.stdout, done.stdout


@pytest.mark.parametrize("token", ["a→b", "a\nb", "ä"])
@pytest.mark.parametrize(
    "command",
    [
        ("watch", "--url=http://127.0.0.1:1"),
        ("import", "--from-api=http://127.0.0.1:1"),
        ("schema", "check", str(PROVIDERS / "gcp.yaml"), "--against=http://127.0.0.1:1"),
    ],
    ids=lambda command: command[0],
)
def test_a_token_that_cannot_be_sent_in_a_header_is_rejected_and_not_shown(
    command: tuple[str, ...], token: str
) -> None:
    done = run_here(*command, f"--token={token}")
    assert (done.returncode, "The token has characters" in done.stdout) == (2, True), done.stdout
    assert token not in done.stdout


def test_the_given_token_is_sent_whatever_netrc_holds_for_the_host(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)

    def answer(_method: str, path: str, *_: object) -> Answer:
        there = path.startswith("/moved")
        return (403, {}, b"{}") if there else (307, {"Location": f"/moved{path}"}, b"")

    with JsonServer(answer) as server:
        env = {"NETRC": str(netrc)}
        assert run("watch", "--url", server.url, "--token", "mine", env=env).returncode == 1
    assert [headers["Authorization"] for *_, headers in server.asked] == ["Bearer mine"] * 2


def test_proxies_from_the_environment_are_not_used_for_loopback_addresses() -> None:
    proxy = "http://127.0.0.1:9"
    with JsonServer(lambda *_: (403, {}, b"{}")) as server:
        env = {"http_proxy": proxy, "all_proxy": proxy, "no_proxy": "", "NO_PROXY": ""}
        done = run("watch", "--url", server.url, env=env)
    assert done.returncode == 1
    assert len(server.asked) == 1, done.stdout


def test_watch_continues_after_truncated_responses_and_those_of_a_proxy(api: Api) -> None:
    cluster = api.cluster()
    page = {"kind": "ChangeList", "items": [], "next": "there"}
    item = {"time": "T", "change": "created", "kind": "Cluster", **cluster}
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\r\n",
        b'HTTP/1.1 502 Bad Gateway\r\nContent-Length: 13\r\n\r\n{"error":"x"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps({**page, "items": [item]}).encode(),
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for text in answers:
                client, _ = server.accept()
                with client:
                    client.recv(65536)
                    client.sendall(text)

        threading.Thread(target=answer, daemon=True).start()
        one = Watching(f"--url=http://127.0.0.1:{server.getsockname()[1]}", "--after=x")
        try:
            one.until(lambda: len(one.lines) == 1)
        finally:
            one.process.kill()
            one.process.wait(10)
    assert "Bad Gateway; trying again\n" in one.said
