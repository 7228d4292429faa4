"""Validates requests against the contract, in place of Connexion's validators, to report all faults."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from connexion.decorators.parameter import pythonic
from connexion.middleware.abstract import RoutedAPI, RoutedMiddleware
from connexion.operations import AbstractOperation
from connexion.utils import inspect_function_arguments
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send
from werkzeug.http import parse_options_header

from hyperfleet.contract import schema
from hyperfleet.contract.faults import HINTED, MAX_FAULTS, fault, faults
from hyperfleet.contract.provider import Provider
from hyperfleet.errors import INVALID, MALFORMED, UNSUPPORTED_TYPE, Fault, Problem, with_value
from hyperfleet.kinds import RESOURCES
from hyperfleet.nearest import nearest
from hyperfleet.storable import storable

# The scope's key by which the outermost layer says that a body taken for JSON may be something else.
UNSURE = "hyperfleet.unsure"

# The scope's key for the function of an operation and its arguments.
CALL = "hyperfleet.call"

# Accepted charsets of a body; ASCII is a subset of UTF-8.
CHARSETS = ("utf-8", "utf8", "us-ascii")

UNSTORABLE = "must not have the character NUL or half a surrogate pair"

MAX_DIGITS = 1000
MAX_SPREAD = 64 * 1024
# All whole numbers below this are exact as doubles.
EXACT = 2**53

# Names that our parameters have in other APIs.
ELSEWHERE = {
    **dict.fromkeys(("limit", "per_page", "perpage", "page_size", "maxresults"), "pageSize"),
    **dict.fromkeys(("labelselector", "fieldselector", "filter", "q", "query"), "search"),
    **dict.fromkeys(("sort", "sortby", "sort_by", "order_by"), "orderBy"),
    **dict.fromkeys(("select", "include"), "fields"),
    **dict.fromkeys(("offset", "start"), "page"),
    **dict.fromkeys(("next", "cursor", "pagetoken", "page_token"), "continue"),
}


class Body:
    """Parses and validates a JSON body, and reports all its faults.

    :param definition: the body's schema in the contract
    :param provider: validates the spec, if the body is one with a resource's whole spec
    """

    def __init__(self, definition: Mapping[str, Any], provider: Provider) -> None:
        self.schema = definition
        self.validator = schema.compile_schema(definition)
        self.provider = provider

    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Returns the value of a body, without members whose null means absent.

        Raises Problem if the body is missing, malformed or invalid.
        """
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Problem(MALFORMED, "The client went away before the body was complete.")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        content = b"".join(parts)
        try:
            body = parse(content)
        except Problem as problem:
            if scope.get(UNSURE) and content.strip() and problem.entry.code == MALFORMED:
                raise Problem(UNSUPPORTED_TYPE) from None
            raise
        found = list(self._faults(body))
        if found:
            raise Problem(INVALID, faults=found)
        return schema.tidy(self.schema, body)

    def _faults(self, body: Any) -> Iterator[Fault]:
        yield from faults(self.validator, body)
        kind = self.schema.get("x-spec-of")
        if kind and isinstance(body, dict) and isinstance(body.get("spec"), dict):
            yield from self.provider.faults(kind, body["spec"])


class Numbers:
    """Parses the numbers of one body.

    PostgreSQL writes 1e308 with 309 digits, so a body of such numbers would come back fifty times as
    long. A whole number with a fraction or an exponent, as Go clients write it, becomes an integer:
    they could not read it otherwise.
    """

    def __init__(self) -> None:
        self.spare = MAX_SPREAD

    def integer(self, text: str) -> int:
        """Returns the integer. Raises ValueError if it has too many digits."""
        if len(text) > MAX_DIGITS:
            raise ValueError(f"an integer of {len(text)} digits; at most {MAX_DIGITS} are allowed")
        return int(text)

    def other(self, text: str) -> float | int:
        """Returns the number. Raises ValueError if it is too large, or the body's exponents are."""
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{text[:20]} is larger than a double")
        exponent = text.lower().partition("e")[2]
        self.spare -= min(abs(int(exponent)), 330) if exponent else 0
        if self.spare < 0:
            raise ValueError(f"all exponents together must not exceed {MAX_SPREAD}")
        if number.is_integer() and abs(number) < EXACT:
            return int(number)
        return number


