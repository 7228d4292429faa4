"""How PostgreSQL executes a statement."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psycopg
from psycopg import sql as composed

Step = dict[str, Any]

EXPLAIN = "EXPLAIN (ANALYZE, FORMAT JSON) "


def steps(sql: psycopg.Connection, statement: str, values: Mapping[str, Any]) -> list[Step]:
    """Returns the steps of a statement planned for these values and run; the first has all others."""
    [(found,)] = sql.execute(EXPLAIN + statement, values, prepare=False).fetchall()
    return [*_within(found[0]["Plan"])]


def kept_steps(sql: psycopg.Connection, statement: str, values: Mapping[str, Any]) -> list[Step]:
    """Returns the same for the generic plan, executed with these values."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
    given = composed.SQL(", ").join(composed.Literal(values[name]) for name in names)
    with sql.transaction(force_rollback=True):
        sql.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        sql.execute(f"PREPARE kept AS {numbered}")
        execute = composed.SQL(EXPLAIN + ("EXECUTE kept ({})" if names else "EXECUTE kept"))
        [(found,)] = sql.execute(execute.format(given)).fetchall()
        sql.execute("DEALLOCATE kept")
    return [*_within(found[0]["Plan"])]


def _within(step: Step) -> Iterator[Step]:
    yield step
    for below in step.get("Plans", []):
        yield from _within(below)


def rows(step: Step) -> float:
    """Returns how many rows, or index entries, a step looks at."""
    each: float = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
    return each * step["Actual Loops"]


def of_table(found: Iterable[Step], table: str) -> list[Step]:
    """Returns the steps that read a table."""
    return [step for step in found if step.get("Relation Name") == table]
