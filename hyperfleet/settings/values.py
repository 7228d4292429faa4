"""What the value of a setting may be, and the ways to write it."""

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
    """A list of names, separated by commas or as given; a YAML file may hold a list instead."""

    name = "names"
    # What the items of a list in a file cannot be.
    no_items: tuple[type, ...] = (list, dict)

    def __init__(self, separator: str = ",") -> None:
        self.separator = separator

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names without blanks and repetitions, in the order given."""
        if isinstance(value, str):
            value = value.split(self.separator)
        elif not isinstance(value, list | tuple):
            value = [value]
        return tuple(dict.fromkeys(str(name).strip() for name in value if str(name).strip()))


class AdapterNames(Names):
    """Names that an adapter can report under, as the contract has them; also a list of them in JSON."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names; fails for one that no report could have, for which everybody would wait forever."""
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


class Mappings(Names):
    """A list of mappings: JSON, or the list itself in a YAML file.

    :param parse: finds what they say; raises ValueError, with a sentence
    """

    name = "json"
    no_items = ()

    def __init__(self, parse: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self.parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """What the mappings say; fails with what is wrong with one."""
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Whole(click.IntRange):
    """A whole number, which may be written as templates write large ones: 2.097152e+06."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, within its range."""
        try:
            number = float("" if isinstance(value, bool) else seconds(value))
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not number.is_integer():
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        return int(super().convert(int(number), param, ctx))


# 1m30s, as Go writes it.
DURATION = re.compile(r"(?=\d)(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


def seconds(value: Any) -> Any:
    """The seconds of a duration as Go writes it; anything else as it is."""
    match = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        return value
    parts = zip(match.groups(), (3600, 60, 1, 0.001), strict=True)
    return sum(float(part) * unit for part, unit in parts if part)


class Level(click.Choice[str]):
    """How much is logged; also as Go writes it."""

    def __init__(self) -> None:
        super().__init__(["debug", "info", "warning", "error"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The level."""
        said = value.lower() if isinstance(value, str) else value
        return super().convert("warning" if said == "warn" else said, param, ctx)


class Share(click.FloatRange):
    """A part of a whole."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, within its range."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Seconds(click.ParamType[Any]):
    """A time in seconds, with fractions. ``least`` and ``most`` are what it may be."""

    name = "seconds"

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The time; fails for what is no number within the bounds."""
        try:
            number = float(seconds(value))
        except ValueError:
            number = math.nan
        # PostgreSQL, for one, knows nothing shorter than a thousandth, and takes less for none.
        if not self.least <= number <= self.most or 0 < number < 0.001:
            self.fail(
                f"{value!r} is not a number of seconds from {self.least:g} to {self.most:g}.", param, ctx
            )
        return number
