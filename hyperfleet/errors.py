"""The errors of the API: one catalogue, one exception, one JSON object.

The object is a problem as in RFC 9457, with additional members that OCM clients read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from hyperfleet.kinds import BASE
from hyperfleet.times import now

HREF = f"{BASE}/errors/"
TYPE = "https://api.hyperfleet.io/errors/"


class Fault(TypedDict, total=False):
    """One fault of a request: the field, what is wrong, the violated rule, and the value."""

    field: str
    message: str
    constraint: str
    value: str | int | float


@dataclass(frozen=True)
class Entry:
    """An entry of the catalogue; its slug is the end of the problem's type URI (RFC 9457)."""

    code: str
    status: int
    slug: str
    title: str
    reason: str

    def document(self) -> dict[str, Any]:
        """Returns the entry as ``/errors`` shows it."""
        return {
            "kind": "Error",
            "id": self.code,
            "href": HREF + self.code,
            "code": self.code,
            "status": self.status,
            "title": self.title,
            "reason": self.reason,
        }


INVALID = "HYPERFLEET-VAL-000"
REQUIRED = "HYPERFLEET-VAL-001"
BAD_VALUE = "HYPERFLEET-VAL-002"
BAD_FORMAT = "HYPERFLEET-VAL-003"
OUT_OF_RANGE = "HYPERFLEET-VAL-004"
BAD_REQUEST = "HYPERFLEET-VAL-005"
MALFORMED = "HYPERFLEET-VAL-006"
BAD_SEARCH = "HYPERFLEET-VAL-007"
UNSUPPORTED_TYPE = "HYPERFLEET-VAL-100"
BAD_METHOD = "HYPERFLEET-VAL-101"
NO_TOKEN = "HYPERFLEET-AUT-001"  # noqa: S105 (a code, as are those below)
INVALID_TOKEN = "HYPERFLEET-AUT-002"  # noqa: S105
EXPIRED_TOKEN = "HYPERFLEET-AUT-003"  # noqa: S105
NO_IDENTITY = "HYPERFLEET-AUT-100"
FORBIDDEN = "HYPERFLEET-AUZ-001"
NO_PATH = "HYPERFLEET-NTF-000"
NOT_FOUND = "HYPERFLEET-NTF-001"
NAME_TAKEN = "HYPERFLEET-CNF-001"
CHANGED_SINCE = "HYPERFLEET-CNF-002"
WRONG_STATE = "HYPERFLEET-CNF-003"
UNCONDITIONAL = "HYPERFLEET-CNF-100"
KEY_REUSED = "HYPERFLEET-CNF-101"
GONE = "HYPERFLEET-NTF-100"
TOO_LARGE = "HYPERFLEET-LMT-100"
HEADERS_TOO_LARGE = "HYPERFLEET-LMT-101"
TOO_SLOW = "HYPERFLEET-LMT-102"
INTERNAL = "HYPERFLEET-INT-001"
NO_DATABASE = "HYPERFLEET-SVC-001"
BUSY = "HYPERFLEET-SVC-002"
NO_KEYS = "HYPERFLEET-SVC-100"
NO_REVIEW = "HYPERFLEET-SVC-101"

CATALOGUE: dict[str, Entry] = {
    code: Entry(code, status, slug, title, reason)
    for status, slug, code, title, reason in (
        (
            400,
            "validation-error",
            INVALID,
            "Validation failed",
            "The request is not valid; errors lists what is wrong.",
        ),
        (400, "validation-error", REQUIRED, "Value missing", "A required value is missing."),
        (400, "validation-error", BAD_VALUE, "Value invalid", "A value is not one of those allowed."),
        (400, "validation-error", BAD_FORMAT, "Format wrong", "A value is not in its format."),
        (400, "validation-error", OUT_OF_RANGE, "Value out of range", "A value is out of its bounds."),
        (400, "bad-request", BAD_REQUEST, "Bad request", "The request cannot be understood."),
        (400, "malformed-request", MALFORMED, "Malformed body", "The body is not JSON in UTF-8."),
        (400, "validation-error", BAD_SEARCH, "Bad search", "The search cannot be understood."),
        (
            415,
            "bad-request",
            UNSUPPORTED_TYPE,
            "Unsupported media type",
            "The operation does not accept this media type.",
        ),
        (405, "bad-request", BAD_METHOD, "Method not allowed", "The path does not support this method."),
        (401, "authentication-error", NO_TOKEN, "Token missing", "The request has no bearer token."),
        (401, "authentication-error", INVALID_TOKEN, "Token refused", "The token is not accepted."),
        (401, "authentication-error", EXPIRED_TOKEN, "Token expired", "The token has expired."),
        (
            *(401, "authentication-error", NO_IDENTITY, "No identity"),
            "The token has no claim that names the caller, under whose name changes are recorded.",
        ),
        (403, "authorization-error", FORBIDDEN, "Forbidden", "The caller is not allowed to do this."),
        (404, "not-found", NO_PATH, "No such path", "The API has no such path."),
        (404, "not-found", NOT_FOUND, "Not found", "There is no such resource."),
        (
            *(410, "gone", GONE, "Too old"),
            "The feed cannot continue from this token, which is too old or from another database; read "
            "the list again, and continue with its changes link.",
        ),
        (409, "conflict", NAME_TAKEN, "Name taken", "Another resource has this name."),
        (
            *(412, "conflict", CHANGED_SINCE, "Changed since"),
            "The resource has changed since the version in If-Match.",
        ),
        (
            *(409, "conflict", WRONG_STATE, "Wrong state"),
            "A resource being deleted cannot be changed; only such a resource can be force-deleted.",
        ),
        (
            428,
            "conflict",
            UNCONDITIONAL,
            "If-Match required",
            "The request must have an If-Match header with the version that it changes.",
        ),
        (
            *(422, "conflict", KEY_REUSED, "Key reused"),
            "The Idempotency-Key was already used with another request.",
        ),
        (
            413,
            "limit-exceeded",
            TOO_LARGE,
            "Body too large",
            "The body is larger than the service accepts.",
        ),
        (
            431,
            "limit-exceeded",
            HEADERS_TOO_LARGE,
            "Headers too large",
            "The headers are larger than the service accepts.",
        ),
        (408, "limit-exceeded", TOO_SLOW, "Too slow", "The request did not arrive in time."),
        (
            500,
            "internal-error",
            INTERNAL,
            "Internal error",
            "An unexpected error; the service's log has the details.",
        ),
        (
            *(503, "service-unavailable", NO_DATABASE, "Database unavailable"),
            "The database is not reachable; try again later.",
        ),
        (
            *(503, "service-unavailable", BUSY, "Busy"),
            "The service is busy; try again later.",
        ),
        (
            *(503, "service-unavailable", NO_KEYS, "Keys unavailable"),
            "The keys that verify tokens are not available; try again later.",
        ),
        (
            *(503, "service-unavailable", NO_REVIEW, "Review unavailable"),
            "The access review is not available; try again later.",
        ),
    )
}

