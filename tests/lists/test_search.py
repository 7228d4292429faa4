"""The search language: what each expression finds, and that any text is either refused or runs."""

import json
import re
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from search_rows import CLUSTERS, found, identifier, rows

from hyperfleet.lists import columns
from hyperfleet.lists.order import order_by
from hyperfleet.lists.search import SearchError, translate

__all__ = ["rows"]

# Each expression and the clusters that it finds.
CASES = [
    # Text
    ("name='a'", "a"),
    ('name="a"', "a"),
    ("name = 'A'", ""),
    ("name != 'a'", "b c d e f g h"),
    ("name <> 'a'", "b c d e f g h"),
    ("name<'c'", "a b"),
    ("name<='c'", "a b c"),
    ("name>'f'", "g h"),
    ("name>='f'", "f g h"),
    ("name in ('a','c','z')", "a c"),
    ("name in ['a', 'c']", "a c"),
    ("name in ('a')", "a"),
    ("name in ()", ""),
    ("name in []", ""),
    ("name not in ()", "a b c d e f g h"),
    ("name not in ('a','c')", "b d e f g h"),
    ("name NOT IN ['a','c']", "b d e f g h"),
    ("name between 'b' and 'd'", "b c d"),
    ("name not between 'b' and 'd'", "a e f g h"),
    ("name between 'd' and 'b'", ""),
    ("name like 'a'", "a"),
    ("name like '%'", "a b c d e f g h"),
    ("name like '_'", "a b c d e f g h"),
    ("name like '__'", ""),
    ("name like 'A'", ""),
    ("name ilike 'A'", "a"),
    ("name not like 'a'", "b c d e f g h"),
    ("name not ilike 'A'", "b c d e f g h"),
    ("name ~= '^[ab]$'", "a b"),
    ("name ~! '^[ab]$'", "c d e f g h"),
    ("name !~ '^[ab]$'", "c d e f g h"),
    ("name ~= '(?i)^A'", "a"),
    ("name is null", ""),
    ("name is not null", "a b c d e f g h"),
    ("kind='Cluster'", "a b c d e f g h"),
    ("kind='NodePool'", ""),
    ("kind!='NodePool'", "a b c d e f g h"),
    ("created_by='bob@example.com'", "b"),
    ("created_by='Zoë'", "g"),
    ("created_by like 'Zo_'", "g"),
    ("created_by like '%@example.com'", "b"),
    ("updated_by='carol'", "a b c d e f g h"),
    ("deleted_by='root'", "f"),
    ("deleted_by!='root'", "a b c d e g h"),
    ("deleted_by < 'z'", "f"),
    ("not deleted_by < 'z'", "a b c d e g h"),
    # Identifiers
    (f"id='{identifier('a')}'", "a"),
    (f"id='{identifier('a').upper()}'", "a"),
    (f"id!='{identifier('a')}'", "b c d e f g h"),
    (f"id in ('{identifier('a')}', '{identifier('b')}', 'c')", "a b"),
    (f"id not in ('{identifier('a')}', 'c')", "b c d e f g h"),
    (f"id > '{identifier('f')}'", "g h"),
    (f"id <= '{identifier('b').upper()}'", "a b"),
    ("id='not-a-uuid'", ""),
    ("id=''", ""),
    ("id!='not-a-uuid'", "a b c d e f g h"),
    ("not id='not-a-uuid'", "a b c d e f g h"),
    ("id in ('x','y')", ""),
    ("id not in ('x','y')", "a b c d e f g h"),
    ("id='{01950000-0000-7000-8000-00000000abc1}'", ""),
    ("id='0195000000007000800000000000abc1'", ""),
    ("id like '%abc1'", "a"),
    ("id ~= 'abc[12]$'", "a b"),
    # Numbers
    ("generation=1", "a e f g"),
    ("generation = +1", "a e f g"),
    ("generation=1.0", "a e f g"),
    ("generation=1.5", ""),
    ("generation=10e-1", "a e f g"),
    ("generation=.1e1", "a e f g"),
    ("generation=1.", "a e f g"),
    ("generation!=1", "b c d h"),
    ("generation>3", "d h"),
    ("generation>=3", "c d h"),
    ("generation<2.5", "a b e f g"),
    ("generation>-1", "a b c d e f g h"),
    ("generation in (1, 2.0, 99)", "a b e f g"),
    ("generation not in (1,2)", "c d h"),
    ("generation between 2 and 4", "b c h"),
    ("generation < 1e308", "a b c d e f g h"),
    ("generation > -1e308", "a b c d e f g h"),
    ("generation < 99999999999999999999999999", "a b c d e f g h"),
    ("generation = 0e999999999", ""),
    ("generation is null", ""),
    # Times
    ("created_time='2026-01-02T00:00:00Z'", "b"),
    ("created_time='2026-01-02T01:00:00+01:00'", "b"),
    ("created_time='2026-01-01T19:00:00.000-05:00'", "b"),
    ("created_time='2026-01-02t00:00:00z'", "b"),
    ("created_time='2026-01-02 00:00:00Z'", "b"),
    ("created_time=2026-01-02T01:00:00+01:00", "b"),
    ("created_time>2026-01-06t00:00:00z and name!='g'", "h"),
    ("(created_time>=2026-01-06T00:00:00.000000001Z)", "f g h"),
    ("created_time between 2026-01-02T00:00:00Z and 2026-01-03T00:00:00Z", "b c"),
    ("created_time in (2026-01-02T00:00:00Z,'2026-01-04T00:00:00Z')", "b d"),
    ("created_time!='2026-01-02T00:00:00Z'", "a c d e f g h"),
    ("created_time>'2026-01-06T00:00:00Z'", "g h"),
    ("created_time>='2026-01-06T00:00:00Z'", "f g h"),
    ("created_time<'2026-01-02T00:00:00.000001Z'", "a b"),
    ("created_time between '2026-01-02T00:00:00Z' and '2026-01-03T00:00:00Z'", "b c"),
    ("created_time in ('2026-01-02T00:00:00Z','2026-01-04T00:00:00Z')", "b d"),
    ("updated_time='2026-01-01T12:00:00.123456Z'", "a"),
    ("updated_time='2026-01-01T12:00:00.123456789Z'", "a"),
    ("deleted_time is null", "a b c d e g h"),
    ("deleted_time is not null", "f"),
    ("not deleted_time is null", "f"),
    ("deleted_time < '2030-01-01T00:00:00Z'", "f"),
    ("deleted_time != '2026-05-01T00:00:00Z'", "a b c d e g h"),
    ("not deleted_time < '2030-01-01T00:00:00Z'", "a b c d e g h"),
    # Labels
    ("labels.env='prod'", "a b"),
    ("labels.env='prod' and labels.tier='gold'", "a"),
    ("labels.env='prod' and labels.tier='gold' and labels.tier='silver'", ""),
    ("labels.env='prod' or labels.env='dev'", "a b d"),
    ("labels.env='prod' and name='b'", "b"),
    ("name='a' or labels.env='stage'", "a c"),
    ("labels.env!='prod'", "c d e f g h"),
    ("not labels.env='prod'", "c d e f g h"),
    ("not (labels.env='prod' and labels.tier='gold')", "b c d e f g h"),
    ("not not labels.env='prod'", "a b"),
    ("labels.env in ('prod','dev')", "a b d"),
    ("labels.env not in ('prod','dev')", "c e f g h"),
    ("labels.env=''", "f"),
    ("labels.env is null", "e"),
    ("labels.env is not null", "a b c d f g h"),
    ("labels.env='O''Reilly'", "g"),
    ('labels.env="O\'Reilly"', "g"),
    ("labels.env<'a'", "f g h"),
    ("labels.env>='prod'", "a b c"),
    ("not labels.env>='prod'", "d e f g h"),
    ("labels.env like 'pr%'", "a b"),
    ("labels.env ilike 'pr%'", "a b h"),
    ("labels.env not like 'pr%'", "c d e f g h"),
    ("labels.env ~= '^(prod|dev)$'", "a b d"),
    ("labels.env ~! '^(prod|dev)$'", "c e f g h"),
    ("labels.\"app.kubernetes.io/name\"='web'", "a"),
    ("labels.'app.kubernetes.io/name'='web'", "a"),
    ("labels.app.kubernetes.io/name='web'", "a"),
    ("labels.app.kubernetes.io/name!='web'", "b c d e f g h"),
    ("labels.my-key='x'", "d"),
    ("labels.under_score='y'", "d"),
    ("labels.a.b='dotted'", "g"),
    ("labels.\"\"='x'", ""),
    ("labels.'quote\"d'='100%'", "g"),
    ('labels."quote""d"=\'100%\'', "g"),
    ("labels.'quote\"d' like '100\\%'", "g"),
    ("labels.city='Zürich'", "h"),
    ("labels.city like 'Z_rich'", "h"),
    ("labels.missing='x'", ""),
    ("labels.missing!='x'", "a b c d e f g h"),
    ("labels.missing < 'x'", ""),
    ("not labels.missing < 'x'", "a b c d e f g h"),
    # The spec
    ("spec.nodes=3", "a"),
    ("spec.nodes=3.0", "a"),
    ("spec.nodes='3'", "a b"),
    ("spec.nodes='3.0'", ""),
    ("spec.nodes!=3", "b c d e f g h"),
    ("spec.nodes>3", "c d"),
    ("spec.nodes>=3", "a c d"),
    ("spec.nodes<0", "g"),
    ("not spec.nodes<0", "a b c d e f h"),
    ("spec.nodes=1e3", "d"),
    ("spec.nodes between 3 and 4", "a c"),
    ("spec.nodes in (3, '3', 1000)", "a b d"),
    ("spec.nodes not in (3, '3', 1000)", "c e f g h"),
    ("spec.nodes>'2'", "a b c"),
    ("spec.nodes is null", "e h"),
    ("spec.nodes is not null", "a b c d f g"),
    ("spec.nodes.min=1", "f"),
    ("spec.ha=true", "a"),
    ("spec.ha=FALSE", "b"),
    ("spec.ha='true'", "a d"),
    ("spec.ha!=true", "b c d e f g h"),
    ("spec.ha in (true,false)", "a b"),
    ("spec.ha=1", "g"),
    ("spec.region='us-east-1'", "a"),
    ("spec.region like 'us-%'", "a b"),
    ("spec.region not like 'us-%'", "c d e f g h"),
    ("spec.region ~= '-[12]$'", "a b d"),
    ("spec.region is null", "c e f g h"),
    ("spec.region between 'us' and 'us-f'", "a"),
    ("spec.net.cidr='10/8'", "a"),
    ("spec.net.mtu>1000", "a"),
    ("spec.net='x'", ""),
    ("spec.net!='x'", "a b c d e f g h"),
    ("spec.net is not null", "a"),
    ('spec."weird key".b=5', "g"),
    ("spec.'weird key'.b=5", "g"),
    ("spec.in=1", "g"),
    ("spec.x/y='z'", "g"),
    ("spec.a.b.c.d.e=1", "h"),
    ("spec.big>1e308", "h"),
    ("spec.text=5", ""),
    ("spec.text='5'", "h"),
    ("spec.items.0.a=1", "f"),
    ("spec.items.1.a=2", "f"),
    ("spec.items.2.a=3", ""),
    ("spec.items='x'", ""),
    ("spec.path='a\\b_c%'", "g"),
    ("spec.path like 'a\\\\b\\_c\\%'", "g"),
    ("spec.path like '%\\'", None),
    ("spec.path like '%\\\\'", ""),
    # Status and conditions
    ("status.phase='Ready'", "a d f g"),
    ("status.phase!='Ready'", "b c e h"),
    ("status.phase in ('Failed','NotReady')", "b c h"),
    ("status.phase is null", "e"),
    ("status.observed_generation=1", "a b"),
    ("status.observed_generation<1", "c"),
    ("status.observed_generation is null", "e f g h"),
    ("status.observed_generation!=1", "c d e f g h"),
    ("status.last_updated_time<'2026-03-01T12:00:00Z'", "b"),
    ("status.last_updated_time='2026-03-01T13:00:00+01:00'", "a"),
    ("status.last_transition_time is not null", "a"),
    ("status.conditions.Ready='True'", "a f g"),
    ("status.conditions.Reconciled='True'", "a f g"),
    ("status.conditions.Ready!='True'", "b c d e h"),
    ("status.conditions.Ready='Unknown'", "d"),
    ("status.conditions.Ready in ('False','Unknown')", "b c d h"),
    ("status.conditions.Ready is null", "e"),
    ("status.conditions.Available='True'", "a b d f g"),
    ("status.conditions.LastKnownReconciled='False'", "c h"),
    ("not status.conditions.Available='True'", "c e h"),
    ("status.conditions.Ready.status='False'", "b c h"),
    (
        "status.conditions.Reconciled='False'"
        " and status.conditions.Reconciled.last_updated_time < '2026-03-01T12:00:00Z'",
        "b h",
    ),
    ("status.conditions.Ready.last_updated_time < '2026-03-01T12:00:00.000001Z'", "a b h"),
    ("status.conditions.Ready.last_updated_time <= '2026-03-01T12:00:00.000001Z'", "a b g h"),
    ("status.conditions.Ready.last_updated_time<=2026-03-01T12:00:00.000001Z", "a b g h"),
    ("status.conditions.Ready.last_updated_time > '2026-03-01T12:30:00.4Z'", "c d f"),
    ("status.conditions.Ready.last_updated_time = '2026-03-01T12:30:00.5Z'", "c"),
    ("status.conditions.Ready.last_transition_time > '2027-01-01T00:00:00Z'", ""),
    ("status.conditions.DnsSuccessful='True'", "a"),
    ("status.conditions.DnsSuccessful!='True'", "b c d e f g h"),
    ("status.conditions.DnsSuccessful is not null", "a b"),
    ("status.conditions.DnsSuccessful.reason='NoZone'", "b"),
    ("status.conditions.DnsSuccessful.reason like 'No%'", "b"),
    ("status.conditions.DnsSuccessful.observed_generation>1", "b"),
    ("status.conditions.DnsSuccessful.observed_generation<=1", "a"),
    ("status.conditions.\"example.com/Synced\"='True'", "d"),
    ("status.conditions.\"example.com/Synced\".reason='Done'", "d"),
    ("status.conditions.'example.com/Synced'.observed_generation=7", "d"),
    ("status.conditions.Missing='True'", ""),
    ("status.conditions.Missing!='True'", "a b c d e f g h"),
    ("status.conditions.'\") || true'='True'", ""),
    # Precedence, keywords, whitespace
    ("name='a' or name='b' and name='c'", "a"),
    ("(name='a' or name='b') and name='b'", "b"),
    ("not name='a' and name='b'", "b"),
    ("not name='a' or name='a'", "a b c d e f g h"),
    ("not (name='a' or name='b')", "c d e f g h"),
    ("not not not name='a'", "b c d e f g h"),
    ("name='c' or not name>'b' or name='d' and generation=10", "a b c d"),
    ("NAME='a'", None),
    ("Name='a'", None),
    ("name='a' OR name='b' AND NOT name='c'", "a b"),
    ("name='a'Or(name='b')", "a b"),
    ("\tname\n=\r\n'a' ", "a"),
    ("((((name='a'))))", "a"),
    ("name='a'and(not(name='b'))", "a"),
    ("generation=1and name='a'", "a"),
    ("labels.like='x' or labels.and='y' or spec.in=1", "g"),
]


