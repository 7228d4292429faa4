"""The contract as tests see it, independently of how the service reads it.

Responses are validated with another implementation of JSON Schema than the service's, and strictly: an
object whose schema lists its properties must not have others.
"""

import functools
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import requests
import yaml
from conftest import Api
from declared_kinds import ALIKE
from jsonschema import Draft4Validator, FormatChecker

from hyperfleet.contract import document

BASE = "/api/hyperfleet/v1"
PROBLEM = "application/problem+json"
JSON = "application/json"
NO_ID = "019a9f4e-6b8c-7c1e-9d5c-3d1f0a6b2c11"
"""A well-formed id that no resource has."""

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
"""Every time that the service sends: RFC 3339 in UTC, with Z."""

DOCUMENT: dict[str, Any] = (
    document.load()
    if ALIKE
    else yaml.load(
        (Path(__file__).parent.parent / "openapi" / "openapi.yaml").read_text(encoding="utf-8"),
        yaml.CSafeLoader,
    )
)
METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")


@dataclass(frozen=True)
class Operation:
    """An operation of the contract."""

    id: str
    method: str
    path: str
    definition: dict[str, Any]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [deref(parameter) for parameter in self.definition.get("parameters", [])]

    @property
    def responses(self) -> dict[int, dict[str, Any]]:
        """Returns the responses by status; those that any operation may have are under default."""
        given = {**self.definition["responses"]}
        rest = deref(given.pop("default"))
        return {
            **dict.fromkeys((408, 431, 500), rest),
            **{int(status): deref(value) for status, value in given.items()},
        }

    @property
    def body(self) -> dict[str, Any] | None:
        body = self.definition.get("requestBody")
        return deref(body) if body else None


def deref(node: dict[str, Any]) -> dict[str, Any]:
    """Returns the target of a local reference, or the node itself if it is not one."""
    while "$ref" in node:
        target: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def operations() -> Iterator[Operation]:
    """Yields every operation of the contract."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield Operation(item[method]["operationId"], method.upper(), path, item[method])


OPERATIONS = {operation.id: operation for operation in operations()}


def closed(node: Any) -> Any:
    """Returns the same schemas, allowing no members but those that they list."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: closed(value) for key, value in node.items()}
    if node.get("type") == "object" and "properties" in node:
        copy.setdefault("additionalProperties", False)
    return copy


FORMATS = FormatChecker(formats=())


@FORMATS.checks("date-time")
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or (
        TIME.fullmatch(value) is not None and datetime.fromisoformat(value).utcoffset() == timedelta()
    )


@FORMATS.checks("uuid", raises=ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """Returns the faults of a value by a schema of the contract; empty if it is valid."""
    found = _validator(json.dumps(schema)).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


@functools.cache
def _validator(schema: str) -> Draft4Validator:
    return Draft4Validator(closed(_whole(json.loads(schema))), format_checker=FORMATS)


def _whole(node: Any) -> Any:
    """Returns the same schemas without references: looking these up takes as long as all the rest."""
    if isinstance(node, list):
        return [_whole(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _whole(value) for key, value in deref(node).items()}


def operation_of(response: requests.Response) -> Operation | None:
    """Returns the operation that responded, by method and path; that of GET for HEAD."""
    method = "GET" if response.request.method == "HEAD" else response.request.method
    path = urlsplit(response.url).path.rstrip("/")
    for operation in OPERATIONS.values():
        if operation.method == method and _pattern(operation.path).fullmatch(path):
            return operation
    return None


@functools.cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))


def media_type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0]


def check(response: requests.Response, status: int = 200) -> Any:
    """Returns the body of a response, after checking the whole response against the contract."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    operation = operation_of(response)
    assert operation is not None, f"no operation for {response.request.method} {response.url}"
    assert status in operation.responses, f"{operation.id} does not document {status}"
    definition = operation.responses[status]
    assert response.headers["X-Request-ID"]
    for name, header in definition.get("headers", {}).items():
        _check_header(response, name, deref(header))
    content = definition.get("content")
    if content is None or response.request.method == "HEAD":
        assert response.content == b""
        return None
    assert media_type(response) in content
    body = response.json()
    assert faults(body, _schema(response, content[media_type(response)]["schema"])) == []
    return body


def _schema(response: requests.Response, schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a body; without required members if the request left some out."""
    chosen = re.search(r"[?&](fields=|total=none)", response.url)
    return _partial(schema) if chosen or "X-Default-Fields" in response.headers else schema


