"""Random searches over random rows: PostgreSQL and an interpreter in Python find the same.

The interpreter is written from docs/search.md and shares no code with the translation. It works on the
tree that the expression is printed from, so the parser's precedence is tested as well.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from hyperfleet.lists.search import translate

pytestmark = pytest.mark.slow

# Few of each, so that comparisons often match.
TEXTS = [
    "",
    "a",
    "b",
    "ab",
    "A",
    "a.b",
    "a_b",
    "a%b",
    "O'Neill",
    'say "so"',
    "a\\b",
    "3",
    "3.5",
    "true",
    "é",
]
KEYS = ["env", "tier", "app.kubernetes.io/name", "a-b", "it's"]
MEMBERS = ["a", "b", "in", "weird key", "0"]
NUMBERS = ["0", "1", "-1", "3", "3.5", "1000", "1e3", "+2", ".5", "-2.50", "12345678901234567890"]
# Two conditions under two names each, as the aggregation keeps them.
PAIRS = {"Ready": "Reconciled", "Available": "LastKnownReconciled"}
TYPES = [*PAIRS, *PAIRS.values(), "DnsSuccessful", "example.com/Synced"]
STATES = ["True", "False", "Unknown"]
START = datetime(2026, 3, 1, tzinfo=UTC)
TIMES = [START + timedelta(seconds=n * 0.5) for n in range(4)] + [START + timedelta(microseconds=1)]
IDS = [str(UUID(int=0x0195_0000_0000_7000_8000_0000_0000_00A0 + n)) for n in range(6)]


def canonical(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# Rows, as the interpreter sees them: missing members are absent.

json_scalars = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from([0, 1, -1, 3, Decimal("3.5"), 1000, 12345678901234567890]),
    st.booleans(),
    st.none(),
)
json_values = st.recursive(
    json_scalars,
    lambda below: st.one_of(
        st.lists(below, max_size=2), st.dictionaries(st.sampled_from(MEMBERS), below, max_size=3)
    ),
    max_leaves=6,
)
times = st.sampled_from(TIMES)
stored_conditions = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(STATES),
        "reason": st.sampled_from(TEXTS),
        "observed_generation": st.integers(0, 3),
        "last_updated_time": times,
        "last_transition_time": times,
    },
)


@st.composite
def statuses(draw: st.DrawFn) -> dict[str, Any]:
    status = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "phase": st.sampled_from(["Ready", "NotReady", "Failed"]),
                "observed_generation": st.integers(0, 3),
                "last_updated_time": times,
                "last_transition_time": times,
            },
        )
    )
    by_type = draw(st.dictionaries(st.sampled_from(TYPES), stored_conditions, max_size=4))
    for one, other in PAIRS.items():
        by_type.pop(one, None)
        if other in by_type:
            by_type[one] = by_type[other]
    return {**status, "conditions": by_type}


rows = st.fixed_dictionaries(
    {
        "generation": st.integers(1, 4),
        "labels": st.dictionaries(st.sampled_from(KEYS), st.sampled_from(TEXTS), max_size=4),
        "spec": st.dictionaries(st.sampled_from(MEMBERS), json_values, max_size=4),
        "status": statuses(),
        "created_time": times,
        "deleted_time": st.one_of(st.none(), times),
        "created_by": st.sampled_from(TEXTS),
    }
)


def jsonable(value: Any) -> Any:
    match value:
        case dict():
            return {name: jsonable(below) for name, below in value.items()}
        case list():
            return [jsonable(below) for below in value]
        case datetime():
            return canonical(value)
        case Decimal():
            return float(value)
    return value


def insert(sql: psycopg.Connection, fleet: list[dict[str, Any]]) -> None:
    sql.execute("TRUNCATE clusters, labels, node_pools")
    for number, row in enumerate(fleet):
        status = jsonable(row["status"])
        status["conditions"] = [{"type": t, **c} for t, c in status["conditions"].items()]
        sql.execute(
            "INSERT INTO clusters (id, name, generation, labels, spec, status, created_time,"
            " updated_time, created_by, updated_by, deleted_time, deleted_by)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, '', %s, %s)",
            [
                *(IDS[number], f"c{number}", row["generation"], Jsonb(row["labels"])),
                *(Jsonb(jsonable(row["spec"])), Jsonb(status), row["created_time"]),
                *(row["created_time"], row["created_by"], row["deleted_time"]),
                "x" if row["deleted_time"] else None,
            ],
        )
        for key, value in row["labels"].items():
            sql.execute(
                "INSERT INTO labels (owner_type, owner_id, key, value, created_time)"
                " VALUES ('Cluster', %s, %s, %s, %s)",
                [IDS[number], key, value, row["created_time"]],
            )


# Fields: how each is written, and what the interpreter reads.

Read = Callable[[dict[str, Any]], Any]


@st.composite
def quoted(draw: st.DrawFn, text: str) -> str:
    quote = draw(st.sampled_from("'\""))
    return quote + text.replace(quote, quote * 2) + quote


@st.composite
def segment(draw: st.DrawFn, name: str) -> str:
    bare = re.fullmatch(r"[\w-]+", name) is not None
    return name if bare and draw(st.booleans()) else draw(quoted(name))


def member(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


@st.composite
def fields(draw: st.DrawFn) -> tuple[str, str, Read]:
    """Draws a field: its name in an expression, its type, and how to read it from a row."""
    match draw(st.sampled_from(["column", "label", "label", "spec", "spec", "status", "condition"])):
        case "column":
            name, type_ = draw(
                st.sampled_from(
                    [
                        *(("id", "id"), ("name", "text"), ("kind", "text"), ("generation", "number")),
                        *(("created_time", "time"), ("deleted_time", "time"), ("created_by", "text")),
                    ]
                )
            )
            return name, type_, lambda row: row[name]
        case "label":
            key = draw(st.sampled_from(KEYS))
            return f"labels.{draw(segment(key))}", "text", lambda row: row["labels"].get(key)
        case "spec":
            path = draw(st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=3))
            text = ".".join(draw(segment(name)) for name in path)
            return f"spec.{text}", "json", lambda row: member(row["spec"], path)
        case "status":
            name, type_ = draw(
                st.sampled_from(
                    [
                        *(("phase", "text"), ("observed_generation", "number")),
                        *(("last_updated_time", "time"), ("last_transition_time", "time")),
                    ]
                )
            )
            return f"status.{name}", type_, lambda row: row["status"].get(name)
    which = draw(st.sampled_from(TYPES))
    text = f"status.conditions.{draw(segment(which))}"
    name, type_ = draw(
        st.sampled_from(
            [
                *(("", "text"), ("reason", "text"), ("observed_generation", "number")),
                *(("last_updated_time", "time"), ("last_transition_time", "time")),
            ]
        )
    )
    return (
        text + ("." + name if name else ""),
        type_,
        lambda row: row["status"]["conditions"].get(which, {}).get(name or "status"),
    )


# Values: how each is written, and what the interpreter compares with.


@st.composite
def values(draw: st.DrawFn, type_: str) -> tuple[str, Any]:
    if type_ == "json":
        type_ = draw(st.sampled_from(["text", "number", "boolean"]))
    match type_:
        case "number":
            text = draw(st.sampled_from(NUMBERS))
            return text, Decimal(text)
        case "boolean":
            value = draw(st.booleans())
            return draw(st.sampled_from([str(value), str(value).lower()])), value
        case "time":
            moment = draw(times)
            zone = timezone(timedelta(hours=draw(st.integers(-12, 12))))
            return draw(quoted(moment.astimezone(zone).isoformat())), moment
        case "id":
            text = draw(st.sampled_from([*IDS, IDS[0].upper(), "", "c0", "zzz"]))
            return draw(quoted(text)), text.lower()
    text = draw(st.sampled_from([*TEXTS, *STATES, "Ready", "Failed", "c0", "c1", "Cluster"]))
    return draw(quoted(text)), text


def text_of(value: Any) -> str | None:
    """Returns a JSON value as text, or None for an object or a list."""
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | Decimal():
            return str(value)
    return None


def comparable(value: Any, other: Any) -> Any:
    """Returns the stored value in the type of the literal, or None."""
    match other:
        case bool():
            return value if isinstance(value, bool) else None
        case Decimal():
            number = isinstance(value, int | Decimal) and not isinstance(value, bool)
            return Decimal(value) if number else None
        case datetime():
            return value
    return text_of(value)


def compare(symbol: str, value: Any, other: Any) -> bool:
    value = comparable(value, other)
    if value is None:
        return False
    if isinstance(value, str):
        value, other = value.encode(), other.encode()
    return {
        "=": value == other,
        "<": value < other,
        "<=": value <= other,
        ">": value > other,
        ">=": value >= other,
    }[symbol]


def like(pattern: str, *, fold: bool) -> re.Pattern[str]:
    parts = {"%": ".*", "_": "."}
    body = "".join(
        re.escape(piece[1]) if len(piece) == 2 else parts.get(piece) or re.escape(piece)
        for piece in re.findall(r"\\.|.", pattern, re.DOTALL)
    )
    return re.compile(body, re.DOTALL | (re.IGNORECASE if fold else 0))


Test = Callable[[dict[str, Any]], bool]
# The printed form, how tightly it binds, and what it means.
Expression = tuple[str, int, Test]
LIKE = ["%", "a%", "%b", "_", "a_b", "a\\_b", "a\\%b", "%'%", "A%", "tr%", "%\\\\%", "", "3%", "C0"]
REGEX = ["a", "^a", "b$", "^(a|b)$", "[0-9]+", "^$", "a.b", "(True|a)", "^[^a]*$", "a{1}", "3?"]


@st.composite
def comparisons(draw: st.DrawFn) -> Expression:
    name, type_, read = draw(fields())
    space = draw(st.sampled_from(["", " "]))
    negated = draw(st.booleans())
    word_not = draw(st.sampled_from(["not ", "NOT "])) if negated else ""
    forms = ["equal", "equal", "order", "in", "between", "null"]
    if type_ in ("text", "json", "id"):
        forms += ["like", "regex"]
    match draw(st.sampled_from(forms)):
        case "equal":
            text, other = draw(values(type_))
            symbol = draw(st.sampled_from(["!=", "<>"])) if negated else "="
            return (
                f"{name}{space}{symbol}{space}{text}",
                3,
                lambda row: compare("=", read(row), other) != negated,
            )
        case "order":
            text, other = draw(values(type_).filter(lambda pair: not isinstance(pair[1], bool)))
            symbol = draw(st.sampled_from(["<", "<=", ">", ">="]))
            return f"{name}{space}{symbol}{text}", 3, lambda row: compare(symbol, read(row), other)
        case "in":
            given_ = draw(st.lists(values(type_), max_size=4))
            texts, others = [text for text, _ in given_], [other for _, other in given_]
            left, right = draw(st.sampled_from(["()", "[]"]))
            return (
                f"{name} {word_not}in {left}{','.join(texts)}{right}",
                3,
                lambda row: any(compare("=", read(row), o) for o in others) != negated,
            )
        case "between":
            low_text, low = draw(values(type_).filter(lambda pair: not isinstance(pair[1], bool)))
            high_text, high = draw(values(type_).filter(lambda pair: type(pair[1]) is type(low)))
            return (
                f"{name} {word_not}between {low_text} and {high_text}",
                3,
                lambda row: (
                    (compare(">=", read(row), low) and compare("<=", read(row), high)) != negated
                ),
            )
        case "null":
            return f"{name} IS {word_not}null", 3, lambda row: (read(row) is None) != negated
        case "like":
            pattern = draw(st.sampled_from(LIKE))
            fold = draw(st.booleans())
            matcher = like(pattern, fold=fold)
            text = f"{name} {word_not}{'ilike' if fold else 'LIKE'} {draw(quoted(pattern))}"
        case "regex":
            pattern = draw(st.sampled_from(REGEX))
            matcher = re.compile(f".*?(?:{pattern}).*".replace("$)", r"\Z)"), re.DOTALL)
            symbol = draw(st.sampled_from(["~!", "!~"])) if negated else "~="
            text = f"{name}{space}{symbol}{draw(quoted(pattern))}"

    def matches(row: dict[str, Any]) -> bool:
        value = text_of(read(row))
        return (value is not None and matcher.fullmatch(value) is not None) != negated

    return text, 3, matches


@st.composite
def combined(draw: st.DrawFn, below: st.SearchStrategy[Expression]) -> Expression:
    def wrapped(expression: Expression, weakest: int) -> str:
        text, strength, _ = expression
        return f"({text})" if strength < weakest or draw(st.integers(0, 5)) == 0 else text

    word = draw(st.sampled_from(["and", "or", "not", "AND", "Or", "Not"]))
    if word.lower() == "not":
        one = draw(below)
        return f"{word} {wrapped(one, 2)}", 2, lambda row: not one[2](row)
    several = draw(st.lists(below, min_size=2, max_size=3))
    strength, test = (1, all) if word.lower() == "and" else (0, any)
    return (
        f" {word} ".join(wrapped(one, strength) for one in several),
        strength,
        lambda row: test(one[2](row) for one in several),
    )


expressions = st.recursive(comparisons(), combined, max_leaves=6)


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(rows, min_size=1, max_size=6),
    st.lists(expressions, min_size=4, max_size=12),
)
def test_the_database_and_the_interpreter_agree(
    sql: psycopg.Connection, fleet: list[dict[str, Any]], searches: list[Expression]
) -> None:
    for number, row in enumerate(fleet):
        row |= {"id": IDS[number], "name": f"c{number}", "kind": "Cluster"}
    with sql.transaction(force_rollback=True):
        insert(sql, fleet)
        for text, _, test in searches:
            condition = translate(text, "Cluster")
            found = sql.execute(
                f"SELECT name FROM clusters WHERE {condition.sql} ORDER BY name", condition.values
            ).fetchall()
            assert [name for (name,) in found] == [row["name"] for row in fleet if test(row)], text
