"""Expressions in CEL, the Common Expression Language: compiled at startup, evaluated with values.

The engine ends an expression after 10,000 iterations of its loops, has no other loops, and matches
patterns in linear time. It does not bound the cost of an iteration; this module does.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeAlias

Value: TypeAlias = str | bool | int | float | None

LONGEST = 4096
# The most loops, their deepest nesting, and the most loops that build values: chained ones multiply.
LOOPS, DEEPEST, MAKERS = 12, 3, 2
# The most '+' and ',' in what loops build: each may double it in each iteration.
SIGNS = 4
# The most characters that toJson may return.
JSON = 1024 * 1024
# The engine's limit of iterations, and the limit of their cost: iterations times the size of the values.
# Copying the values, for toJson and dig, costs COPY times as much as reading them.
ROUNDS, WORK, COPY = 10_000, 128 * 1024 * 1024, 8
# Searching a long string in another costs the product of their lengths divided by this.
SEARCH = 400

# Seconds of CPU time for all expressions that are evaluated with the same values. Nothing else is served
# meanwhile.
SECONDS = 1.0

# Comments, string literals and names in backticks; none of them contains a loop.
QUOTED = re.compile(
    r"""//[^\n]*|[rR]?[bB]?[rR]?('''|\"\"\")(?:\\.|(?!\1).)*\1"""
    r"""|[rR][bB]?(?:"[^"\n]*"|'[^'\n]*')|[bB][rR](?:"[^"\n]*"|'[^'\n]*')"""
    r"""|[bB]?(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|`[^`\n]*`""",
    re.DOTALL,
)
TOKEN = re.compile(r"\.?\s*\b([A-Za-z_]\w*)\s*\(|[()\[\]{}+,]")
# A search whose argument is not a literal.
SEARCHING = re.compile(r"""\b(?:contains|matches)\s*\((?!\s*""\s*\))""")
MAKING = frozenset({"map", "optMap", "optFlatMap"})
LOOPING = MAKING | {"all", "exists", "exists_one", "existsOne", "filter"}
# These get a copy of their argument.
COPYING = frozenset({"toJson", "dig"})


class Refused(Exception):
    """Raised for an expression that cannot be used; the message says why."""


class Failed(Exception):
    """Raised if an evaluation fails; the message says why."""


class Values:
    """The values of variables, prepared once for several expressions.

    :param size: their approximate size in characters
    :param longest: the length of their longest list or map
    """

    def __init__(self, values: Mapping[str, Any], size: int, longest: int) -> None:
        self.size, self.longest = size, longest
        self.until = time.thread_time() + SECONDS
        try:
            self.prepared = _environment().Activation(dict(values))
        except Exception as error:
            raise Failed(_reason(error)) from None


class Expression:
    """A compiled expression.

    :param text: in CEL, with the variables ``statuses`` and ``resource``
    :param boolean: whether it must yield true or false

    Raises Refused if the text is invalid, or could take too much time or space.
    """

    def __init__(self, text: str, *, boolean: bool = False) -> None:
        self._shape = _shape(text)
        environment = _environment()
        try:
            self._program = environment.compile(text)
        except Exception as error:
            raise Refused(f"invalid CEL expression: {_reason(error)}") from None
        kind = self._program.return_type().name()
        allowed = (
            ("BOOL", "DYN") if boolean else ("STRING", "BOOL", "INT", "UINT", "DOUBLE", "NULL", "DYN")
        )
        if kind not in allowed:
            wanted = "true or false" if boolean else "a string"
            raise Refused(f"yields a value of the type {kind.lower()}, but must yield {wanted}")

    def value(self, values: Values) -> Value:
        """Evaluates the expression. Raises Failed if that is an error, or yields a list, a map or the
        like; and if it could take too long, or the expressions before it did.
        """
        if time.thread_time() > values.until:
            raise Failed(f"the rules before it took longer than {SECONDS:g} s")
        if self._shape.work(values) > WORK:
            raise Failed("it could take too long: its loops visit too many elements")
        try:
            found = self._program.eval(values.prepared)
            kind = found.type().name()
            if kind in ("STRING", "BOOL", "INT", "UINT", "DOUBLE", "NULL"):
                value: Value = found.plain_value()
                return value
            # Other results are not converted to Python, since they may be large.
            reason = _reason(found.plain_value()) if kind == "ERROR" else f"it yielded a {kind.lower()}"
        except TypeError:
            reason = "it yielded a value that has no text, such as an optional one"
        except Exception as error:
            reason = _reason(error)
        raise Failed(reason)