def parse(body: bytes) -> Any:
    """Parses a JSON document (RFC 8259).

    Raises Problem if it is malformed, or has something that is not stored: numbers out of range, the
    character NUL, half a surrogate pair, more than 64 levels.
    """
    if not body.strip():
        raise Problem(MALFORMED, "The body is empty; a JSON object is expected.")
    numbers = Numbers()
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
        raise Problem(MALFORMED, f"The body has more than {schema.MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise Problem(MALFORMED, f"The body has a number out of range: {error}.") from None
    if body.count(b"{") + body.count(b"[") > schema.MAX_DEPTH and schema.depth(value) > schema.MAX_DEPTH:
        raise Problem(MALFORMED, f"The body has more than {schema.MAX_DEPTH} levels.")
    # These characters can only occur as escapes, so most bodies need no closer look.
    if b"\\u0000" in body or re.search(rb"\\ud[89a-f]", body, re.IGNORECASE):
        found = list(islice(_unstorable(value, ()), MAX_FAULTS))
        if found:
            raise Problem(INVALID, faults=found)
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _unstorable(value: Any, at: tuple[str | int, ...]) -> Iterator[Fault]:
    if isinstance(value, str):
        if not storable(value):
            yield fault(at, UNSTORABLE, "characters")
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
    """Validates the parameters of an operation, and reports each that breaks its schema.

    :param operation: the operation
    """

    def __init__(self, operation: AbstractOperation) -> None:
        of: dict[str, list[Parameter]] = {"query": [], "path": [], "header": []}
        for one in operation.parameters:
            of[one["in"]].append(Parameter(one))
        self.path, self.header = of["path"], of["header"]
        self.query = {one.name: one for one in of["query"]}
        named, rest = inspect_function_arguments(operation.function)
        # The query parameters that the handler takes, with the names of its arguments.
        self.given = {one.name: pythonic(one.name) for one in of["query"]}
        self.given = {name: to for name, to in self.given.items() if rest or to in named}
        self.defaults = {
            self.given[one.name]: one.rules["default"]
            for one in of["query"]
            if "default" in one.rules and one.name in self.given
        }
        self.queried = any(one.required for one in of["query"])

    def read(self, scope: Scope) -> dict[str, Any]:
        """Returns the arguments for the handler. Raises Problem if a parameter breaks its schema."""
        found: list[Fault] = []
        arguments = dict(self.defaults)
        if scope["query_string"] or self.queried:
            found += self._of_query(QueryParams(scope["query_string"]), arguments)
        for one in self.path:
            text = scope["path_params"].get(one.name)
            wrong = [*(one.query_faults(text) if one.integer else one.faults(text))]
            found += wrong
            if one.integer and not wrong:
                arguments[one.name] = one.value(text)
        if self.header:
            headers = Headers(scope=scope)
            for one in self.header:
                found += one.faults(headers.get(one.name))
        if found:
            raise Problem(INVALID, faults=found)
        return arguments

    def _of_query(self, query: QueryParams, arguments: dict[str, Any]) -> Iterator[Fault]:
        given: dict[str, list[str]] = {}
        for name, value in query.multi_items():
            known = self.query.get(name)
            text = known.told(value) if known else value
            if text is not None:
                given.setdefault(name, []).append(text)
        strange = (name for name in given if name not in self.query)
        for name in islice(strange, HINTED):
            yield with_value(_unknown(name, list(self.query)), given[name][-1])
        for name, parameter in self.query.items():
            values = given.get(name)
            if values:
                if len(values) > 1:
                    yield fault([name], "may be given once only", "unique")
                found = list(parameter.query_faults(values[-1]))
                yield from found
                if not found and name in self.given:
                    arguments[self.given[name]] = parameter.value(values[-1])
            elif parameter.required:
                yield fault([name], "is required", "required")


class Parameter:
    """A parameter as the contract describes it."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.name: str = described["name"]
        self.required = bool(described.get("required"))
        self.may_be_empty = bool(described.get("allowEmptyValue"))
        self.rules: Mapping[str, Any] = described["schema"]
        for part in self.rules.get("allOf", ()):
            # The type and the bounds may be there.
            self.rules = {**part, **self.rules}
        self.integer = self.rules.get("type") == "integer"
        self.validator = schema.compile_schema(self.rules)

    def told(self, text: str) -> str | None:
        """Returns what a query parameter says, or None if it counts as not given.

        The originals take an empty text as that, and ignore blanks around a number.
        """
        if not self.may_be_empty:
            return text
        bare = text.strip(" ")
        return (bare if self.integer else text) if bare else None

    def value(self, text: str) -> Any:
        """Returns the value of a valid text."""
        return int(text) if self.integer else text

    def faults(self, value: str | None) -> Iterator[Fault]:
        """Yields what is wrong with a parameter in a path or a header; None means that it is missing."""
        if value is not None:
            yield from faults(self.validator, value, [self.name])
        elif self.required:
            yield fault([self.name], "is required", "required")

    def query_faults(self, text: str) -> Iterator[Fault]:
        """Yields what is wrong with a query parameter."""
        if self.integer and not re.fullmatch(r"-?[0-9]{1,18}", text):
            # int() accepts more than this: blanks, underscores, digits of other scripts.
            yield with_value(fault([self.name], f"must be {_bounds(self.rules)}", "type"), text)
        elif not storable(text):
            yield fault([self.name], UNSTORABLE, "type")
        else:
            for one in faults(self.validator, self.value(text), [self.name]):
                if self.integer:
                    one["message"] = f"must be {_bounds(self.rules)}"
                yield one


def _unknown(name: str, known: Sequence[str]) -> Fault:
    meant = ELSEWHERE.get(name.lower()) or nearest(name, known)
    if not known:
        other = "this operation has no parameters"
    else:
        other = f"did you mean {meant}?" if meant in known else f"expected one of {', '.join(known)}"
    message = f"is not a parameter of this operation; {other}"
    # Truncated, since the name comes from the client.
    return {"field": name[:100] or "''", "message": message, "constraint": "unknown"}


def _bounds(rules: Mapping[str, Any]) -> str:
    low, high = rules.get("minimum"), rules.get("maximum")
    bounds = (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
    return f"an integer{bounds}"


class Validation:
    """The validation layer of one operation; what is the same for each request is prepared once.

    It passes on the arguments that it has read, with which the handler is called.
    """

    def __init__(self, app: ASGIApp, operation: AbstractOperation, provider: Provider) -> None:
        self.app = app
        self.function = operation.function
        self.parameters = Parameters(operation)
        self.bodies: dict[str, Body] = {}
        if operation.request_body:
            # Not body_schema(), which logs a warning for each operation with several media types.
            for kind, described in operation.request_body["content"].items():
                rules = operation.with_definitions(described)["schema"]
                self.bodies[kind] = Body(rules, provider)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a valid request. Raises Problem for any other."""
        arguments = self.parameters.read(scope)
        if self.bodies:
            headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
            given = next((value for name, value in headers if name == b"content-type"), b"")
            kind, charset = _media_type(given.decode("latin-1"))
            # As in Kubernetes, a body without a content type is taken for JSON.
            body = self.bodies.get(kind or next(iter(self.bodies)))
            if body is None or charset not in CHARSETS:
                raise Problem(UNSUPPORTED_TYPE)
            arguments["body"] = await body.read(scope, receive)
        call = self.function, {**scope["path_params"], **arguments}
        await self.app({**scope, CALL: call}, receive, send)


def _media_type(header: str) -> tuple[str, str]:
    """Returns the media type and the charset of a body in lower case."""
    kind, parameters, _ = header.partition(";")
    # Not Connexion's split_content_type(), which misses a charset after a blank, and its quotes.
    charset = parse_options_header(header)[1].get("charset", "") if parameters else ""
    return kind.strip().lower(), charset.lower() or "utf-8"


class _Validations(RoutedAPI[Validation]):
    def __init__(self, *args: Any, validator_map: Mapping[str, Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self.provider: Provider = validator_map["provider"]
        self.add_paths()

    def make_operation(self, operation: AbstractOperation) -> Validation:
        return Validation(self.next_app, operation, self.provider)


class Validated(RoutedMiddleware[_Validations]):
    """Connexion's layer for validation; its ``validator_map`` holds the ``provider``."""

    api_cls = _Validations


def creation_validators(document: Mapping[str, Any]) -> dict[str, schema.Validator]:
    """Returns, for each kind, the validator of the body that creates a resource."""
    named = document["components"]["schemas"]
    return {kind: schema.compile_schema(named[f"{kind}CreateRequest"], named) for kind in RESOURCES}
