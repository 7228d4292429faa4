"""Expressions in CEL, the Common Expression Language: made of texts at the start, asked with values.

The engine ends an expression after 10,000 rounds of its loops, knows no others, and matches patterns in
linear time. How much a round may have to do it does not bound; that is done here.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeAlias

Value: TypeAlias = str | bool | int | float | None

LONGEST = 4096
# Loops in an expression, loops in each other, and loops that make new values: chained ones multiply.
LOOPS, DEEPEST, MAKERS = 12, 3, 2
# Of what a loop makes: each sign may double it, in each of its rounds.
SIGNS = 4
# Characters that toJson may make.
JSON = 1024 * 1024
# Rounds that the engine allows, and what all of them may come to: rounds times the size of what is
# asked about. The copy that toJson and dig are given costs more than looking at it.
ROUNDS, WORK, COPY = 10_000, 128 * 1024 * 1024, 8
# To look for one long text in another takes as long as their lengths multiplied, if many times faster.
SEARCH = 400

# Seconds of the processor that all expressions which are asked about the same values may take together.
# Nobody else is served meanwhile.
SECONDS = 1.0

# What a text and a comment look like, and a name between backticks: none of them holds a loop.
QUOTED = re.compile(
    r"""//[^\n]*|[rR]?[bB]?[rR]?('''|\"\"\")(?:\\.|(?!\1).)*\1"""
    r"""|[rR][bB]?(?:"[^"\n]*"|'[^'\n]*')|[bB][rR](?:"[^"\n]*"|'[^'\n]*')"""
    r"""|[bB]?(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|`[^`\n]*`""",
    re.DOTALL,
)
TOKEN = re.compile(r"\.?\s*\b([A-Za-z_]\w*)\s*\(|[()\[\]{}+,]")
# A search for what is not written out in the expression.
SEARCHING = re.compile(r"""\b(?:contains|matches)\s*\((?!\s*""\s*\))""")
MAKING = frozenset({"map", "optMap", "optFlatMap"})
LOOPING = MAKING | {"all", "exists", "exists_one", "existsOne", "filter"}
# They copy what they are given.
COPYING = frozenset({"toJson", "dig"})


class Refused(Exception):
    """An expression that cannot be used; the message says why."""


class Failed(Exception):
    """An expression that came to nothing; the message says why."""


class Values:
    """What expressions are asked about: prepared once for several of them.

    :param size: how large it is, about in characters
    :param longest: how long the longest of its lists and maps is
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
    :param boolean: whether it has to come to true or false

    Raises Refused for a text that is not understood, or that could take too much time or space.
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
        """What it comes to. Raises Failed where that is an error, or a list, a map or the like;
        and where it could take too long to find out, or those before it have.
        """
        if time.thread_time() > values.until:
            raise Failed(f"the rules before it took longer than {SECONDS:g} s")
        if self._shape.work(values) > WORK:
            raise Failed("it could take too long: its loops have too much to look at")
        try:
            found = self._program.eval(values.prepared)
            kind = found.type().name()
            if kind in ("STRING", "BOOL", "INT", "UINT", "DOUBLE", "NULL"):
                value: Value = found.plain_value()
                return value
            # Nothing else is made a value of Python: it may be large.
            reason = _reason(found.plain_value()) if kind == "ERROR" else f"it yielded a {kind.lower()}"
        except TypeError:
            reason = "it yielded a value that has no text, such as an optional one"
        except Exception as error:
            reason = _reason(error)
        raise Failed(reason)


@cache
def _environment() -> Any:
    # Who has no rules does not pay for the engine.
    from cel_expr_python import cel  # noqa: PLC0415
    from cel_expr_python.ext import ext_optional  # noqa: PLC0415

    types = cel.Type
    every = ("MAP", "LIST", "STRING", "INT", "UINT", "DOUBLE", "BOOL", "NULL")

    def function(name: str, does: Callable[..., Any], result: Any, *more: Any) -> Any:
        # The engine chooses by the types that it meets, of which "any" is none.
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
    """A value as JSON, its members by their names. Raises ValueError for what is too long for it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    if len(text) > JSON:
        raise ValueError(f"toJson makes at most {JSON} characters")
    return text


def dig(target: Any, path: str) -> Any:
    """What lies at a path of names and positions, ``items.0.name``; None where there is nothing."""
    for part in filter(None, map(str.strip, path.split("."))):
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isdecimal() and int(part[:9]) < len(target):
            target = target[int(part[:9])]
        else:
            return None
    return target


class _Shape(NamedTuple):
    """What there is in an expression that takes time.

    :param depth: how deep its loops are within each other
    :param loops: how many there are
    :param signs: what may enlarge the values that they make
    :param items: of the lists in its text, at most
    :param sums: how many lists are put together, at most
    :param copies: whether a loop calls what is given copies
    :param searches: how often one text is looked for in another, and is not written out
    :param length: of its text
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
        """What evaluating it may come to at worst."""
        longest, size = max(values.longest, self.items, 1) * (1 + self.sums), values.size + self.length
        rounds = min(ROUNDS, self.loops * longest**self.depth) if self.depth else 1
        each = size * (1 + self.signs) * (COPY if self.copies else 1)
        return rounds * (each + self.searches * size**2 // SEARCH)


def _shape(text: str) -> _Shape:
    """Raises Refused for an expression that could take too much time or space with whatever values."""
    if not text.strip():
        raise Refused("is empty")
    if len(text) > LONGEST:
        raise Refused(f"has {len(text)} characters; at most {LONGEST} are allowed")
    # What each open bracket belongs to.
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
            # The comma after the variable of a loop is none of what it makes.
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
    """What the engine says, in one line: without its picture of the place, and its codes."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    first = re.sub(r"^[A-Z_]+: (ERROR: )?|\s*\[[A-Z_]+\]$| \(in container ''\)", "", first)
    return re.sub(r"^<input>:(\d+):(\d+): ", r"line \1, column \2: ", first)[:300]
