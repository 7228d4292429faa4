"""The search language, TSL: turns an expression into one SQL condition with bound values.

These are pure functions without access to a database. docs/search.md describes the language.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lark import Token, Tree

from hyperfleet.kinds import ID, KINDS, RESOURCES
from hyperfleet.lists import columns, grammar, referring
from hyperfleet.lists.columns import Bind, Field
from hyperfleet.lists.grammar import Fault
from hyperfleet.lists.operands import compared, scalar, unquoted
from hyperfleet.lists.trouble import bad_search

MAX_TERMS = 100
MAX_LIST = 1000
MAX_PATTERN = 256
# Each label looked up in the table of labels adds a join; any further ones are read from the row.
MAX_LOOKUPS = 4


@dataclass(frozen=True)
class Condition:
    """A condition for WHERE, in psycopg's ``%(name)s`` style, and the values to bind.

    It is true for rows that match, and false or null for others; negate it with ``(…) IS NOT TRUE``.

    :param count: SQL for the number of matching rows in the whole table, if that can be known without
        looking at them or has a best way of its own; otherwise empty
    :param source: a query for ``created_time`` and ``id`` of the matching rows, if it can find them
        without looking at others, in whichever order by age they are wanted; otherwise empty
    :param steady: whether the same plan suits the wanted page whatever the values are
    """

    sql: str
    values: dict[str, Any]
    count: str = ""
    source: str = ""
    steady: bool = False

    @property
    def prepare(self) -> bool | None:
        """psycopg's ``prepare`` for a statement with this condition.

        False if the best plan depends on the values: planning takes as long as finding a page or more.
        """
        return None if self.steady or not self.sql else False

    def joined(self, sql: str, values: Mapping[str, Any], *, steady: bool = False) -> "Condition":
        """Returns this and another condition, which may be empty; ``steady`` applies to the result."""
        if not sql:
            return self
        both = f"{self.sql} AND {sql}" if self.sql else sql
        return Condition(both, {**self.values, **values}, steady=steady)


# True for all rows.
ANY = Condition("", {})


class SearchError(columns.Wrong):
    """An expression that the language does not allow.

    ``message`` says what is wrong, where, and what was expected there; its second line is the
    expression, and its third points at the character. ``position`` counts characters from 0.
    """

    def __init__(self, expression: str, position: int, reason: str) -> None:
        self.position = position
        first = max(0, position - 60)
        shown = "".join(
            char if char.isprintable() else " " for char in expression[first : position + 60]
        )
        before, after = "… " * (first > 0), " …" * (position + 60 < len(expression))
        pointer = " " * (len(before) + position - first) + "^"
        super().__init__(f"at character {position + 1}: {reason}\n{before}{shown}{after}\n{pointer}")


def translate(expression: str, kind: str, *, lookup: bool = True, usual: bool = False) -> Condition:
    """Returns the SQL condition for a search expression.

    Columns are qualified with the kind's table, so the statement must use it under its own name. Raises
    SearchError. Regular expressions are left to PostgreSQL, so the statement may still raise psycopg's
    InvalidRegularExpression.

    :param lookup: whether labels may be looked up in their table; otherwise they are read from each row
    :param usual: whether the rows are wanted newest first
    """
    values, bind = columns.collector("s")
    try:
        tree = grammar.parse(expression)
        comparisons = len(list(tree.find_data("comparison")))
        lookups = iter(range(MAX_LOOKUPS if lookup else 0))
        alone = usual and comparisons == 1
        search = _Search(kind, alone, bind, iter(range(MAX_TERMS)), lookups, [], [], [])
        sql = _condition(search, tree, conjunct=True)
        steady, source = alone and bool(search.indexed), ""
        if len(search.labels) < comparisons:
            if steady:
                source = _unique(kind, sql)
            return Condition(sql, values, source=source, steady=steady)
        found = _labelled(search)
        count = "".join(search.counts) or f"SELECT count(*) FROM {found}"  # noqa: S608 (made here)
        if len(search.indexed) == comparisons:
            source = f"SELECT created_time, label0.owner_id AS id FROM {found}"  # noqa: S608 (made here)
        return Condition(sql, values, count, source, steady)
    except Fault as fault:
        raise SearchError(expression, fault.position, fault.reason) from None


def asked(expression: str, kind: str, *, lookup: bool = True, usual: bool = False) -> Condition:
    """Does the same for the parameter ``search``; if it is empty, all rows match. Raises Problem."""
    try:
        return translate(expression, kind, lookup=lookup, usual=usual) if expression.strip() else ANY
    except SearchError as error:
        raise bad_search(error.message) from None


@dataclass(frozen=True)
class _Search:
    kind: str
    # Whether there is only one comparison and the rows are wanted newest first.
    alone: bool
    bind: Bind
    terms: Iterator[int]
    lookups: Iterator[int]
    # Conditions on the table of labels, with {label} for its alias: every matching row has such labels.
    labels: list[str]
    # Ids, names and labels for which every matching row has one given value.
    indexed: list[str]
    # A call of the function that counts the resources with the one label searched for.
    counts: list[str]


def _condition(search: _Search, tree: Tree[Token], *, conjunct: bool) -> str:
    """Returns the SQL of a node. Null counts as false: a negation treats both alike.

    ``conjunct`` means that every row that matches the whole expression matches this node, too.
    """
    below = [child for child in tree.children if isinstance(child, Tree)]
    if tree.data == "comparison":
        return _comparison(search, tree, conjunct=conjunct)
    if tree.data == "negation":
        return f"({_condition(search, below[0], conjunct=False)} IS NOT TRUE)"
    if tree.data == "group":
        return _condition(search, below[0], conjunct=conjunct)
    conjunct = conjunct and tree.data == "both"
    parts = [_condition(search, child, conjunct=conjunct) for child in below]
    return "(" + (" AND " if tree.data == "both" else " OR ").join(parts) + ")"


def _comparison(search: _Search, tree: Tree[Token], *, conjunct: bool) -> str:
    name, *rest = [child for child in tree.children if isinstance(child, Token)]
    if next(search.terms, MAX_TERMS) == MAX_TERMS:
        raise Fault(name, f"there are more than {MAX_TERMS} comparisons")
    if columns.barred(name, search.kind):
        raise Fault(name, f"the operator of this service does not allow searches by {name}")
    try:
        field = columns.resolve(name, search.kind, search.bind)
    except columns.UnknownField as error:
        raise Fault(name, str(error)) from None
    negated = any(token.type == "NOT" for token in rest)
    operator, *operands = [token for token in rest if token.type != "NOT"]
    symbol = operator.lower()
    if field.type == "reference" and symbol not in ("=", "!=", "<>", "in", "is"):
        raise Fault(operator, f"{operator} does not work with references; use =, != or in with {name}")
    match symbol:
        case "=" | "!=" | "<>" | "in":
            negated = negated or symbol in ("!=", "<>")
            sql = _equality(search, field, operands, lookup=conjunct and not negated)
        case "<" | "<=" | ">" | ">=":
            side, value = _ordered(search, field, operands[0])
            sql = f"({side} {symbol} {value})"
        case "between":
            low, first = _ordered(search, field, operands[0])
            high, last = _ordered(search, field, operands[2])
            if low != high:
                raise Fault(operands[2], "expected a value of the same type as the first one")
            sql = f"({low} BETWEEN {first} AND {last})"
        case "is":
            # Includes JSON's null. PostgreSQL uses an index for IS NOT NULL only if it is written so.
            side = f"NULLIF(jsonb_typeof({field.sql}), 'null')" if field.type == "any" else field.sql
            return f"({side} IS {'NOT ' if negated else ''}NULL)"
        case _:
            negated = negated or symbol in ("~!", "!~")
            if field.type not in ("text", "uuid", "any"):
                raise Fault(operator, f"{operator} works only with text, which {name} is not")
            sql = _pattern(search, field, symbol, operands[0])
    return f"({sql} IS NOT TRUE)" if negated else sql


def _equality(search: _Search, field: Field, operands: list[Token], *, lookup: bool) -> str:
    """Returns the condition that the field has one of the values."""
    if len(operands) > MAX_LIST:
        raise Fault(operands[MAX_LIST], f"the list has more than {MAX_LIST} values")
    if field.type == "reference":
        return _reference(search, field, operands, lookup=lookup)
    # A field of type any has a different expression for each type that it is compared with.
    groups: dict[tuple[str, str], list[Any]] = {}
    for operand in operands:
        side, cast, value = compared(field, operand)
        group = groups.setdefault((side, cast), [])
        group += referring.ids([value]) if field.type == "uuid" else [value]
    if indexed := lookup and len(operands) == 1 and _told_apart(search.kind, field):
        search.indexed.append(field.name)
    parts = []
    for (side, cast), values in groups.items():
        if len(values) == 1:
            # An index yields rows in order for one value, but not for several.
            value = f"{search.bind(values[0])}::{cast}"
            unseen = indexed and search.alone
            parts.append(f"{side} = {_unseen(search, field, value) if unseen else value}")
        elif values:
            parts.append(f"{side} = ANY({search.bind(values)}::{cast}[])")
    if not parts:
        return "FALSE"
    key = field.label or field.dimension
    if lookup and key and next(search.lookups, MAX_LOOKUPS) < MAX_LOOKUPS:
        return _looked_up(search, field, parts[0].removeprefix(field.sql))
    return "(" + " OR ".join(parts) + ")"


def _told_apart(kind: str, field: Field) -> bool:
    """Returns whether rows with one value of a field are best found by that, whatever the value is.

    Phases and conditions have so few values that a planner that cannot see the value would scan the
    newest rows for it: through the whole table if no row has it.
    """
    of = KINDS[kind]
    unique = ("id",) if of.parent else ("id", "name")
    return kind in RESOURCES and bool(field.label or field.name in unique)


def _unseen(search: _Search, field: Field, value: str) -> str:
    """Hides a value from the planner: a plan for it would look cheaper, and be made anew each time.

    Counting, unlike reading a page, is worth such a plan, so a function counts the rows with a label.
    """
    if field.label:
        search.counts.append(f"hyperfleet_labelled('{search.kind}', {field.label}, {value})")
    return f"(SELECT {value})"


def _looked_up(search: _Search, field: Field, part: str) -> str:
    """Returns the condition that rows have a label or a dimension of tenancy, looked up in its table.

    :param part: the operator and the value that the label or dimension is compared with
    """
    of = KINDS[search.kind]
    if field.dimension:
        # There is an index of the rows of a tenancy; the last condition is the index's own.
        found = (
            f"SELECT tenants.tenancy FROM tenants WHERE (tenants.tenancy ->> {field.dimension}){part}"  # noqa: S608 (a placeholder)
        )
        return f"({of.table}.tenancy IN ({found}) AND {of.table}.tenancy <> '{{}}')"
    own = f"{{label}}.owner_type IN ({of.types}) AND {{label}}.key = {field.label}"
    label = f"{own} AND {{label}}.value{part}"
    search.labels.append(label)
    # With created_time in the pair, the planner can read the labels in the order of the list.
    owners = f"SELECT created_time, owner_id FROM labels WHERE {label.format(label='labels')}"  # noqa: S608 (kind is a key of KINDS)
    return f"(({of.table}.created_time, {of.table}.id) IN ({owners}))"


def _unique(kind: str, condition: str) -> str:
    """Returns a query for rows with a unique value, or one unique for each tenant.

    OFFSET 0 has them found by their own index instead of by age, however many tenants share a name.
    """
    of = KINDS[kind]
    return f"SELECT created_time, id FROM {of.table} WHERE {condition} {of.only} OFFSET 0"  # noqa: S608 (made here)


def _labelled(search: _Search) -> str:
    """Returns a FROM clause with a condition, for the resources that have all of these labels.

    The table of labels alone tells, since it has no label without its resource.
    """
    names = [f"label{number}" for number in range(len(search.labels))]
    tables = ["labels AS label0", *(f"labels AS {n} USING (created_time, owner_id)" for n in names[1:])]
    rules = [rule.format(label=name) for name, rule in zip(names, search.labels, strict=True)]
    return f"{' JOIN '.join(tables)} WHERE {' AND '.join(rules)}"


def _reference(search: _Search, field: Field, operands: list[Token], *, lookup: bool) -> str:
    """Returns the condition that one of a resource's references leads to one of these ids."""
    ids = referring.ids(compared(field, operand)[2] for operand in operands)
    if not ids:
        return "FALSE"
    if lookup and next(search.lookups, MAX_LOOKUPS) < MAX_LOOKUPS:
        return referring.sources(search.kind, field.label, ids, search.bind)
    return referring.among(KINDS[search.kind].table, field.label, ids, search.bind)


