"""Requests against the contract: how Connexion's validators are made to name every fault at once."""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from connexion import utils
from connexion.lifecycle import ConnexionRequest
from connexion.middleware.abstract import RoutedAPI, RoutedMiddleware
from connexion.operations import AbstractOperation
from connexion.validators import AbstractRequestBodyValidator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet.contract import schema
from hyperfleet.contract.faults import fault, faults
from hyperfleet.contract.provider import Provider
from hyperfleet.errors import INVALID, MALFORMED, UNSUPPORTED_TYPE, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES
from hyperfleet.nearest import nearest
from hyperfleet.storable import storable

# Where the outermost layer says that a body may be something else than the JSON that it is taken for.
UNSURE = "hyperfleet.unsure"

# Deeper documents are refused: clients and databases alike have a limit, and nobody's is lower.
MAX_DEPTH = 64
MAX_DIGITS = 1000
MAX_SPREAD = 64 * 1024
# Doubles hold each whole number below this.
EXACT = 2**53

# What our parameters are called in other APIs.
ELSEWHERE = {
    **dict.fromkeys(("limit", "per_page", "perpage", "page_size", "maxresults"), "pageSize"),
    **dict.fromkeys(("labelselector", "fieldselector", "filter", "q", "query"), "search"),
    **dict.fromkeys(("sort", "sortby", "sort_by", "order_by"), "orderBy"),
    **dict.fromkeys(("select", "include"), "fields"),
    **dict.fromkeys(("offset", "start"), "page"),
    **dict.fromkeys(("next", "cursor", "pagetoken", "page_token"), "continue"),
}

# Connexion makes a validator object for each request; what is compiled is kept here, by the
# identity of the schema. The schema is kept too, so that no other comes to have this identity.
_compiled: dict[int, tuple[Mapping[str, Any], schema.Validator]] = {}


def _validator(definition: Mapping[str, Any]) -> schema.Validator:
    key = id(definition)
    if key not in _compiled:
        _compiled[key] = definition, schema.compile_schema(definition)
    return _compiled[key][1]


class BodyValidator(AbstractRequestBodyValidator):
    """Reads a JSON body, refuses what no JSON document may hold, and names all faults of the rest.

    :param provider: what the spec in a body is held against, where it is a resource's whole spec
    """

    def __init__(self, provider: Provider, **options: Any) -> None:
        super().__init__(**options)
        self._provider = provider

    async def wrap_receive(self, receive: Receive, *, scope: Scope) -> tuple[Receive, Scope]:
        """The body's messages once more, for the application, after a look at them.

        Raises Problem for a body that is missing, malformed or invalid.
        """
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            if messages[-1]["type"] == "http.disconnect":
                raise Problem(MALFORMED, "The client went away before the body was complete.")
        if self._encoding.lower() not in ("utf-8", "utf8"):
            raise Problem(UNSUPPORTED_TYPE)
        content = b"".join(message.get("body", b"") for message in messages)
        numbers = Numbers()
        try:
            body = parse(content, numbers)
        except Problem as problem:
            if scope.get(UNSURE) and content.strip() and problem.entry.code == MALFORMED:
                raise Problem(UNSUPPORTED_TYPE) from None
            raise
        found = list(self._faults(body))
        if found:
            raise Problem(INVALID, faults=found)
        tidy = schema.tidy(self._schema, body)
        if tidy is not body or numbers.rounded:
            content = json.dumps(tidy).encode()
            messages = [{"type": "http.request", "body": content, "more_body": False}]
        # As Kubernetes does, a body without a type is taken for JSON. Handlers read as much as the
        # length says, which a body in chunks lacks.
        known = {b"content-type": b"application/json"} | dict(scope["headers"])
        known.pop(b"transfer-encoding", None)
        known[b"content-length"] = str(len(content)).encode()
        scope = {**scope, "headers": list(known.items())}
        return self._insert_messages(receive, messages=messages), scope

    def _faults(self, body: Any) -> Iterator[Fault]:
        yield from faults(_validator(self._schema), body)
        kind = self._schema.get("x-spec-of")
        if kind and isinstance(body, dict) and isinstance(body.get("spec"), dict):
            yield from self._provider.faults(kind, body["spec"])


