"""Recorded exchanges: what a client sends, and every field that it reads in the responses."""

import re
from pathlib import Path
from typing import Any

import yaml
from conftest import Api

PATTERNS = {
    "<uuid>": r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "<id>": r"[0-9a-f-]{36}",
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z",
    "<text>": r"(.|\n)+",
}


def field(document: Any, path: str) -> Any:
    """Returns `a.0.b[Ready].c` of a document; brackets select an item by its type or field."""
    for step in re.findall(r"[^.\[\]]+|\[[^\]]+\]", path):
        if step.startswith("["):
            document = next(i for i in document if step[1:-1] in (i.get("type"), i.get("field")))
        else:
            document = document[int(step)] if step.isdigit() else document[step]
    return document


def fits(value: Any, expected: Any) -> bool:
    if not isinstance(expected, str):
        return bool(value == expected)
    pattern = "".join(PATTERNS.get(part, re.escape(part)) for part in re.split(r"(<[a-z]+>)", expected))
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


def play(api: Api, path: Path) -> None:
    """Sends the requests in a file; fails if a field of a response is missing or different."""
    kept: dict[str, str] = {}

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda found: kept.get(found[1], found[0]), value)
        return value

    for number, exchange in enumerate(yaml.safe_load(path.read_text())):
        send, read = exchange["send"], exchange["read"]
        answer = api.request(
            send["method"],
            filled(send["path"]),
            json=send.get("body"),
            headers=send.get("headers"),
        )
        step = f"{path.stem} {number}: {send['method']} {send['path']}: {answer.text}"
        assert answer.status_code == read["status"], step
        for name, expected in read.get("headers", {}).items():
            assert fits(answer.headers.get(name), expected), (step, name)
        for name, expected in read.get("body", {}).items():
            assert fits(field(answer.json(), name), filled(expected)), (step, name, expected)
        # All members that a client knows which rejects unknown ones.
        for name, known in read.get("only", {}).items():
            assert (field(answer.json(), name) if name else answer.json()).keys() == set(known), step
        for name, source in exchange.get("keep", {}).items():
            kept[name] = field(answer.json(), source)