def _ordered(search: _Search, field: Field, operand: Token) -> tuple[str, str]:
    """Returns both sides of a comparison by order: the field's SQL and the bound value's."""
    side, cast, value = compared(field, operand)
    if cast == "boolean":
        raise Fault(operand, "expected text in quotes or a number: true and false have no order")
    if cast == "uuid":
        side, cast = f"{side}::text", "text"
        value = value.lower() if ID.fullmatch(value) else value
    # By code point, whatever the database's locale.
    collation = ' COLLATE "C"' if cast == "text" else ""
    return f"({side}){collation}", f"{search.bind(value)}::{cast}"


def _pattern(search: _Search, field: Field, symbol: str, operand: Token) -> str:
    if operand.type != "STRING":
        raise Fault(operand, "expected a pattern in quotes")
    pattern = unquoted(operand)
    side = {"text": field.sql, "uuid": f"{field.sql}::text"}.get(field.type) or scalar(field)
    if symbol in ("like", "ilike"):
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise Fault(operand, "expected a character after the pattern's last backslash")
        return f"({side} {symbol.upper()} {search.bind(pattern)}::text)"
    _check_regular_expression(pattern, operand)
    return f"({side} ~ {search.bind(pattern)}::text)"


def _check_regular_expression(pattern: str, operand: Token) -> None:
    """Raises Fault for patterns that would be slow, and for errors that are easy to see."""
    if len(pattern) > MAX_PATTERN:
        raise Fault(operand, f"the regular expression is longer than {MAX_PATTERN} characters")
    # This prefix would switch to another dialect.
    if pattern.startswith("***"):
        raise Fault(operand, "a regular expression must not begin with ***")
    escaped = re.findall(r"\\(.?)", pattern, re.DOTALL)
    if "" in escaped:
        raise Fault(operand, "expected a character after the regular expression's last backslash")
    # PostgreSQL backtracks only for expressions with back references.
    if any(char in "123456789" for char in escaped):
        raise Fault(operand, "a regular expression must not refer back to a group")
