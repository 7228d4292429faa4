"""The grammar of the search language: parses an expression into a tree, or says where it is wrong."""

from contextlib import suppress
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput, UnexpectedToken

from hyperfleet.lists import columns
from hyperfleet.storable import FORBIDDEN

MAX_LENGTH = 4096
MAX_DEPTH = 32

# Keywords ignore case in ASCII only; otherwise İ would match i, though its lower case is another letter.
GRAMMAR = rf"""
    ?start: either
    ?either: both (OR both)*
    ?both: negation (AND negation)*
    ?negation: NOT negation -> negation
        | term
    ?term: "(" either ")" -> group
        | comparison
    comparison: FIELD OPERATOR _value
        | FIELD NOT? (LIKE | ILIKE) _value
        | FIELD NOT? IN ("(" [_value ("," _value)*] ")" | "[" [_value ("," _value)*] "]")
        | FIELD NOT? BETWEEN _value AND _value
        | FIELD IS NOT? NULL
    _value: STRING | TIME | NUMBER | TRUE | FALSE

    OPERATOR: "=" | "!=" | "<>" | "<=" | "<" | ">=" | ">" | "~=" | "~!" | "!~"
    STRING: /'(?:[^']|'')*'|"(?:[^"]|"")*"/
    TIME.2: /(?a:\d{{4}}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d))(?![\w.:-])/
    NUMBER: /[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?/
    FIELD: /{columns.NAME}/
    AND.2: /(?ai:and)(?![\w.-])/
    OR.2: /(?ai:or)(?![\w.-])/
    NOT.2: /(?ai:not)(?![\w.-])/
    IN.2: /(?ai:in)(?![\w.-])/
    LIKE.2: /(?ai:like)(?![\w.-])/
    ILIKE.2: /(?ai:ilike)(?![\w.-])/
    BETWEEN.2: /(?ai:between)(?![\w.-])/
    IS.2: /(?ai:is)(?![\w.-])/
    NULL.2: /(?ai:null)(?![\w.-])/
    TRUE.2: /(?ai:true)(?![\w.-])/
    FALSE.2: /(?ai:false)(?![\w.-])/
    %ignore /[ \t\r\n\f\v]+/
"""
PARSER = Lark(GRAMMAR, parser="lalr", propagate_positions=True, maybe_placeholders=False)

# What each token is called in error messages, in this order.
EXPECTED = {
    "FIELD": "a field",
    "STRING": "a value: text in quotes, a number, true or false",
    "OPERATOR": "a comparison operator such as = or in",
    "IN": "in",
    "LIKE": "like",
    "BETWEEN": "between",
    "NULL": "null",
    "LPAR": "(",
    "LSQB": "[",
    "COMMA": "a comma",
    "RPAR": ")",
    "RSQB": "]",
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "$END": "the end",
}
# Tokens that the description of another one covers.
IMPLIED = {
    "STRING": {"TIME", "NUMBER", "TRUE", "FALSE"},
    "OPERATOR": {"IN", "LIKE", "BETWEEN", "IS", "NOT"},
}


class Fault(Exception):
    """A fault in an expression, at an offset or at the beginning of a token."""

    def __init__(self, position: int | Token, reason: str) -> None:
        self.position = position.start_pos or 0 if isinstance(position, Token) else position
        self.reason = reason
        super().__init__(reason)


def parse(expression: str) -> Tree[Token]:
    """Returns the syntax tree of a search expression.

    Its nodes are named comparison, negation, group, both and either. Raises Fault if the expression is
    malformed, too long or nested too deeply.
    """
    if len(expression) > MAX_LENGTH:
        raise Fault(MAX_LENGTH, f"the expression is longer than {MAX_LENGTH} characters")
    if found := FORBIDDEN.search(expression):
        raise Fault(found.start(), f"character U+{ord(found[0]):04X} is not allowed")
    try:
        tree = PARSER.parse(expression)
    except UnexpectedInput as error:
        raise _syntax(expression, error) from None
    pending: list[tuple[Tree[Token], int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise Fault(
                node.meta.start_pos, f"parentheses and not are nested more than {MAX_DEPTH} deep"
            )
        deeper = depth + (node.data in ("group", "negation"))
        pending += [(child, deeper) for child in node.children if isinstance(child, Tree)]
    return tree


def _syntax(expression: str, error: Any) -> Fault:
    """Returns the Fault for lark's UnexpectedInput."""
    position = error.pos_in_stream
    found = str(error.token) if isinstance(error, UnexpectedToken) else expression[position]
    if found in ("'", '"'):
        return Fault(position, "the text that begins here has no closing quote")
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        position, found = len(expression.rstrip()), "the end"
    # Parse again, since the error itself also names tokens that are possible only in other expressions.
    parser: Any = PARSER.parse_interactive(expression)
    with suppress(UnexpectedInput):
        parser.exhaust_lexer()
    ready = parser.accepts()
    for name, implied in IMPLIED.items():
        if name in ready:
            ready -= implied
    expected = [words for name, words in EXPECTED.items() if name in ready]
    if len(found) > 40:
        found = found[:40] + "…"
    return Fault(position, f"expected {_alternatives(expected)}, found {found}")


def _alternatives(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
