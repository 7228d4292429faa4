"""Checks responses against the contract: all, or enough of them to notice a change that breaks it."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson
from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet.contract import document, schema
from hyperfleet.contract.faults import fault, faults
from hyperfleet.errors import INTERNAL, Fault, Problem
from hyperfleet.operation import operation_of

logger = logging.getLogger(__name__)

# With "sample", one in this many responses of an operation is checked, and at least one per second.
ONE_IN = 100
EVERY = 1.0
# The most faults of a response that are logged.
LOGGED = 5
# The name of the rule in faults that do not come from a schema.
RULE = "contract"


class Answer(NamedTuple):
    """The response of an operation, and whether members were left out on request."""

    operation: str
    status: int
    media_type: str
    body: bytes
    partial: bool


class Contract:
    """The contract's schemas for responses. Validators are compiled when they are first needed."""

    def __init__(self, specification: dict[str, Any]) -> None:
        self.named = specification["components"]["schemas"]
        self.responses = {
            operation["operationId"]: {
                status: document.followed(response, specification)
                for status, response in operation["responses"].items()
            }
            for _, _, operation in document.operations(specification)
        }
        self.compiled: dict[tuple[str, str, str, bool], schema.Validator] = {}

    def faults(self, answer: Answer) -> list[Fault]:
        """Returns what is wrong with a response. In a partial one, only the members that are there are
        checked.
        """
        responses = self.responses[answer.operation]
        status = str(answer.status) if str(answer.status) in responses else "default"
        if status not in responses:
            return [fault(["status"], f"{answer.status} is not a status of this operation", RULE)]
        content = responses[status].get("content", {})
        media_type = answer.media_type
        if answer.status >= 400:
            # A problem is the same object in either media type.
            media_type = next(iter(content), "")
        if not content:
            return [fault(["body"], "there must be none", RULE)] if answer.body else []
        if media_type not in content:
            message = f"{media_type or 'none'} is not a media type of this answer"
            return [fault(["Content-Type"], message, RULE)]
        key = (answer.operation, status, media_type, answer.partial)
        if key not in self.compiled:
            rules, named = content[media_type]["schema"], self.named
            if answer.partial:
                rules, named = _partial(rules), {name: _partial(one) for name, one in named.items()}
            self.compiled[key] = schema.compile_schema(rules, named)
        try:
            value = _value(answer.body)
        except ValueError:
            return [fault(["body"], "is not JSON", RULE)]
        return list(faults(self.compiled[key], value))


def _value(body: bytes) -> Any:
    """Parses JSON text. Raises ValueError if it is not JSON."""
    try:
        return orjson.loads(body)
    except ValueError:
        # Integers in JSON are unbounded. NaN and Infinity are not JSON: int raises ValueError for them.
        return json.loads(body, parse_constant=int)


class Checked:
    """The application within Connexion, with its responses checked.

    :param mode: ``off``, ``sample`` or ``all``; with ``all``, a response that breaks the contract is
        replaced by an error, with ``sample`` it has already been sent
    :param registry: counts the responses that break the contract, by operation
    """

    def __init__(self, app: ASGIApp, contract: Contract, mode: str, registry: CollectorRegistry) -> None:
        self.app = app
        self.contract = contract
        self.mode = mode
        self.breaches = Counter(
            "hyperfleet_contract_breaches",
            "Answers that broke the contract, among those that were checked.",
            ["operation"],
            registry=registry,
        )
        # For each operation, how many responses went unchecked since the last check, and its time.
        self.passed: dict[str, tuple[int, float]] = {}
        self.looking = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request. Raises Problem in mode ``all`` if the response breaks the contract."""
        operation = operation_of(scope)
        if operation not in self.contract.responses or not self._due(operation):
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        streamed = False

        async def kept(message: Message) -> None:
            nonlocal streamed
            if message.get("more_body") and not streamed:
                # It is too large to be buffered and checked as a whole.
                streamed = True
                if self.mode == "all":
                    await send(messages[0])
            if streamed or self.mode == "sample":
                await send(message)
            if not streamed:
                messages.append(message)

        await self.app(scope, receive, kept)
        if streamed or not messages:
            # Streamed, or the client is gone.
            return
        answer = _answer(operation, scope, messages)
        if self.mode == "sample":
            self.looking = True
            asyncio.get_running_loop().run_in_executor(None, self._look, answer)
        elif self._look(answer):
            raise Problem(INTERNAL)
        else:
            for message in messages:
                await send(message)

    def _due(self, operation: str) -> bool:
        if self.mode == "all":
            return True
        count, last = self.passed.get(operation, (0, 0.0))
        now = time.monotonic()
        due = self.mode == "sample" and not self.looking and (count + 1 >= ONE_IN or now - last >= EVERY)
        self.passed[operation] = (0, now) if due else (count + 1, last)
        return due

    def _look(self, answer: Answer) -> list[Fault]:
        try:
            found = self.contract.faults(answer)
        finally:
            self.looking = False
        if found:
            self.breaches.labels(answer.operation).inc()
            told = "; ".join(f"{one['field']} {one['message']}" for one in found[:LOGGED])
            logger.error(
                "answer %d of %s breaks the contract: %s", answer.status, answer.operation, told
            )
        return found


def _answer(operation: str, scope: Scope, messages: list[Message]) -> Answer:
    status, headers = messages[0]["status"], dict(messages[0]["headers"])
    media_type = headers.get(b"content-type", b"").partition(b";")[0].decode("latin-1")
    body = b"".join(message.get("body", b"") for message in messages[1:])
    query = parse_qs(scope["query_string"].decode("latin-1"))
    chosen = query.get("fields", ["*"]) != ["*"] or "none" in query.get("total", ())
    partial = chosen or b"x-default-fields" in headers
    return Answer(operation, status, media_type, body, partial)


def _partial(rules: Any) -> Any:
    """Returns a schema that does not require any members, at any depth."""
    if not isinstance(rules, Mapping):
        return rules
    kept = {name: one for name, one in rules.items() if name != "required"}
    return schema.each(kept, lambda inner, _: _partial(inner))
