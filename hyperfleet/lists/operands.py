"""The values that a search compares fields with: from how they are written to what is bound."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from lark import Token

from hyperfleet.lists.columns import Field
from hyperfleet.lists.grammar import Fault

# What a double holds, and so what any client can have sent.
MAX_EXPONENT = 308

TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,12}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

# The values that fields take; all others take text.
TAKES = {"number": ("NUMBER",), "time": ("STRING", "TIME"), "moment": ("STRING", "TIME")}


def compared(field: Field, operand: Token) -> tuple[str, str, Any]:
    """The field's side of a comparison with this value, the value's SQL type, and the value.

    Raises Fault for a value of another type than the field's.
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
    """As compared, where the value's type decides what the field is read as.

    The case keeps PostgreSQL from casting what has another type, which would fail.
    """
    if operand.type in ("STRING", "TIME"):
        return scalar(field), "text", unquoted(operand)
    if operand.type == "NUMBER":
        case = f"CASE jsonb_typeof({field.sql}) WHEN 'number' THEN {field.sql}::numeric END"
        return f"({case})", "numeric", _number(operand)
    case = f"CASE jsonb_typeof({field.sql}) WHEN 'boolean' THEN {field.sql}::boolean END"
    return f"({case})", "boolean", operand.type == "TRUE"


def scalar(field: Field) -> str:
    """The SQL of a JSON value's text; null for objects and lists."""
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
    """The text that stands in quotes, each of them doubled within; a time may stand without."""
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
    # Digits beyond the microseconds, which no stored time has, are cut off.
    fraction = (fraction or "0")[:6].ljust(6, "0")
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}.{fraction}{zone.upper()}")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Fault(operand, f"expected {_wanted(field)}") from None
