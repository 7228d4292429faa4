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

# The tokens that each type of field takes, and what messages call them; other types take quoted text.
TIMES = (("STRING", "TIME"), "an RFC 3339 time in quotes, such as '2026-01-31T12:00:00Z'")
TAKES = {"number": (("NUMBER",), "a number"), "time": TIMES, "moment": TIMES}
TEXT = (("STRING",), "text in quotes")


def compared(field: Field, operand: Token) -> tuple[str, str, Any]:
    """Returns the field's SQL for a comparison with this value, the value's SQL type, and the value.

    Raises Fault if the value's type does not match the field's.
    """
    if field.type == "any":
        return _compared_json(field, operand)
    tokens, what = TAKES.get(field.type, TEXT)
    try:
        if operand.type not in tokens:
            raise ValueError
        match field.type:
            case "number":
                return field.sql, "numeric", _number(operand)
            case "time":
                return field.sql, "timestamptz", _time(operand)
            case "moment":
                moment = _time(operand).replace(tzinfo=None)
                return field.sql, "text", moment.isoformat(timespec="microseconds") + "Z"
        return field.sql, field.type, unquoted(operand)
    except (ValueError, OverflowError):
        raise Fault(operand, f"expected {what} for {field.name}") from None


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


def _time(operand: Token) -> datetime:
    """Returns the time. Raises ValueError, or OverflowError if it is in no year from 1 to 9999."""
    match = TIME.fullmatch(unquoted(operand))
    if not match:
        raise ValueError
    date, clock, fraction, zone = match.groups()
    # Cuts off digits beyond microseconds, which stored times do not have.
    moment = datetime.fromisoformat(f"{date}T{clock}.{fraction or 0}{zone.upper()}")
    return moment.astimezone(UTC)
