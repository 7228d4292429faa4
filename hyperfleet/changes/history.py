"""Past generations of a resource: how they are found, and the error for one that is not kept."""

from collections.abc import Iterable
from itertools import groupby
from typing import LiteralString

from hyperfleet.errors import NOT_FOUND, Problem
from hyperfleet.kinds import RESOURCES, PerKind

# One generation, and the numbers of those that are kept.
ONE = PerKind("""/* {table}_generation */
SELECT ARRAY(SELECT generation FROM all_generations WHERE owner_id = %(id)s ORDER BY 1),
       (SELECT past.document::bpchar FROM all_generations AS past
        WHERE past.owner_id = %(id)s AND past.generation = %(generation)s)
FROM {table} WHERE id = %(id)s {under} {only} {scope}
""")
# The labels and specs of two generations, and the numbers of those that are kept. Without ``to``, the
# second is the current one.
TWO = PerKind("""/* {table}_generations */
SELECT ARRAY(SELECT generation FROM all_generations WHERE owner_id = %(id)s ORDER BY 1),
       coalesce(%(to)s::bigint, generation),
       (SELECT ARRAY[past.labels::text, past.spec::text]::bpchar[]
        FROM all_generations AS past
        WHERE past.owner_id = %(id)s AND past.generation = %(generation)s),
       (SELECT ARRAY[past.labels::text, past.spec::text]::bpchar[]
        FROM all_generations AS past
        WHERE past.owner_id = %(id)s AND past.generation = coalesce(%(to)s::bigint, {table}.generation))
FROM {table} WHERE id = %(id)s {under} {only} {scope}
""")
# The labels and the spec of one, for a caller that has locked the resource.
PAST: LiteralString = """/* generations_read */
SELECT ARRAY(SELECT generation FROM all_generations WHERE owner_id = %(id)s ORDER BY 1),
       past.labels, past.spec
FROM (SELECT) AS one LEFT JOIN all_generations AS past
    ON past.owner_id = %(id)s AND past.generation = %(generation)s
"""


def not_kept(kind: str, generation: int, kept: Iterable[int]) -> Problem:
    """Returns the error for a generation that is not kept; its message says which are."""
    # Within a run without gaps, number and index have a constant difference.
    runs = [
        [one for _, one in run] for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0])
    ]
    told = ", ".join(f"{run[0]} to {run[-1]}" if run[1:] else str(run[0]) for run in runs[:20])
    noun = RESOURCES[kind].noun
    return Problem(NOT_FOUND, f"Generation {generation} of this {noun} is not kept; kept: {told}.")
