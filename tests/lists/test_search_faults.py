"""Searches that are refused: faults and where they are, bounds, injections, regular expressions."""

import re

import psycopg
import pytest
from search_rows import CLUSTERS, found, rows

from hyperfleet.lists.search import SearchError, translate

__all__ = ["rows"]

FAULTS = [
    # Expression, position, part of the message
    ("", 0, "expected a field"),
    ("   ", 0, "expected a field"),
    ("name", 4, "expected a comparison operator such as = or in"),
    ("name ", 4, "found the end"),
    ("name=", 5, "expected a value"),
    ("name==5", 5, "expected a value"),
    ("name='a", 5, "no closing quote"),
    ("name=\"a'", 5, "no closing quote"),
    ("name=bar", 5, "found bar"),
    ("name=null", 5, "expected a value"),
    ("name=" + "b" * 41, 5, f"found {'b' * 40}…"),
    ("name='a' name='b'", 9, "expected and, or or the end"),
    ("name='a' and", 12, "expected a field"),
    ("name='a' or or name='b'", 15, "expected a comparison operator"),
    ("name='a' && name='b'", 9, "expected and"),
    ("name='a';", 8, "expected and"),
    ("(name='a'", 9, "expected ), and or or"),
    ("name='a')", 8, "expected the end"),
    ("()", 1, "expected a field"),
    ("name in 'a'", 8, "expected ( or ["),
    ("name in ('a',)", 13, "expected a value"),
    ("name in ('a' 'b')", 13, "expected a comma or )"),
    ("name in ('a']", 12, "expected a comma or )"),
    ("name not = 'a'", 9, "expected in, like or between"),
    ("name between 'a'", 16, "expected and"),
    ("name between 'a' or 'b'", 17, "expected and"),
    ("name is 'a'", 8, "expected null or not"),
    ("'a'=name", 0, "expected a field"),
    ("5=generation", 0, "expected a field"),
    ("name like", 9, "expected a value"),
    ("naïve='x'", 0, "unknown field naïve"),
    ("foo='a'", 0, "use a field such as name, labels.KEY"),
    ("name='a' and foo.bar='a'", 13, "unknown field foo.bar"),
    ("labels='a'", 0, "labels.KEY"),
    ("spec is null", 0, "spec.PATH"),
    ("status='a'", 0, "status.phase"),
    ("status.foo='a'", 0, "unknown field status.foo"),
    ("status.conditions='a'", 0, "status.conditions.TYPE"),
    ("status.conditions.Ready.foo='a'", 0, "a condition has status, reason"),
    ("status.conditions.example.com/Synced.reason='a'", 0, "in quotes"),
    ("labels.='a'", 6, "found ."),
    ("owner_id='a'", 0, "unknown field owner_id"),
    ("name=5", 5, "expected text in quotes for name"),
    ("name>5", 5, "expected text in quotes for name"),
    ("name=true", 5, "expected text in quotes for name"),
    ("labels.a=5", 9, "expected text in quotes"),
    ("status.phase=true", 13, "expected text in quotes"),
    ("status.conditions.Ready=True", 24, "expected text in quotes"),
    ("name in ('a', 5)", 14, "expected text in quotes"),
    ("name between 'a' and 5", 21, "expected text in quotes"),
    ("id=5", 3, "expected text in quotes for id"),
    ("generation='x'", 11, "expected a number for generation"),
    ("generation='5'", 11, "expected a number"),
    ("generation=true", 11, "expected a number"),
    ("generation like '1%'", 11, "like works only with text"),
    ("generation ~= '1'", 11, "~= works only with text"),
    ("created_time>5", 13, "expected an RFC 3339 time"),
    ("created_time>'yesterday'", 13, "such as '2026-01-31T12:00:00Z'"),
    ("created_time>'2026-01-01'", 13, "RFC 3339"),
    ("created_time>2026-02-30T00:00:00Z", 13, "RFC 3339"),
    ("name=2026-01-01T00:00:00Z", 5, "expected text in quotes for name"),
    ("generation>2026-01-01T00:00:00Z", 11, "expected a number for generation"),
    ("name like 2026-01-01T00:00:00Z", 10, "expected a pattern in quotes"),
    ("created_time>'2026-01-01T00:00:00'", 13, "RFC 3339"),
    ("created_time>'2026-02-30T00:00:00Z'", 13, "RFC 3339"),
    ("created_time>'0001-01-01T00:00:00+23:59'", 13, "RFC 3339"),
    ("created_time>'9999-12-31T23:59:59-23:59'", 13, "RFC 3339"),
    ("created_time>'0000-01-01T00:00:00Z'", 13, "RFC 3339"),
    ("created_time like '2026%'", 13, "like works only with text"),
    ("status.conditions.Ready.last_updated_time<'x'", 42, "RFC 3339"),
    ("spec.a > true", 9, "no order"),
    ("spec.a between 1 and '2'", 21, "same type as the first"),
    ("spec.a like 5", 12, "expected a pattern in quotes"),
    ("name like 'a\\'", 10, "backslash"),
    ("name like '\\\\\\'", 10, "backslash"),
    ("name ~= 'a\\'", 8, "backslash"),
    ("name ~= '(a)\\1'", 8, "refer back"),
    ("name ~= '***=a'", 8, "***"),
    ("generation=1e999", 11, "between 1e-308 and 1e308"),
    ("generation=1e-999", 11, "between 1e-308 and 1e308"),
    ("generation=1e99999999999999999999999", 11, "between 1e-308 and 1e308"),
    ("generation=" + "9" * 400, 11, "between 1e-308 and 1e308"),
    ("generation=0x10", 12, "expected and"),
    ("generation=--1", 11, "expected a value"),
    ("name='\0'", 6, "U+0000"),
    ("name='\ud800'", 6, "U+D800"),
    ("labels.'\udfff'='x'", 8, "U+DFFF"),
    ("name='" + "a" * 4096, 4096, "longer than 4096 characters"),
    ("name in (" + ",".join(["''"] * 1001) + ")", 9 + 3000, "more than 1000 values"),
    (" or ".join(["name=''"] * 101), 1100, "more than 100 comparisons"),
    ("(" * 33 + "name='a'" + ")" * 33, 33, "more than 32 deep"),
    ("not " * 33 + "name='a'", 132, "more than 32 deep"),
    ("(" * 1000 + "name='a'" + ")" * 1000, 33, "more than 32 deep"),
    ("not " * 1000 + "name='a'", 132, "more than 32 deep"),
    ("(" * 4096, 4096, "expected a field"),
    ("name ~= '" + "a" * 257 + "'", 8, "longer than 256 characters"),
    # Letters whose lower or upper case is one of a keyword's.
    ("name \u0130N ('a')", 5, "expected a comparison operator"),
    ("name not \u0131n ('a')", 9, "expected in, like or between"),
    ("name l\u0130ke 'a%'", 5, "expected a comparison operator"),
    ("name i\u017f null", 5, "expected a comparison operator"),
]


