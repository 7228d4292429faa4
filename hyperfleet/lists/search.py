"""The search language, TSL: an expression becomes one SQL condition with bound values.

Pure functions: nothing here reaches a database. docs/search.md describes the language.
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
# Each label that is looked up in the table of labels is a join; further ones are read off the row.
MAX_LOOKUPS = 4


@dataclass(frozen=True)
class Condition:
    """A condition for WHERE, in psycopg's ``%(name)s`` style, and the values to bind.

    It is true for the rows that match, and false or null for the others: to turn it round, write
    ``(…) IS NOT TRUE``.

    :param count: SQL that tells how many rows of the whole table match, where that can be known without
        looking at them, or is best found in a way of its own; else empty
    :param source: a query for ``created_time`` and ``id`` of these rows, where they are found without a
        look at the others, however they are wanted by age; else empty
    :param steady: whether the page of them that is wanted is best found in the same way whatever the
        values are
    """

    sql: str
    values: dict[str, Any]
    count: str = ""
    source: str = ""
    steady: bool = False

    @property
    def prepare(self) -> bool | None:
        """Whether a statement with it is prepared, as psycopg takes it: not where the best plan is
        another one for other values. To plan takes as long as to find a page, or longer.
        """
        return None if self.steady or not self.sql else False

    def joined(self, sql: str, values: Mapping[str, Any], *, steady: bool = False) -> "Condition":
        """This and another condition, which may be empty; ``steady`` where the two are."""
        if not sql:
            return self
        both = f"{self.sql} AND {sql}" if self.sql else sql
        return Condition(both, {**self.values, **values}, steady=steady)


# What is true for all.
ANY = Condition("", {})


class SearchError(columns.Wrong):
    """An expression that the language does not allow.

    ``message`` says what is wrong, where, and what was expected there; its second line is the
    expression, its third points at the character. ``position`` counts characters from 0.
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
    """The SQL condition that a search expression stands for.

    Columns are qualified with the kind's table, so the statement must use the table under its own
    name. Raises SearchError. PostgreSQL knows its regular expressions best: the statement may still
    raise psycopg's InvalidRegularExpression.

    :param lookup: whether labels are looked up where that may find the rows; else each row is looked at
    :param usual: whether the rows are wanted newest first
    """
    values, bind = columns.collector("s")
    try:
        tree = grammar.parse(expression)
        comparisons = len(list(tree.find_data("comparison")))
        lookups = iter(range(MAX_LOOKUPS * lookup))
        alone = usual and comparisons == 1
        search = _Search(kind, alone, bind, iter(range(MAX_TERMS)), lookups, [], [], [])
        sql = _condition(search, tree, conjunct=True)
        steady = alone and bool(search.indexed)
        if len(search.labels) < comparisons:
            return Condition(sql, values, source=_unique(kind, sql) * steady, steady=steady)
        found = _labelled(search)
        count = "".join(search.counts) or f"SELECT count(*) FROM {found}"  # noqa: S608 (made here)
        source = f"SELECT created_time, label0.owner_id AS id FROM {found}"  # noqa: S608 (made here)
        return Condition(sql, values, count, source * (len(search.indexed) == comparisons), steady)
    except Fault as fault:
        raise SearchError(expression, fault.position, fault.reason) from None


def asked(expression: str, kind: str, *, lookup: bool = True, usual: bool = False) -> Condition:
    """The same of what a request has for ``search``: empty, it is true for all. Raises Problem."""
    try:
        return translate(expression, kind, lookup=lookup, usual=usual) if expression.strip() else ANY
    except SearchError as error:
        raise bad_search(error.message) from None


@dataclass(frozen=True)
class _Search:
    kind: str
    # Whether there is one comparison only, and the rows are wanted newest first.
    alone: bool
    bind: Bind
    terms: Iterator[int]
    lookups: Iterator[int]
    # Conditions on the table of labels, which go with {label} for a row of that: every row that matches
    # the expression has such labels.
    labels: list[str]
    # Ids, names and labels of which every row that matches has one value.
    indexed: list[str]
    # The function that counts what has the one label that is searched for.
    counts: list[str]