def test_each_expression_finds_its_clusters(rows: psycopg.Connection) -> None:
    wrong = {}
    for expression, expected in CASES:
        try:
            names = " ".join(found(rows, translate(expression, "Cluster")))
        except SearchError:
            names = None
        if names != expected:
            wrong[expression] = (names, expected)
    assert wrong == {}


def test_each_negated_expression_finds_all_other_clusters(rows: psycopg.Connection) -> None:
    wrong = {}
    for expression, expected in CASES:
        if expected is not None:
            names = found(rows, translate(f"not ({expression})", "Cluster"))
            if sorted(names + expected.split()) != list(CLUSTERS):
                wrong[expression] = names
    assert wrong == {}


def test_node_pools_are_found_by_owner_and_by_common_fields(rows: psycopg.Connection) -> None:
    cases = {
        f"owner_id='{identifier('a')}'": ["infra", "workers"],
        f"owner_references.id='{identifier('b')}'": ["gpu"],
        f"owner_id!='{identifier('a')}'": ["gpu"],
        "owner_id='a'": [],
        "kind='NodePool'": ["gpu", "infra", "workers"],
        "labels.env='prod'": ["gpu", "workers"],
        "labels.env='prod' and labels.gpu='a100'": ["gpu"],
        "labels.env!='prod'": ["infra"],
        "spec.replicas>0": ["infra", "workers"],
        "name='workers'": ["workers"],
        "status.phase is null": ["gpu", "infra", "workers"],
    }
    for expression, expected in cases.items():
        assert found(rows, translate(expression, "NodePool"), "NodePool") == expected, expression