def _partial(node: Any) -> Any:
    if isinstance(node, list):
        return [_partial(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _partial(value) for key, value in deref(node).items() if key != "required"}


def _check_header(response: requests.Response, name: str, header: dict[str, Any]) -> None:
    if name not in response.headers:
        assert not header.get("required"), f"{name} is missing"
        return
    value: Any = response.headers[name]
    if header["schema"]["type"] == "integer":
        value = int(value)
    assert faults(value, header["schema"]) == []


def problem(response: requests.Response, status: int, *fields: str) -> dict[str, Any]:
    """Returns the body of an error, after checking everything that all errors have in common.

    With ``fields``, the error names exactly these, in any order. A field may break two rules.
    """
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    operation = operation_of(response)
    if operation is not None:
        assert status in operation.responses, f"{operation.id} does not document {status}"
        for name, header in operation.responses[status].get("headers", {}).items():
            _check_header(response, name, deref(header))
    accept = str(response.request.headers.get("Accept", "")).lower()
    assert media_type(response) == (JSON if JSON in accept and PROBLEM not in accept else PROBLEM)
    body: dict[str, Any] = response.json()
    check_problem(body, status)
    assert body["trace_id"] == response.headers["X-Request-ID"]
    if fields:
        assert {error["field"] for error in body["errors"]} == set(fields), body["errors"]
    return body


CATEGORIES = {
    400: {"VAL"},
    404: {"NTF"},
    405: {"VAL", "NTF"},
    409: {"CNF"},
    413: {"LMT", "VAL"},
    415: {"VAL"},
    503: {"SVC"},
}
LEAK = re.compile(
    r"Traceback|File \"|psycopg|connexion|werkzeug|jsonschema|site-packages|\.py\b|hyperfleet_test"
    r"|SELECT |INSERT |UPDATE |relation \"|127\.0\.0\.1|localhost|/tmp/|site-packages|\bsys\.",
    re.IGNORECASE,
)


def check_problem(body: dict[str, Any], status: int) -> None:
    """Asserts that the members of an error agree with the contract and with each other."""
    assert faults(body, {"$ref": "#/components/schemas/ProblemDetails"}) == []
    assert body["status"] == status
    code = body["code"]
    assert code.split("-")[1] in CATEGORIES.get(status, {code.split("-")[1]})
    assert body["id"] == code
    assert body["href"] == f"{BASE}/errors/{code}"
    assert re.fullmatch(r"https://api\.hyperfleet\.io/errors/[a-z]+(-[a-z]+)*", body["type"])
    assert body["reason"] == body["detail"] != ""
    assert body["operation_id"] == body["trace_id"] != ""
    assert body["title"] != ""
    age = datetime.now(UTC) - datetime.fromisoformat(body["timestamp"])
    assert timedelta(minutes=-1) < age < timedelta(minutes=1)
    errors = [(error["field"], error["message"]) for error in body.get("errors", [])]
    assert [(one["field"], one["error"]) for one in body.get("details", [])] == errors
    assert all(field and message for field, message in errors)
    leak = LEAK.search(f"{body['title']} {body['detail']} {errors}")
    assert leak is None, leak


def raw(api: Api, head: str | bytes, body: bytes = b"") -> requests.Response:
    """Returns the response to a request given as raw text: request line and headers, without their end.

    For what no client library would send. Host and Connection are added.
    """
    parts = urlsplit(api.url)
    head = head.encode() if isinstance(head, str) else head
    line, _, rest = head.partition(b"\r\n")
    headers = [line, b"Host: test", b"Connection: close", *([rest] if rest else [])]
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        connection.sendall(b"\r\n".join(headers) + b"\r\n\r\n" + body)
        answer = HTTPResponse(connection, method=line.split(b" ")[0].decode())
        answer.begin()
        response = requests.Response()
        response.status_code = answer.status
        response.headers.update(answer.getheaders())
        response._content = answer.read()
    response.request = requests.PreparedRequest()
    response.request.method = line.split(b" ")[0].decode()
    response.request.headers = requests.structures.CaseInsensitiveDict(
        name_value.split(": ", 1) for name_value in rest.decode("latin-1").split("\r\n") if name_value
    )
    response.url = api.url + line.split(b" ")[1].decode("latin-1")
    return response


def times(value: Any) -> Iterator[str]:
    """Yields every time in a body, by the names of members, at any depth outside of spec."""
    if isinstance(value, list):
        for item in value:
            yield from times(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.endswith(("_time", "_at")):
                yield item
            elif key not in ("spec", "data", "metadata", "labels"):
                yield from times(item)


def condition(resource: dict[str, Any], type_: str) -> dict[str, Any]:
    """Returns the one condition of this type."""
    (found,) = [one for one in resource["status"]["conditions"] if one["type"] == type_]
    return found
