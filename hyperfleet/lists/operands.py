"""The values that a search compares fields with: from their notation to what is bound."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from lark import Token

from hyperfleet.lists.columns import Field
from hyperfleet.lists.grammar import Fault

# The range of a double, and so of any number that a client can have sent.
MAX_EXPONENT = 308

TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,12}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

# The tokens that each type of field takes; other types take quoted text.
TAKES = {"number": ("NUMBER",), "time": ("STRING", "TIME"), "moment": ("STRING", "TIME")}


def compared(field: Field, operand: Token) -> tuple[str, str, Any]:
    """Returns the field's SQL for a comparison with this value, the value's SQL type, and the value.

    Raises Fault if the value's type does not match the field's.
    """
    if field.type == "any":
        return _compared_json(field, operand)
    if operand.type not in TAKES.get(field.type, ("STRING",)):
        raise Fault(operand, f"expected {_wanted(field)}")
    match field.type:
        case "number":
            return field.sql, "numeric", _number(operand)
        case "time":
            return field.sql, "timestamptz", _time(field, operand)
        case "moment":
            moment = _time(field, operand).replace(tzinfo=None)
            return field.sql, "text", moment.isoformat(timespec="microseconds") + "Z"
    return field.sql, field.type, unquoted(operand)


def _compared_json(field: Field, operand: Token) -> tuple[str, str, Any]:
    """Does the same for a JSON field, which is read as the type of the value.

    The CASE keeps PostgreSQL from casting values of another type, which would fail.
    """
    if operand.type in ("STRING", "TIME"):
        return scalar(field), "text", unquoted(operand)
    if operand.type == "NUMBER":
        case = f"CASE jsonb_typeof({field.sql}) WHEN 'number' THEN {field.sql}::numeric END"
        return f"({case})", "numeric", _number(operand)
    case = f"CASE jsonb_typeof({field.sql}) WHEN 'boolean' THEN {field.sql}::boolean END"
    return f"({case})", "boolean", operand.type == "TRUE"


def scalar(field: Field) -> str:
    """Returns the SQL for a JSON value's text, which is null for objects and lists."""
    text = f"{field.sql} #>> '{{}}'"
    kinds = "'string', 'number', 'boolean'"
    return f"(CASE WHEN jsonb_typeof({field.sql}) IN ({kinds}) THEN {text} END)"


def _wanted(field: Field) -> str:
    what = {
        "number": "a number",
        "time": "an RFC 3339 time in quotes, such as '2026-01-31T12:00:00Z'",
        "moment": "an RFC 3339 time in quotes, such as '2026-01-31T12:00:00Z'",
    }.get(field.type, "text in quotes")
    return f"{what} for {field.name}"


def unquoted(operand: Token) -> str:
    """Returns the text in quotes, with doubled quotes undone; a time may be unquoted."""
    if operand.type == "TIME":
        return str(operand)
    quote = operand[0]
    return operand[1:-1].replace(quote * 2, quote)


def _number(operand: Token) -> Decimal:
    try:
        value = Decimal(str(operand))
    except ArithmeticError:
        value = Decimal("Infinity")
    if not value:
        return Decimal(0)
    if not value.is_finite() or abs(value.adjusted()) > MAX_EXPONENT:
        raise Fault(operand, f"expected a number between 1e-{MAX_EXPONENT} and 1e{MAX_EXPONENT}")
    return value


def _time(field: Field, operand: Token) -> datetime:
    match = TIME.fullmatch(unquoted(operand))
    if not match:
        raise Fault(operand, f"expected {_wanted(field)}")
    date, clock, fraction, zone = match.groups()
    try:
        # Cuts off digits beyond microseconds, which stored times do not have.
        moment = datetime.fromisoformat(f"{date}T{clock}.{fraction or 0}{zone.upper()}")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Fault(operand, f"expected {_wanted(field)}") from None