def test_reports_are_found_by_their_own_fields(rows: psycopg.Connection) -> None:
    cases = {
        "adapter='dns'": ["dns"],
        "adapter like '%s%'": ["dns", "pull-secret"],
        "observed_generation>=2": ["pull-secret", "validation"],
        "last_report_time<'2026-02-02T00:00:00Z'": ["dns"],
        "created_time='2026-01-01T00:00:00Z'": ["dns", "pull-secret", "validation"],
    }
    for expression, expected in cases.items():
        condition = translate(expression, "AdapterStatus")
        assert found(rows, condition, "AdapterStatus") == expected, expression
    for expression in ("name='dns'", "labels.env='x'", "spec.a=1", "status.phase='Ready'", "id='x'"):
        with pytest.raises(SearchError, match="such as adapter or observed_generation"):
            translate(expression, "AdapterStatus")


def test_text_is_compared_and_ordered_by_code_point_whatever_the_collation(
    sql: psycopg.Connection,
) -> None:
    other = sql.execute(
        """SELECT quote_ident(collname) FROM pg_collation
        WHERE collprovider IN ('c', 'i') AND collname ~ '^(en|de|und)' AND collencoding IN (-1, 6)"""
    ).fetchone()
    if other is None:
        pytest.skip("PostgreSQL has no other collation")
    # Found instead of the real table.
    sql.execute(f"CREATE TEMPORARY TABLE clusters (id uuid, name text COLLATE {other[0]})")
    sql.execute("INSERT INTO clusters (name) VALUES ('a'), ('B'), ('b'), ('C')")
    usual = [name for (name,) in sql.execute("SELECT name FROM clusters ORDER BY name")]
    assert usual == ["a", "b", "B", "C"]
    condition, order = translate("name < 'a'", "Cluster"), order_by("name", None, "Cluster")
    found = sql.execute(
        f"SELECT name FROM clusters WHERE {condition.sql} ORDER BY {order.sql}", condition.values
    )
    assert [name for (name,) in found] == ["B", "C"]
    ordered = sql.execute(f"SELECT name FROM clusters ORDER BY {order.sql}")
    assert [name for (name,) in ordered] == ["B", "C", "a", "b"]