@pytest.mark.parametrize(("expression", "position", "reason"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_reported_with_its_position_and_a_pointer(
    expression: str, position: int, reason: str
) -> None:
    with pytest.raises(SearchError) as caught:
        translate(expression, "Cluster")
    assert reason in caught.value.message
    assert caught.value.position == position
    said, shown, pointer = caught.value.message.split("\n")
    assert said.startswith(f"at character {position + 1}: ")
    assert re.fullmatch(" *\\^", pointer)
    column = len(pointer) - 1
    assert (shown[column : column + 1] or "") == (
        "" if position == len(expression) else re.sub("[\0\ud800-\udfff]", " ", expression[position])
    )
    assert len(shown) < 130


def test_expressions_at_the_bounds_are_accepted(rows: psycopg.Connection) -> None:
    fits = "name='" + "a" * 4089 + "'"
    assert len(fits) == 4096
    assert found(rows, translate(fits, "Cluster")) == []
    assert found(rows, translate("(" * 32 + "name='a'" + ")" * 32, "Cluster")) == ["a"]
    assert found(rows, translate("not " * 32 + "name='a'", "Cluster")) == ["a"]
    assert found(rows, translate(" or ".join(["name='a'"] * 100), "Cluster")) == ["a"]
    assert found(rows, translate(" and ".join(["labels.env='prod'"] * 100), "Cluster")) == ["a", "b"]
    assert found(rows, translate("name in (" + ",".join(["'b'"] * 1000) + ")", "Cluster")) == ["b"]
    pattern = "name ~= '" + "a?" * 128 + "'"
    assert found(rows, translate(pattern, "Cluster")) == list(CLUSTERS)


INJECTIONS = [
    "name='x' or 1=1",
    "name='x' or '1'='1'",
    "name='x'' or ''1''=''1'",
    "name='x'; drop table clusters",
    "name='x'); drop table clusters; --",
    "name='''; drop table clusters; --'",
    "name='x' --",
    "name='x' /* */",
    "name='x\\' or 1=1 --'",
    "name='x' union select 1",
    "name=(select 1)",
    "name=version()",
    "pg_sleep(10)='x'",
    "name='%s' or name='%(s0)s' or name='%%'",
    "name='x' and %(s9)s",
    "name like '%s%d%(x)s'",
    "labels.'x'' = '''' or 1=1 --'='a'",
    'labels."x"" or 1=1 --"=\'a\'',
    "labels.x';drop table clusters;--='a'",
    "labels.'%s'='x'",
    "labels.'%(s1)s'='x'",
    "spec.'a}'='x'",
    "spec.'{a,b}'.'\"'.'\\'='x'",
    "spec.'a'')::text; drop table clusters; --'='x'",
    "status.conditions.'\") ? (1 == 1'='True'",
    "status.conditions.'Reconciled\").status || \"'='True'",
    "status.conditions.'$type'='True'",
    "status.conditions.'%s'.reason='x'",
    "status.conditions.Ready.'status'') or true --'='x'",
    "name in ('x') or true",
    "name='x'::text",
    "name='x' collate \"C\"",
    "name=$1",
    "name=E'\\x27 or 1=1'",
    "name=U&'\\0027 or 1=1'",
    "name=$$x$$",
    "name='\u02bc or 1=1 --'",
    "name='\uff07 or 1=1 --'",
    "version='1'",
    "document like '%'",
    "clusters.name='a'",
    "ctid='(0,1)'",
    "owner_type='Cluster'",
]


def test_injections_find_nothing_and_remove_nothing(rows: psycopg.Connection) -> None:
    for expression in INJECTIONS:
        try:
            condition = translate(expression, "Cluster")
        except SearchError:
            continue
        assert found(rows, condition) == [], expression
    assert found(rows, translate("name is not null", "Cluster")) == list(CLUSTERS)


@pytest.mark.parametrize(
    "expression", ["name ~= '('", "spec.a ~= '['", "name ~= '*'", "name ~! 'a{2,1}'"]
)
def test_the_syntax_of_regular_expressions_is_left_to_postgresql(
    rows: psycopg.Connection, expression: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidRegularExpression):
        found(rows, translate(expression, "Cluster"))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a?){255}(a?){255}b{255}",
        "((((a*)*)*)*)*b",
        "(x+x+)+y",
        "(?:(?:a?){60}){60}",
        "(a|" * 60 + "b" + ")" * 60,
    ],
)
def test_a_regular_expression_cannot_take_forever(rows: psycopg.Connection, pattern: str) -> None:
    rows.execute("SET statement_timeout = '5min'")
    rows.execute("UPDATE clusters SET spec = jsonb_build_object('x', repeat('a', 5000))")
    before = processor_seconds(rows)
    try:
        found(rows, translate(f"spec.x ~= '{pattern}'", "Cluster"))
    except psycopg.errors.InvalidRegularExpression as error:
        assert "too complex" in str(error)
    assert processor_seconds(rows) - before < 10


def processor_seconds(sql: psycopg.Connection) -> float:
    """Returns the processor seconds that the server used for this connection, whatever else runs."""
    details: list[str] = []

    def collect(notice: psycopg.errors.Diagnostic) -> None:
        details.append(notice.message_detail or "")

    sql.add_notice_handler(collect)
    sql.execute("SET client_min_messages = log; SET log_statement_stats = on")
    sql.execute("SELECT 1")
    sql.execute("RESET log_statement_stats")
    sql.remove_notice_handler(collect)
    user, system = re.findall(r"\[(\S+) s user, (\S+) s system total\]", details[0])[0]
    return float(user) + float(system)
