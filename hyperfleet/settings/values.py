"""The types of settings: possible values and the ways to write them."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hyperfleet.kinds import ADAPTER, NO_ADAPTER

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Names(click.ParamType[Any]):
    """A list of names, separated by commas or another separator; in a YAML file it may be a list."""

    name = "names"

    def __init__(self, separator: str = ",") -> None:
        self.separator = separator

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Returns the names without blanks and duplicates, in the given order."""
        if isinstance(value, str):
            value = value.split(self.separator)
        return tuple(dict.fromkeys(name.strip() for name in value if name.strip()))


class AdapterNames(Names):
    """Names of adapters, as the contract allows them; may also be a JSON list."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Returns the names; fails for one that no report can have, which would be awaited forever."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                listed = json.loads(value)
            except (ValueError, RecursionError):
                self.fail(f"{value[:200]!r} is not a list in JSON.", param, ctx)
            if not all(isinstance(one, str) for one in listed):
                self.fail(f"{value[:200]!r} is not a list of strings.", param, ctx)
            value = listed
        names = super().convert(value, param, ctx)
        for name in names:
            if not ADAPTER.fullmatch(name):
                self.fail(f"{name[:200]!r} {NO_ADAPTER}", param, ctx)
        return names


class Mappings(click.ParamType[Any]):
    """A list of mappings: JSON, or the list itself in a YAML file.

    :param parse: converts it; raises ValueError, with a sentence
    """

    name = "json"

    def __init__(self, parse: Callable[[Any], tuple[Any, ...]]) -> None:
        self.parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Returns the parsed mappings; fails with the reason if one is wrong."""
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Whole(click.IntRange):
    """A whole number, also in the form in which templates print large ones: 2.097152e+06."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the number; fails if it is outside the range."""
        try:
            number = float(seconds(value))
        except ValueError:
            number = float("nan")
        if not number.is_integer():
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        return int(super().convert(int(number), param, ctx))


# A duration in Go's format, such as 1m30s.
DURATION = re.compile(r"(?=\d)(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


def seconds(value: Any) -> Any:
    """Returns the seconds of a duration in Go's format; returns anything else as it is."""
    match = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        return value
    parts = zip(match.groups(), (3600, 60, 1, 0.001), strict=True)
    return sum(float(part) * unit for part, unit in parts if part)


class Level(click.Choice[str]):
    """A log level, also in Go's spelling."""

    def __init__(self) -> None:
        super().__init__(["debug", "info", "warning", "error"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the level."""
        said = value.lower()
        return super().convert("warning" if said == "warn" else said, param, ctx)


class Share(click.FloatRange):
    """A share of a whole."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number; fails if it is outside the range."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Seconds(click.ParamType[Any]):
    """A number of seconds, with fractions, from ``least`` to ``most``."""

    name = "seconds"

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the seconds; fails if that is not a number within the bounds."""
        try:
            number = float(seconds(value))
        except ValueError:
            number = math.nan
        # PostgreSQL, for one, counts milliseconds: anything shorter would become 0, which means none.
        if not self.least <= number <= self.most or 0 < number < 0.001:
            self.fail(
                f"{value!r} is not a number of seconds from {self.least:g} to {self.most:g}.", param, ctx
            )
        return number