def test_values_do_not_clash_with_those_of_the_calling_query(rows: psycopg.Connection) -> None:
    condition = translate("name in ('a','b') and labels.env='prod' and spec.nodes=3", "Cluster")
    assert all(re.fullmatch("s[0-9]+", name) for name in condition.values)
    query = f"SELECT name FROM clusters WHERE ({condition.sql}) AND name LIKE 'a%%' LIMIT %(size)s"
    assert rows.execute(query, {**condition.values, "size": 5}).fetchall() == [("a",)]


def test_labels_must_carry_the_creation_time_of_their_owner(rows: psycopg.Connection) -> None:
    wrong = rows.execute(
        "SELECT count(*) FROM labels LEFT JOIN (SELECT id, created_time FROM clusters"
        " UNION ALL SELECT id, created_time FROM node_pools) AS owners ON id = owner_id"
        " WHERE labels.created_time IS DISTINCT FROM owners.created_time"
    ).fetchone()
    assert wrong == (0,)
    with pytest.raises(psycopg.errors.NotNullViolation):
        rows.execute("INSERT INTO labels VALUES ('Cluster', gen_random_uuid(), 'a', 'b')")


def test_the_documentation_matches_the_language(root: Path) -> None:
    text = (root / "docs" / "search.md").read_text()
    examples = re.findall('"search=(.*?)"\\s', text)
    assert len(examples) > 10
    for expression in examples:
        kind = "AdapterStatus" if "report_time" in expression else "NodePool"
        translate(expression, kind)
    in_tables = re.findall(r"^\| .*\| `([^`]+ .+)` \|$|^\| `(spec\.\w+ .*)` \|", text, re.MULTILINE)
    assert len(in_tables) > 15
    for last, first in in_tables:
        if "`, `" not in last:
            translate(last or first, "Cluster")
    faults = re.findall("```text\n(.*)\n(.*)\n(.*)\n```", text)
    assert len(faults) == 1
    for fault in faults:
        with pytest.raises(SearchError) as caught:
            translate(fault[1], "Cluster")
        assert f"search: {caught.value.message}" == "\n".join(fault)
    for field in columns.names("NodePool"):
        assert f"`{field.replace('.FIELD', '.reason')}`" in text