# What may be wrong with a token: details for INVALID_TOKEN.
MALFORMED_TOKEN = "The token is not a signed JSON Web Token."  # noqa: S105 (a sentence, as are these)
BAD_SIGNATURE = "The token's signature is not valid."
UNKNOWN_KEY = "The key that the token names is not known here."
BAD_ALGORITHM = "The token's algorithm is not accepted."
EARLY_TOKEN = "The token is not valid yet."  # noqa: S105
BAD_ISSUER = "Tokens of this issuer are not accepted."
BAD_AUDIENCE = "The token was issued for another audience."
BAD_TYPE = "The token is not an access token."

# The code of a validation error with a single fault, by its constraint; BAD_VALUE if not listed.
SINGLE = {
    **dict.fromkeys(("required", "dependentRequired"), REQUIRED),
    **dict.fromkeys(("format", "pattern"), BAD_FORMAT),
    **dict.fromkeys(
        (
            *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "size"),
            *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        ),
        OUT_OF_RANGE,
    ),
}
SECRET = re.compile(
    r"secret|pass|pwd|pw\b|pin\b|token|cred|private|key|auth|bearer|cookie|session|jwt|cert|kubeconfig",
    re.IGNORECASE,
)
MAX_VALUE = 64


def with_value(fault: Fault, value: Any) -> Fault:
    """Returns the fault with the wrong value, if that is short and its name suggests no secret."""
    short = isinstance(value, str | int | float) and len(str(value)) <= MAX_VALUE
    return {**fault, "value": value} if short and not SECRET.search(fault["field"]) else fault


class ConfigurationError(Exception):
    """Settings that the service cannot work with. The message is for operators."""


class StartError(ConfigurationError):
    """Something that the settings name, and the service needs, is missing or in use."""


class Problem(Exception):
    """The exception that handlers raise to answer with an error.

    :param code: the code of a catalogue entry; INVALID with a single fault becomes the fault's own code
    :param detail: what is wrong with this request; empty means the entry's reason. It is shown to
        clients, so it must not contain SQL, paths or hosts.
    :param faults: all faults of a validation
    :param headers: headers of the response
    """

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.faults = list(faults)
        if code == INVALID and len(self.faults) == 1:
            code = SINGLE.get(self.faults[0].get("constraint", ""), BAD_VALUE)
        self.entry = CATALOGUE[code]
        self.headers = dict(headers or {})
        self.detail = detail or "; ".join(f"{f['field']}: {f['message']}" for f in self.faults[:10])
        if len(self.faults) > 10:
            self.detail += f"; and {len(self.faults) - 10} more"
        self.detail = self.detail or self.entry.reason
        if self.entry.status == 503:
            self.headers.setdefault("Retry-After", "5")
        super().__init__(f"{code} {self.detail}")

    def document(self, instance: str, trace_id: str) -> dict[str, Any]:
        """Returns the JSON object that is sent to the client.

        :param instance: the path of the request
        :param trace_id: the id of the request
        """
        document: dict[str, Any] = {
            "type": TYPE + self.entry.slug,
            "title": self.entry.title,
            "status": self.entry.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.entry.code,
            "timestamp": now(),
            "trace_id": trace_id,
            "kind": "Error",
            "id": self.entry.code,
            "href": HREF + self.entry.code,
            "reason": self.detail,
            "operation_id": trace_id,
        }
        if self.faults:
            document["errors"] = self.faults
            document["details"] = [{"field": f["field"], "error": f["message"]} for f in self.faults]
        return document


def bad_parameter(name: str, message: str, value: Any = None) -> Problem:
    """Returns the error for a parameter that the contract alone cannot check."""
    fault: Fault = {"field": name, "message": message, "constraint": name}
    return Problem(INVALID, faults=[with_value(fault, value)])


def refusal(code: str, detail: str = "") -> Problem:
    """Returns a 401 with the challenge that RFC 6750, section 3, requires.

    :param code: a code of the catalogue; a missing token has no error code in the challenge
    :param detail: what is wrong; empty means the entry's reason
    """
    problem = Problem(code, detail)
    challenge = 'Bearer realm="hyperfleet"'
    if code != NO_TOKEN:
        challenge += f', error="invalid_token", error_description="{problem.detail}"'
    problem.headers["WWW-Authenticate"] = challenge
    return problem
