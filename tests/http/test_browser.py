"""The Swagger UI page works in a real browser that can reach only this machine."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import declared_kinds
import pytest
import requests
from conftest import Api
from process import Serving
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")]


class Browser:
    """A tab of headless Chromium, driven over its DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.number = 0
        self.requested: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def wait_for(self, expression: str) -> Any:
        deadline = time.monotonic() + 30
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {value!r}"
            time.sleep(0.1)
        return value


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DevTools URL of a browser tab; starting the browser takes most of the time."""
    assert CHROMIUM
    folder = tmp_path_factory.mktemp("browser")
    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            # No host other than this machine resolves.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder}",
            "--remote-debugging-port=0",
            "about:blank",
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        tabs = requests.get(f"http://127.0.0.1:{port}/json", timeout=10).json()
        yield next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def browser(tab: str) -> Iterator[Browser]:
    with connect(tab, max_size=None) as socket:
        yield Browser(socket)


def test_the_page_lists_every_operation_and_try_it_out_gets_a_200(
    api: Api, browser: Browser, tmp_path: Path
) -> None:
    api.cluster("shown-in-the-browser")
    browser.call("Network.enable")
    browser.call("Page.enable")
    browser.call("Page.navigate", url=f"{api.url}/openapi-ui")
    browser.wait_for("document.querySelectorAll('.opblock').length")
    shown = browser.evaluate(
        "[...document.querySelectorAll('.opblock')].map(b => b.id.split('-').pop()).join(' ')"
    ).split()
    contract = requests.get(f"{api.url}/openapi", timeout=10).json()
    declared = {
        operation["operationId"]
        for item in contract["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict) and "operationId" in operation
    }
    assert set(shown) == declared

    block = "document.querySelector('[id$=-getClusters]')"
    browser.evaluate(f"{block}.querySelector('.opblock-summary-control').click()")
    browser.wait_for(f"!!{block}.querySelector('.try-out__btn')")
    browser.evaluate(f"{block}.querySelector('.try-out__btn').click()")
    # The contract's examples fill in the form; clear the search so that it finds the new cluster.
    browser.wait_for(f"!!{block}.querySelector('.execute')")
    browser.evaluate(
        f"""(() => {{
            const field = {block}.querySelector('tr[data-param-name=search] input');
            const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
            set.call(field, ''); field.dispatchEvent(new Event('input', {{bubbles: true}}));
            field.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()"""
    )
    time.sleep(1)
    browser.evaluate(f"{block}.querySelector('.execute').click()")
    status = browser.wait_for(
        f"{block}.querySelector('.live-responses-table tr.response td.response-col_status')?.innerText"
    )
    body = browser.evaluate(
        f"{block}.querySelector('.live-responses-table tr.response "
        "td.response-col_description').innerText"
    )
    picture = browser.call("Page.captureScreenshot")["data"]
    (tmp_path / "page.png").write_bytes(base64.b64decode(picture))
    assert status.split()[0] == "200"
    assert "shown-in-the-browser" in body
    outside = [url for url in browser.requested if not url.startswith((api.url, "data:", "about:"))]
    assert outside == []


def test_the_page_lists_the_operations_and_spec_schema_of_a_declared_kind(
    database: str, browser: Browser, tmp_path: Path
) -> None:
    file = declared_kinds.file(tmp_path, [{"kind": "Channel", "plural": "channels"}])
    with Serving("--no-auth", f"--config={file}", f"--database-url={database}") as server:
        contract = requests.get(f"{server.url}/openapi", timeout=10).json()
        browser.call("Page.enable")
        browser.call("Page.navigate", url=f"{server.url}/openapi-ui")
        browser.wait_for("document.querySelectorAll('.opblock').length")
        shown = browser.evaluate(
            "[...document.querySelectorAll('.opblock')].map(b => b.id.split('-').pop()).join(' ')"
        ).split()
        declared = {
            operation["operationId"]
            for path, item in contract["paths"].items()
            if "/channels" in path
            for operation in item.values()
            if isinstance(operation, dict) and "operationId" in operation
        }
        assert len(declared) >= 8
        assert declared <= set(shown)
        browser.wait_for("document.body.innerText.includes('ChannelSpec')")
