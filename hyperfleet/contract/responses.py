"""Answers against the contract: all of them, or so many that a change which breaks it is noticed."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson
from connexion.middleware.abstract import ROUTING_CONTEXT
from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet.contract import document, schema
from hyperfleet.contract.faults import fault, faults
from hyperfleet.errors import INTERNAL, Fault, Problem

logger = logging.getLogger(__name__)

# Under "sample" one in so many answers of an operation is looked at, and at least one a second.
ONE_IN = 100
EVERY = 1.0
# As many faults of an answer are logged.
LOGGED = 5
# What faults of answers name as the rule that is broken.
RULE = "contract"


class Answer(NamedTuple):
    """What an operation has answered, and whether members were left out on request."""

    operation: str
    status: int
    media_type: str
    body: bytes
    partial: bool


class Contract:
    """What the answers of each operation must be. Validators are compiled once, when first needed."""

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
        """What is wrong with an answer. A partial one is held against what is said of the members that
        it has.
        """
        responses = self.responses[answer.operation]
        status = str(answer.status) if str(answer.status) in responses else "default"
        if status not in responses:
            return [fault(["status"], f"{answer.status} is not a status of this operation", RULE)]
        content = responses[status].get("content", {})
        media_type = answer.media_type
        if answer.status >= 400:
            # A problem is one object in either form.
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
    """The value of JSON text. Raises ValueError for what is none."""
    try:
        return orjson.loads(body)
    except ValueError:
        # JSON has no bound for integers; it has no NaN, of which int makes nothing.
        return json.loads(body, parse_constant=int)


class Checked:
    """The application inside of Connexion, with its answers checked.

    :param mode: ``off``, ``sample`` or ``all``: under the last one an answer that breaks the contract
        becomes an error, under ``sample`` it is on its way already
    :param registry: where answers that break the contract are counted, by operation
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
        # Of each operation how many answers were let pass since the last look, and when that was.
        self.passed: dict[str, tuple[int, float]] = {}
        self.looking = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Raises Problem under ``all`` for an answer that breaks the contract."""
        routed = scope.get("extensions", {}).get(ROUTING_CONTEXT, {}).get("operation_id")
        # With the name of its module before it.
        operation = (routed or "").rpartition(".")[2]
        if operation not in self.contract.responses or not self._due(operation):
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        streamed = False

        async def kept(message: Message) -> None:
            nonlocal streamed
            if message.get("more_body") and not streamed:
                # It is too large to be kept, and looked at, as a whole.
                streamed = True
                if self.mode == "all":
                    await send(messages[0])
            if streamed or self.mode == "sample":
                await send(message)
            if not streamed:
                messages.append(message)

        await self.app(scope, receive, kept)
        if streamed or not messages:
            # Or nobody was there any more.
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
    """A schema by which no member is required, at any depth."""
    if not isinstance(rules, Mapping):
        return rules
    kept = {name: one for name, one in rules.items() if name != "required"}
    return schema.each(kept, lambda inner, _: _partial(inner))