ALPHABET = "abz_'\"().,=<>!~%\\[]{}*+?^$|&;:-/ \t\n0159eE\0é\ud800\U0001f600"
PIECES = st.sampled_from(
    [
        *("name", "id", "generation", "created_time", "labels.env", "labels.'a b'", "spec.nodes"),
        *("spec.items.0.a", 'spec."x"', "status.phase", "status.observed_generation", "deleted_time"),
        *("status.conditions.Ready", "status.conditions.Foo.reason", "kind", "foo", "and", "or", "not"),
        *("status.conditions.Foo.observed_generation", "status.last_updated_time", "in", "like"),
        *("ilike", "between", "is", "null", "true", "false", "(", ")", "[", "]", ",", "=", "!=", "<"),
        *(">=", "~=", "~!", "'a'", "'%_'", "'2026-01-01T00:00:00Z'", "5", "-1.5e3", "''", "'\\'"),
        *("'(a|b)*'", "'a{2}'", "'" + identifier("a") + "'"),
    ]
)
VALID = [expression for expression, expected in CASES if expected is not None]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid expression with some characters removed, inserted, replaced or doubled."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 6)))
        middle = draw(st.one_of(st.text(ALPHABET, max_size=4), PIECES, st.just(text[start:end] * 2)))
        text = text[:start] + middle + text[end:]
    return text


# Whole comparisons, so that many of them are valid.
comparisons = st.tuples(
    PIECES, st.sampled_from(["=", "!=", "<", "~=", " like ", " not like ", " in "]), PIECES
).map(lambda parts: parts[0] + parts[1] + (f"({parts[2]})" if parts[1] == " in " else parts[2]))


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example("name='a' and", "Cluster")
@given(
    st.one_of(
        st.text(),
        st.text(ALPHABET),
        mutated(),
        st.lists(PIECES, max_size=12).map(" ".join),
        st.lists(comparisons, min_size=1, max_size=4).map(" or ".join),
    ),
    st.sampled_from(["Cluster", "NodePool", "AdapterStatus"]),
)
def test_any_text_is_either_refused_or_runs(
    rows: psycopg.Connection, expression: str, kind: str
) -> None:
    try:
        condition = translate(expression, kind)
    except SearchError as error:
        assert 0 <= error.position <= len(expression)
        json.dumps(error.message).encode()
        error.message.encode()
        return
    try:
        found(rows, condition, kind)
    except psycopg.errors.InvalidRegularExpression:
        assert "~" in expression