def _condition(search: _Search, tree: Tree[Token], *, conjunct: bool) -> str:
    """The SQL of a node. Null stands for false: nothing below a negation relies on the difference.

    ``conjunct`` says that every row which matches the expression matches this node too.
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
            # JSON's own null is none, too. An index for IS NOT NULL is only recognised by that text.
            side = f"NULLIF(jsonb_typeof({field.sql}), 'null')" if field.type == "any" else field.sql
            return f"({side} IS {'NOT ' * negated}NULL)"
        case _:
            negated = negated or symbol in ("~!", "!~")
            if field.type not in ("text", "uuid", "any"):
                raise Fault(operator, f"{operator} works only with text, which {name} is not")
            sql = _pattern(search, field, symbol, operands[0])
    return f"({sql} IS NOT TRUE)" if negated else sql


def _equality(search: _Search, field: Field, operands: list[Token], *, lookup: bool) -> str:
    """The field has one of the values."""
    if len(operands) > MAX_LIST:
        raise Fault(operands[MAX_LIST], f"the list has more than {MAX_LIST} values")
    if field.type == "reference":
        return _reference(search, field, operands, lookup=lookup)
    # A field of type any is another expression for each type that it is compared with.
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
            # An index gives the rows with one value in order, and those with several not.
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
    """Whether rows with one value of a field are best found by that, whatever the value is.

    Of phases and conditions there are so few that a planner which is not shown the value would look for
    any among the newest: for one that nobody has, through the whole table.
    """
    of = KINDS[kind]
    unique = ("id",) if of.parent else ("id", "name")
    return kind in RESOURCES and bool(field.label or field.name in unique)


def _unseen(search: _Search, field: Field, value: str) -> str:
    """A value that the planner is not shown: it would take a plan for the very value for cheaper, and
    make that anew each time. What has a label is best counted so, which a function does.
    """
    if field.label:
        search.counts.append(f"hyperfleet_labelled('{search.kind}', {field.label}, {value})")
    return f"(SELECT {value})"


def _looked_up(search: _Search, field: Field, part: str) -> str:
    """Those that have a label, or a dimension of their tenancy, by the table that has these; ``part`` is
    the comparison of its value.
    """
    of = KINDS[search.kind]
    if field.dimension:
        # Of the rows with one tenancy there is an index; the last condition is that of the index.
        found = (
            f"SELECT tenants.tenancy FROM tenants WHERE (tenants.tenancy ->> {field.dimension}){part}"  # noqa: S608 (a placeholder)
        )
        return f"({of.table}.tenancy IN ({found}) AND {of.table}.tenancy <> '{{}}')"
    own = f"{{label}}.owner_type IN ({of.types}) AND {{label}}.key = {field.label}"
    label = f"{own} AND {{label}}.value{part}"
    search.labels.append(label)
    # The pair with created_time lets the planner read the labels in the order of the list.
    owners = f"SELECT created_time, owner_id FROM labels WHERE {label.format(label='labels')}"  # noqa: S608 (kind is a key of KINDS)
    return f"(({of.table}.created_time, {of.table}.id) IN ({owners}))"


def _unique(kind: str, condition: str) -> str:
    """Those of which there is one, or one for each tenant: what OFFSET 0 keeps whole is found by its own
    index, and not by age, however many tenants use the same names.
    """
    of = KINDS[kind]
    return f"SELECT created_time, id FROM {of.table} WHERE {condition} {of.only} OFFSET 0"  # noqa: S608 (made here)


def _labelled(search: _Search) -> str:
    """Those that have all of these labels, as FROM has it: labels alone tell, since there are none
    without a resource.
    """
    names = [f"label{number}" for number in range(len(search.labels))]
    tables = ["labels AS label0", *(f"labels AS {n} USING (created_time, owner_id)" for n in names[1:])]
    rules = [rule.format(label=name) for name, rule in zip(names, search.labels, strict=True)]
    return f"{' JOIN '.join(tables)} WHERE {' AND '.join(rules)}"


def _reference(search: _Search, field: Field, operands: list[Token], *, lookup: bool) -> str:
    """One of a resource's references leads to one of these ids."""
    ids = referring.ids(compared(field, operand)[2] for operand in operands)
    if not ids:
        return "FALSE"
    if lookup and next(search.lookups, MAX_LOOKUPS) < MAX_LOOKUPS:
        return referring.sources(search.kind, field.label, ids, search.bind)
    return referring.among(KINDS[search.kind].table, field.label, ids, search.bind)


def _ordered(search: _Search, field: Field, operand: Token) -> tuple[str, str]:
    """Both sides of a comparison by order: the field's, and the bound value's."""
    side, cast, value = compared(field, operand)
    if cast == "boolean":
        raise Fault(operand, "expected text in quotes or a number: true and false have no order")
    if cast == "uuid":
        side, cast = f"{side}::text", "text"
        value = value.lower() if ID.fullmatch(value) else value
    # By code point, whatever the database's language.
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
    """Raises Fault for what would be slow, and for the mistakes that are easy to see."""
    if len(pattern) > MAX_PATTERN:
        raise Fault(operand, f"the regular expression is longer than {MAX_PATTERN} characters")
    # The prefix that switches to another dialect.
    if pattern.startswith("***"):
        raise Fault(operand, "a regular expression must not begin with ***")
    escaped = re.findall(r"\\(.?)", pattern, re.DOTALL)
    if "" in escaped:
        raise Fault(operand, "expected a character after the regular expression's last backslash")
    # PostgreSQL matches only expressions with these by trial and error.
    if any(char in "123456789" for char in escaped):
        raise Fault(operand, "a regular expression must not refer back to a group")