@cache
def _environment() -> Any:
    # Imported only if there are rules, so that the engine costs nothing without them.
    from cel_expr_python import cel  # noqa: PLC0415
    from cel_expr_python.ext import ext_optional  # noqa: PLC0415

    types = cel.Type
    every = ("MAP", "LIST", "STRING", "INT", "UINT", "DOUBLE", "BOOL", "NULL")

    def function(name: str, does: Callable[..., Any], result: Any, *more: Any) -> Any:
        # The engine chooses an overload by the actual type, which is never "any".
        overloads = [
            cel.Overload(
                f"{name}_{one.lower()}",
                return_type=result,
                parameters=[getattr(types, one), *more],
                impl=does,
            )
            for one in every
        ]
        return cel.FunctionDecl(name, overloads)

    return cel.NewEnv(
        variables={"statuses": types.List(types.DYN), "resource": types.DYN},
        functions=[
            function("toJson", to_json, types.STRING),
            function("dig", dig, types.DYN, types.STRING),
        ],
        extensions=[ext_optional.ExtOptional()],
    )


def to_json(value: Any) -> str:
    """Returns a value as JSON with sorted keys. Raises ValueError if that is too long."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    if len(text) > JSON:
        raise ValueError(f"toJson makes at most {JSON} characters")
    return text


def dig(target: Any, path: str) -> Any:
    """Returns what is at a path of names and indexes, ``items.0.name``; None if there is nothing."""
    for part in filter(None, map(str.strip, path.split("."))):
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isdecimal() and int(part[:9]) < len(target):
            target = target[int(part[:9])]
        else:
            return None
    return target


class _Shape(NamedTuple):
    """The properties of an expression that determine its cost.

    :param depth: how deep its loops are nested
    :param loops: how many it has
    :param signs: how many '+' and ',' may enlarge the values that they build
    :param items: at most how many items its list literals have
    :param sums: at most how many lists are concatenated
    :param copies: whether a loop calls toJson or dig
    :param searches: how many searches have an argument that is not a literal
    :param length: the length of its text
    """

    depth: int
    loops: int
    signs: int
    items: int
    sums: int
    copies: bool
    searches: int
    length: int

    def work(self, values: Values) -> int:
        """Returns the cost of an evaluation in the worst case."""
        longest, size = max(values.longest, self.items, 1) * (1 + self.sums), values.size + self.length
        rounds = min(ROUNDS, self.loops * longest**self.depth) if self.depth else 1
        each = size * (1 + self.signs) * (COPY if self.copies else 1)
        return rounds * (each + self.searches * size**2 // SEARCH)


def _shape(text: str) -> _Shape:
    """Analyzes an expression. Raises Refused if any values could make it take too much time or space."""
    if not text.strip():
        raise Refused("is empty")
    if len(text) > LONGEST:
        raise Refused(f"has {len(text)} characters; at most {LONGEST} are allowed")
    # The function that each open bracket belongs to, if any.
    within: list[str] = []
    loops = makers = signs = deepest = 0
    copies = False
    bare = QUOTED.sub('""', text)
    for match in TOKEN.finditer(bare):
        sign, name = match[0], match[1]
        if sign[-1] in ")]}":
            if within:
                within.pop()
        elif sign in "+,":
            # The comma after a loop's variable is not part of what the loop builds.
            own = sign == "," and within[-1:] and within[-1] in LOOPING
            signs += not own and any(one in MAKING for one in within)
        else:
            within.append(name or "")
            depth = sum(one in LOOPING for one in within)
            loops += name in LOOPING
            makers += name in MAKING
            if depth > DEEPEST:
                raise Refused(f"has loops within loops; at most {DEEPEST} deep are allowed")
            deepest = max(deepest, depth)
            copies |= name in COPYING and depth > 0
    for found, most, what in (
        (loops, LOOPS, "loops (all, exists, exists_one, filter, map, optMap, optFlatMap)"),
        (makers, MAKERS, "loops that make values (map, optMap, optFlatMap)"),
        (signs, SIGNS, "'+' and ',' within map, optMap and optFlatMap"),
    ):
        if found > most:
            raise Refused(f"has {found} {what}; at most {most} are allowed")
    searches = len(SEARCHING.findall(bare))
    return _Shape(deepest, loops, signs, bare.count(","), bare.count("+"), copies, searches, len(text))


def _reason(error: object) -> str:
    """Returns the engine's message as one line, without its excerpt of the expression and its codes."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    first = re.sub(r"^[A-Z_]+: (ERROR: )?|\s*\[[A-Z_]+\]$| \(in container ''\)", "", first)
    return re.sub(r"^<input>:(\d+):(\d+): ", r"line \1, column \2: ", first)[:300]
