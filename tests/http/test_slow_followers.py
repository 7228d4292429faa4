"""Many clients follow the feed, and some do not read what they are sent."""

import asyncio
import json
import re
import socket
import time
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import pytest
import requests
from conftest import Api
from process import Serving

pytestmark = pytest.mark.slow

MANY, LARGE = 200, 900_000
BASE = "/api/hyperfleet/v1/changes"


def memory(server: Serving) -> int:
    """Returns the memory of all processes of a server in bytes."""
    first = server.process.pid
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (first, *children))
    return sum(pages) * 4096


def waiting(server: Serving) -> float:
    text = requests.get(server.metrics, timeout=10).text
    found = re.search(r"^hyperfleet_api_changes_waiting{.*} (.+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


@pytest.mark.parametrize("how", ["stream", "wait"])
def test_a_large_change_is_not_kept_once_per_client_that_does_not_read(database: str, how: str) -> None:
    with Serving("--no-auth", f"--database-url={database}", "--workers=1") as server:
        api, address = Api(server.url), urlsplit(server.url)
        token = api.get("/changes").json()["next"]
        cluster = api.cluster()
        token = api.get(f"/changes?after={token}").json()["next"]
        query, accept = ("", "text/event-stream") if how == "stream" else ("&wait=30", "*/*")
        request = f"GET {BASE}?after={token}{query} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
        clients = []
        for _ in range(MANY):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((str(address.hostname), address.port))
            client.sendall(request.encode())
            clients.append(client)
        end = time.monotonic() + 20
        while waiting(server) < MANY:
            assert time.monotonic() < end
            time.sleep(0.1)
        before = memory(server)
        answer = api.patch(f"/clusters/{cluster['id']}", json={"spec": {"k": "x" * LARGE}})
        assert answer.status_code == 200
        # A client that does read gets all of it.
        page = api.get(f"/changes?after={token}&wait=5").json()
        assert len(page["items"][0]["resource"]["spec"]["k"]) == LARGE
        for client in clients:
            client.settimeout(20)
            assert client.recv(100)
        assert memory(server) - before < MANY * LARGE / 2
        for client in clients:
            client.close()


def test_clients_that_ask_again_at_once_are_served_after_those_still_waiting(database: str) -> None:
    """Otherwise their requests would take half of the time until the last client has the change."""
    clients, order = 400, []

    async def client(address: SplitResult, token: str) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for answer, wait in (("first", "&wait=20"), ("second", "")):
            request = f"GET {BASE}?after={token}{wait} HTTP/1.1\r\nHost: x\r\n\r\n"
            writer.write(request.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r")[0]))
            order.append(answer)
            assert [item["name"] for item in json.loads(body)["items"]] == ["c1"]
        writer.close()

    async def follow(api: Api, token: str) -> None:
        address = urlsplit(api.url)
        following = [asyncio.create_task(client(address, token)) for _ in range(clients)]
        await asyncio.sleep(2)
        assert not any(one.done() for one in following)
        await asyncio.to_thread(api.cluster, "c1")
        await asyncio.gather(*following)

    with Serving("--no-auth", f"--database-url={database}", "--workers=1") as server:
        api = Api(server.url)
        asyncio.run(follow(api, api.get("/changes").json()["next"]))
    # Responses to the last few may be in transit when the first clients ask again.
    assert order.index("second") > clients * 0.9