class Numbers:
    """Reads the numbers of one body.

    PostgreSQL writes 1e308 out in 309 digits. A body of such numbers would be read back fifty times as
    long as it came. ``rounded``: a whole number was written with a fraction or an exponent, as Go's
    clients do; it is an integer, and would be unreadable for them as anything else.
    """

    def __init__(self) -> None:
        self.spare = MAX_SPREAD
        self.rounded = False

    def integer(self, text: str) -> int:
        """Raises ValueError for one with too many digits."""
        if len(text) > MAX_DIGITS:
            raise ValueError(f"an integer of {len(text)} digits, where {MAX_DIGITS} are the most")
        return int(text)

    def other(self, text: str) -> float | int:
        """Raises ValueError for one that is too large."""
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{text[:20]} is larger than a double")
        exponent = text.lower().partition("e")[2]
        self.spare -= min(abs(int(exponent)), 330) if exponent else 0
        if self.spare < 0:
            raise ValueError(f"all exponents together must not exceed {MAX_SPREAD}")
        if number.is_integer() and abs(number) < EXACT:
            self.rounded = True
            return int(number)
        return number


def parse(body: bytes, numbers: Numbers) -> Any:
    """The value of a JSON document (RFC 8259).

    Raises Problem for what is no such document, and for what PostgreSQL cannot hold: numbers out of
    range, the character NUL, half a surrogate pair, more than 64 levels.
    """
    if not body.strip():
        raise Problem(MALFORMED, "The body is empty; a JSON object is expected.")
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_no_number,
            parse_float=numbers.other,
            parse_int=numbers.integer,
        )
    except UnicodeDecodeError as error:
        raise Problem(MALFORMED, f"The body is not UTF-8: byte {error.start} does not fit.") from None
    except json.JSONDecodeError as error:
        raise Problem(
            MALFORMED,
            f"The body is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.",
        ) from None
    except RecursionError:
        raise Problem(MALFORMED, f"The body has more than {MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise Problem(MALFORMED, f"The body has a number out of range: {error}.") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise Problem(MALFORMED, f"The body has more than {MAX_DEPTH} levels.")
    # Such characters can only have come as an escape, so most bodies need no look.
    if b"\\u0000" in body or re.search(rb"\\ud[89a-f]", body, re.IGNORECASE):
        found = list(_unstorable(value, ()))
        if found:
            raise Problem(INVALID, faults=found)
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _unstorable(value: Any, at: tuple[str | int, ...]) -> Iterator[Fault]:
    if isinstance(value, str):
        if not storable(value):
            yield fault(at, "must not have the character NUL or half a surrogate pair", "characters")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not storable(key):
                yield from _unstorable(key, at)
            else:
                yield from _unstorable(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unstorable(inner, (*at, index))


class Parameters:
    """Checks all parameters of an operation's requests and names each that is out of its bounds.

    :param parameters: as the contract describes them
    """

    def __init__(self, parameters: Sequence[Mapping[str, Any]], uri_parser: Any) -> None:
        self.uri_parser = uri_parser
        self.query, self.path, self.header = (
            [one for one in parameters if one["in"] == place] for place in ("query", "path", "header")
        )
        self.known = [one["name"] for one in self.query]
        self.queried = any(one.get("required") for one in self.query)

    def check(self, scope: Scope) -> None:
        """Raises Problem when a parameter breaks its schema."""
        found: list[Fault] = []
        if scope["query_string"] or self.queried:
            found += self._of_query(scope)
        for one in self.path:
            found += self._of(one, scope["path_params"].get(one["name"]))
        if self.header:
            headers = Headers(scope=scope)
            for one in self.header:
                found += self._of(one, headers.get(one["name"]))
        if found:
            raise Problem(INVALID, faults=found)

    def _of(self, parameter: Mapping[str, Any], value: str | None) -> Iterator[Fault]:
        name = parameter["name"]
        if value is not None:
            yield from faults(_validator(parameter["schema"]), value, [name])
        elif parameter.get("required"):
            yield fault([name], "is required", "required")

    def _of_query(self, scope: Scope) -> Iterator[Fault]:
        request = ConnexionRequest(scope, uri_parser=self.uri_parser)
        given, raw = request.query_params, request._starlette_request.query_params
        for name in raw:
            if name not in self.known:
                yield with_value(_unknown(name, self.known), raw[name])
        for name in self.known:
            if len(raw.getlist(name)) > 1:
                yield fault([name], "may be given once only", "unique")
        for parameter in self.query:
            name, rules = parameter["name"], parameter["schema"]
            if name in given:
                yield from _query_faults(name, rules, raw[name], given[name])
            elif parameter.get("required"):
                yield fault([name], "is required", "required")


def _query_faults(name: str, rules: Mapping[str, Any], raw: str, value: Any) -> Iterator[Fault]:
    integer = rules.get("type") == "integer"
    if integer and not re.fullmatch(r"-?[0-9]{1,18}", raw):
        # int() takes more than this: blanks, underscores, digits of other scripts.
        yield with_value(fault([name], f"must be {_bounds(rules)}", "type"), raw)
    elif not storable(str(value)):
        yield fault([name], "must not have the character NUL or half a surrogate pair", "type")
    else:
        for one in faults(_validator(rules), value, [name]):
            if integer:
                one["message"] = f"must be {_bounds(rules)}"
            yield one


def _unknown(name: str, known: Sequence[str]) -> Fault:
    meant = ELSEWHERE.get(name.lower()) or nearest(name, known)
    if not known:
        other = "this operation has no parameters"
    else:
        other = f"did you mean {meant}?" if meant in known else f"it may be {', '.join(known)}"
    message = f"is not a parameter of this operation; {other}"
    # A name is cut, as it comes from the client.
    return {"field": name[:100] or "''", "message": message, "constraint": "unknown"}


def _bounds(rules: Mapping[str, Any]) -> str:
    low, high = rules.get("minimum"), rules.get("maximum")
    bounds = (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
    return f"an integer{bounds}"


class Validation:
    """The layer of one operation: Connexion's, with all that is the same for each request made once."""

    def __init__(self, app: ASGIApp, operation: AbstractOperation, body: Any) -> None:
        self.app = app
        parser = operation.uri_parser_class(operation.parameters, operation.body_definition())
        self.parameters = Parameters(operation.parameters, parser)
        self.bodies = {
            kind: functools.partial(body, schema=operation.body_schema(kind), strict_validation=False)
            for kind in operation.consumes
        }
        if not operation.request_body:
            self.bodies = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on that the contract allows. Raises Problem for another."""
        self.parameters.check(scope)
        if self.bodies:
            kind, encoding = utils.split_content_type(utils.extract_content_type(scope["headers"]))
            made = self.bodies.get(kind.lower() if kind else next(iter(self.bodies)))
            if made is None:
                raise Problem(UNSUPPORTED_TYPE)
            validator = made(encoding=encoding or "utf-8")
            receive, scope = await validator.wrap_receive(receive, scope=scope)
        await self.app(scope, receive, send)


class _Validations(RoutedAPI[Validation]):
    def __init__(self, *args: Any, validator_map: Mapping[str, Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self.body = validator_map["body"]
        self.add_paths()

    def make_operation(self, operation: AbstractOperation) -> Validation:
        return Validation(self.next_app, operation, self.body)


class Validated(RoutedMiddleware[_Validations]):
    """Connexion's layer that checks requests."""

    api_cls = _Validations


def validators(provider: Provider) -> dict[str, Any]:
    """What checks the bodies of requests, as :class:`Validated` takes it."""
    return {"body": functools.partial(BodyValidator, provider)}


def creation_validators(document: Mapping[str, Any]) -> dict[str, schema.Validator]:
    """For each kind a validator of the body that creates a resource of it."""
    named = document["components"]["schemas"]
    return {kind: schema.compile_schema(named[f"{kind}CreateRequest"], named) for kind in RESOURCES}
