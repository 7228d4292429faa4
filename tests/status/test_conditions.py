"""Mapped conditions: what rules see, what they yield, and the bounds that keep them harmless."""

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_contract import faults
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfleet.errors import ConfigurationError
from hyperfleet.settings import entities, expressions
from hyperfleet.settings.entities import Entity, Rule
from hyperfleet.settings.expressions import Expression, Refused
from hyperfleet.settings.file import read_file
from hyperfleet.status import conditions
from hyperfleet.status.conditions import Folding, Rules
from hyperfleet.status.fold import fold

Json = dict[str, Any]

STATUS = {"$ref": "#/components/schemas/ClusterStatus"}


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}.000000Z"


def report(adapter: str, data: Any = None, second: int = 1, **says: str) -> Any:
    return {
        "adapter": adapter,
        "observed_generation": 1,
        "conditions": [
            {
                **{"adapter": adapter, "type": type_, "status": status},
                **{"reason": f"{type_}Reason", "message": f"{type_} message"},
                **{"observed_generation": 1, "created_at": at(0), "updated_at": at(second)},
                "last_transition_time": at(0),
            }
            for type_, status in says.items()
        ],
        "created_time": at(0),
        "last_report_time": at(second),
        **({} if data is None else {"data": data}),
    }


def resource(**members: Any) -> Any:
    return {
        **{"id": "0190", "name": "one", "labels": {"env": "dev"}, "spec": {"region": "east"}},
        **{"generation": 1, "created_time": at(0), "updated_time": at(0), "deleted_time": None},
        **members,
    }


def rule(when: str = "true", status: str = '"True"', **members: str) -> Rule:
    return Rule(
        **{
            "type": "Mapped",
            "when": when,
            "status": status,
            "reason": '"R"',
            "message": '"m"',
            **members,
        }
    )


def mapped(
    *rules: Rule, reports: Any = (), previous: Any = None, second: int = 1, **state: Any
) -> list[Json]:
    """Returns the conditions that rules add to a status, whose rest must be as without them."""
    state = resource(**state)
    whole = Folding((), Rules("Cluster", rules)).fold(state, reports, previous, at(second))
    plain = fold(state, reports, previous, (), at(second))
    number = len(plain["conditions"])
    assert whole["conditions"][:number] == plain["conditions"]
    assert {**whole, "conditions": []} == {**plain, "conditions": []}
    assert faults(whole, STATUS) == []
    return whole["conditions"][number:]


def value_of(adapter: str, type_: str, member: str = "status") -> str:
    return (
        f'statuses.filter(s, s.adapter == "{adapter}")[0]'
        f'.conditions.filter(c, c.type == "{type_}")[0].{member}'
    )


def exists(adapter: str, type_: str) -> str:
    return f'statuses.exists(s, s.adapter == "{adapter}" && s.conditions.exists(c, c.type == "{type_}"))'


# Examples from the original's documentation


def test_a_rule_copies_the_condition_of_an_adapter_with_a_longer_message() -> None:
    copied = rule(
        exists("rosa", "ControlPlaneReady"),
        value_of("rosa", "ControlPlaneReady"),
        reason=value_of("rosa", "ControlPlaneReady", "reason"),
        message='"ROSA: " + ' + value_of("rosa", "ControlPlaneReady", "message"),
    )
    reports = [report("rosa", Available="True", ControlPlaneReady="False")]
    assert mapped(copied, reports=reports) == [
        {
            "type": "Mapped",
            "status": "False",
            "reason": "ControlPlaneReadyReason",
            "message": "ROSA: ControlPlaneReady message",
            "observed_generation": 1,
            "created_time": at(1),
            "last_updated_time": at(1),
            "last_transition_time": at(1),
        }
    ]
    assert mapped(copied, reports=[report("rosa", Available="True")]) == []
    assert mapped(copied) == []


@pytest.mark.parametrize(("dns", "reason"), [("True", "AllHealthy"), ("False", "Degraded")])
def test_a_rule_combines_several_adapters(dns: str, reason: str) -> None:
    both = f'{value_of("rosa", "Up")} == "True" && {value_of("dns", "Available")} == "True"'
    healthy = rule(
        f"{exists('rosa', 'Up')} && {exists('dns', 'Available')}",
        f'{both} ? "True" : "False"',
        reason=f'{both} ? "AllHealthy" : "Degraded"',
    )
    reports = [report("rosa", Up="True"), report("dns", Available=dns)]
    (found,) = mapped(healthy, reports=reports)
    assert (found["status"], found["reason"]) == (dns, reason)
    assert mapped(healthy, reports=reports[:1]) == []


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        ({"quotaRemaining": 25, "internalProjectId": "p-1"}, "True", "left: 25"),
        ({"quotaRemaining": 10}, "False", "left: 10"),
        ({"other": 1}, None, None),
        (None, None, None),
    ],
)
def test_a_rule_reads_report_data_that_may_be_missing(
    data: Any, status: str | None, message: str | None
) -> None:
    quota = 'statuses.filter(s, s.adapter == "gcp")[0].?data.?quotaRemaining.orValue(0)'
    quota_rule = rule(
        'statuses.exists(s, s.adapter == "gcp" && s.conditions.exists(c, c.type == "Quota") '
        "&& s.?data.?quotaRemaining.hasValue())",
        f'{quota} > 10 ? "True" : "False"',
        message=f'"left: " + string({quota})',
    )
    found = mapped(quota_rule, reports=[report("gcp", data, Quota="True")])
    assert [(c["status"], c["message"]) for c in found] == ([(status, message)] if status else [])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ('dig(statuses[0].data, "quota.remaining")', "7"),
        ('dig(statuses[0].data, "items.1.name")', "b"),
        ('dig(statuses[0].data, "items.2") == null', "True"),
        ('dig(statuses[0].data, "items.²") == null', "True"),
        ('dig(statuses[0].data, "items.9.name") == null', "True"),
        ('dig(statuses[0].data, "quota.remaining.more") == null', "True"),
        ('dig(statuses[0].data, "nothing.at.all")', ""),
        ('string(dig(statuses[0].data, "quota")["remaining"])', "7"),
        ("toJson(statuses[0].data.quota)", '{"remaining":7}'),
        ('toJson([1, 2.5, null, true, "ä"])', '[1,2.5,null,true,"ä"]'),
        ("toJson(statuses[0].adapter)", '"gcp"'),
        ('statuses[?0].?data[?"quota"].?remaining.orValue(0)', "7"),
        ("statuses[?5].hasValue()", "False"),
        ("resource.kind + resource.name + resource.id", "Clusterone0190"),
        ("resource.generation", "1"),
        ("resource.labels.env + resource.metadata.labels.env", "devdev"),
        ("resource.spec.region", "east"),
        ("resource.created_time + resource.updated_time", at(0) + at(0)),
        ("string(has(resource.deleted_time))", "false"),
        ("statuses[0].observed_generation", "1"),
        ("1.5", "1.5"),
        ("2.0", "2"),
        ("7u", "7"),
        ("null", ""),
    ],
)
def test_values_are_found_and_shown_as_text(expression: str, value: str) -> None:
    data = {"quota": {"remaining": 7}, "items": [{"name": "a"}, {"name": "b"}]}
    (found,) = mapped(rule(message=expression), reports=[report("gcp", data, Available="True")])
    assert found["message"] == value


def test_what_a_report_does_not_say_is_empty() -> None:
    said = report("a", Up="True")
    for name in ("reason", "message"):
        del said["conditions"][0][name]
    (found,) = mapped(rule(message="toJson(statuses[0])"), reports=[said])
    shown = json.loads(found["message"])
    assert shown["data"] == {}
    assert shown["conditions"] == [{"type": "Up", "status": "True", "reason": "", "message": ""}]


def test_rules_see_that_a_resource_is_being_deleted() -> None:
    shown = rule("has(resource.deleted_time)", message="resource.deleted_time")
    (found,) = mapped(shown, deleted_time=at(7))
    assert found["message"] == at(7)


def test_rules_see_neither_unknown_conditions_nor_what_looks_like_a_secret() -> None:
    data = {
        "adminPassword": "sesame",
        "nested": [{"pullSecret": "sesame", "name": "n"}],
        "kubeconfigData": {"a": "sesame"},
    }
    everything = rule(message="toJson(statuses) + toJson(resource)")
    reports = [report("a", data, Available="Unknown", Other="True")]
    (found,) = mapped(everything, reports=reports, spec={"ssh": {"sshKeyData": "sesame"}, "size": 3})
    assert "sesame" not in found["message"]
    assert found["message"].count("***REDACTED***") == 4
    assert '"size":3' in found["message"]
    assert "Unknown" not in found["message"]
    assert '"type":"Other"' in found["message"]


# As the documentation lists them.
PARTS = (
    *("password", "passphrase", "secret", "token", "credential", "auth", "bearer", "private", "cert"),
    *("kubeconfig", "connection", "apikey", "api_key", "accesskey", "accountkey", "encryptionkey"),
    *("registrykey", "servicekey", "signingkey", "sshkey"),
)


def test_every_name_that_suggests_a_secret_hides_its_value() -> None:
    spec = {f"my{part.title()}1": "sesame" for part in PARTS}
    (found,) = mapped(rule(message="toJson(resource.spec)"), spec=spec)
    assert json.loads(found["message"]) == dict.fromkeys(spec, "***REDACTED***")


def test_data_below_20_levels_is_left_out() -> None:
    def nested(levels: int, within: Any) -> Any:
        for level in reversed(range(levels)):
            within = [within] if level % 2 else {"a": within}
        return within

    for levels, left in ((20, {}), (19, {"a": []})):
        below = {"a": {"a": "deep"}} if levels == 20 else {"a": ["deep"]}
        reports = [report("a", nested(levels, below), Up="True")]
        (found,) = mapped(rule(message="toJson(statuses[0].data)"), reports=reports)
        assert json.loads(found["message"]) == nested(levels, left)


def test_rules_see_the_reports_in_the_order_of_their_adapters() -> None:
    reports = [report(name, Up="True") for name in ("b", "a", "c")]
    names = rule(message="toJson(statuses.map(one, one.adapter))")
    (found,) = mapped(names, reports=reports)
    assert found["message"] == '["a","b","c"]'


# Resulting conditions


def test_times_and_generations_behave_like_those_of_other_conditions() -> None:
    follows = rule(exists("a", "Up"), value_of("a", "Up"))

    def step(second: int, status: str, previous: Any, **state: Any) -> Any:
        reports = [report("a", second=second, Up=status)]
        folding = Folding((), Rules("Cluster", [follows]))
        return folding.fold(resource(**state), reports, previous, at(second))

    def times(status: Any) -> tuple[Any, ...]:
        found = status["conditions"][-1]
        names = ("created_time", "last_updated_time", "last_transition_time", "observed_generation")
        return tuple(found[name] for name in names)

    first = step(1, "True", None)
    assert times(first) == (at(1), at(1), at(1), 1)
    second = step(5, "True", first)
    assert times(second) == (at(1), at(5), at(1), 1)
    third = step(7, "False", second, generation=2)
    assert times(third) == (at(1), at(7), at(7), 2)
    late = step(6, "True", third, generation=2)
    assert times(late) == (at(1), at(6), at(7), 2), "transitions never move back in time"
    again = Folding((), Rules("Cluster", [follows])).fold(
        resource(generation=2), [report("a", second=6, Up="True")], late, at(50)
    )
    assert again == late, "folding again changes nothing"


def test_mapped_conditions_are_sorted_by_type_after_all_others() -> None:
    rules = [rule(type=name) for name in ("b", "c", "A")]
    assert [c["type"] for c in mapped(*rules)] == ["A", "b", "c"]


@pytest.mark.parametrize("status", ['"true"', '"TRUE"', "true", "1 == 1"])
def test_a_status_may_be_text_in_any_case_or_a_boolean(status: str) -> None:
    assert mapped(rule(status=status))[0]["status"] == "True"


def test_a_long_message_is_cut_between_characters_and_a_long_reason_yields_no_condition(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    data = {"text": "ä" * 2000}
    reports = [report("a", data, Up="True")]
    (found,) = mapped(rule(message='"x" + statuses[0].data.text'), reports=reports)
    assert found["message"] == "x" + "ä" * 1023
    assert "which is cut" in caplog.text
    assert mapped(rule(reason="statuses[0].data.text"), reports=reports) == []
    assert "its reason is longer than 256 bytes" in caplog.text


def test_nul_is_removed_from_messages_and_reasons() -> None:
    (found,) = mapped(rule(message='"a\\u0000b"', reason='"\\x00"'))
    assert (found["message"], found["reason"]) == ("ab", "")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (rule("statuses[0].adapter == 'a'"), "Index error"),
        (rule("resource.spec.nope == 1"), 'Key not found in map : "nope"'),
        (rule("resource.name"), "'when' is neither true nor false"),
        (rule(status='"Unknown"'), "its status is 'Unknown'"),
        (rule(status="1 / 0 == 1"), "divide by zero"),
        (rule(reason="resource.spec"), "it yielded a map"),
        (rule(message='{"a": dyn(resource.?name)}["a"]'), "it yielded a value that has no text"),
    ],
)
def test_a_failing_rule_yields_no_condition_and_a_single_log_line(
    broken: Rule, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Rules("Cluster", [broken, rule(type="Other")])
    for second in range(1, 20):
        found = rules.conditions(resource(), (), None, at(second))
        assert [c["type"] for c in found] == ["Other"]
    (line,) = caplog.records
    assert line.getMessage().startswith("the rule Cluster.Mapped yields no condition: ")
    assert reason in line.getMessage()
    assert (line.__dict__["kind"], line.__dict__["condition"]) == ("Cluster", "Mapped")


def test_a_failing_rule_is_logged_again_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Rules("Cluster", [rule("resource.spec.nope == 1")])
    rules.conditions(resource(), (), None, at(1))
    monkeypatch.setattr(conditions, "QUIET", 0.0)
    rules.conditions(resource(), (), None, at(2))
    assert len(caplog.records) == 2


def test_a_rule_that_fails_is_logged_even_if_its_message_was_cut_just_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    rules = Rules("Cluster", [rule(message="statuses[0].data.text")])
    for data in ({"text": "x" * 3000}, {}, {"text": "x" * 3000}):
        rules.conditions(resource(), [report("a", data, Up="True")], None, at(1))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


# Arbitrary rules and data

PIECES = st.sampled_from(
    [
        *("true", "false", "null", "1", "2.5", "0.0 / 0.0", "-1", '""', '"True"', '"a\\u0000"', "b'x'"),
        *("statuses", "resource", "resource.spec", "resource.name", "statuses[0]", "resource.?nope"),
        *("statuses[0].data", "statuses[0].data.x", "statuses.map(s, s.adapter)", "type(1)", "1 / 0"),
        *("toJson(statuses)", 'dig(resource, "spec.x")', 'dig(statuses, "0.data.x")', "[1, 2][5]"),
        *('duration("1s")', 'timestamp("2026-01-01T00:00:00Z")', "9223372036854775807 + 1", "1u"),
        *("optional.none()", "string(statuses[0].data.x)", '"😀".matches("(")', "{1: 2}", '"e" + "x"'),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
    | st.text("ä", min_size=200, max_size=3000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(when=PIECES, status=PIECES, reason=PIECES, message=PIECES, value=VALUES)
@settings(max_examples=400, deadline=None, database=None)
def test_whatever_a_rule_yields_the_status_stays_valid_and_nothing_is_raised(
    when: str, status: str, reason: str, message: str, value: Any
) -> None:
    try:
        rules = Rules("Cluster", [Rule("Mapped", when, status, reason, message)])
    except Refused:
        return
    reports = [report("a", {"x": value}, Available="True")]
    state = resource(spec={"x": value})
    folded = Folding((), rules).fold(state, reports, None, at(1))
    assert faults(folded, STATUS) == []
    text = json.dumps(folded)
    assert "\\u0000" not in text
    assert (
        Folding((), rules).fold(state, reports, folded, at(30))["conditions"][-1]
        == (folded["conditions"][-1])
    )


# Bounds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("1 +", "line 1, column 4: Syntax error"),
        ("nope", "undeclared reference to 'nope'"),
        ("toJson()", "undeclared reference to 'toJson'"),
        ("dig(resource, 1)", "found no matching overload for 'dig'"),
        ('"a" + 1', "found no matching overload"),
        ("[1]", "but must yield a string"),
        ("resource.?name", "optional_type<dyn>, but must yield a string"),
        ("'" + "a" * 5000 + "'", "at most 4096 are allowed"),
        ("(" * 100 + "1" + ")" * 100, "recursion limit exceeded"),
        ("statuses.all(a, statuses.all(b, statuses.all(c, statuses.all(d, true))))", "at most 3 deep"),
        (" || ".join(["statuses.exists(s, true)"] * 13), "13 loops"),
        ("['x']" + ".map(x, x + x)" * 3 + "[0]", "3 loops that make values"),
        ("['x'].map(x, x + x + x + x + x + x)[0]", "5 '+' and ','"),
        ("optional.of('x').optMap(x, x+x).optMap(x, x+x).optMap(x, x+x).value()", "3 loops"),
    ],
)
def test_an_unusable_expression_is_refused_with_a_reason_on_one_line(text: str, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        Expression(text)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ['"map(map(map(map("', "'''a\n.map(('''", 'r"\\("', "1 // .map(.map(\n + 2", '"\\".map(" + "x"'],
)
def test_strings_and_comments_are_not_counted_as_loops(text: str) -> None:
    assert expressions._shape(text).loops == 0
    Expression(text)


def test_when_must_yield_a_boolean() -> None:
    with pytest.raises(Refused, match="must yield true or false"):
        Expression('"true"', boolean=True)


HEAVY = {
    "many rounds": (
        "statuses.exists(a, statuses.exists(b, statuses.exists(c, a.adapter + b.adapter == c.adapter)))",
        [{"n": n} for n in range(90)],
    ),
    "long texts": ('statuses[0].data.l.exists(i, statuses[0].data.b.matches("(x+x+)+y"))',),
    "texts in texts": ("statuses[0].data.l.exists(i, statuses[0].data.b.contains(statuses[0].data.b))",),
    "copies": ('statuses[0].data.l.exists(i, dig(statuses[0].data, "b") == "q")',),
    "what is made": ("statuses[0].data.l.map(i, statuses[0].data.b + statuses[0].data.b).size() > 0",),
}


@pytest.mark.slow
@pytest.mark.parametrize("length", [100, 500, 4000])
@pytest.mark.parametrize("case", HEAVY)
def test_no_rule_takes_long_whatever_data_it_sees(case: str, length: int) -> None:
    text, *given = HEAVY[case]
    data: Any = given[0] if given else [{"l": [1] * length, "b": "x" * (200_000 - 8 * length)}]
    reports = [report(f"a{index}", one, Up="True") for index, one in enumerate(data)]
    rules = Rules("Cluster", [rule(text)])
    began = time.thread_time()
    rules.conditions(resource(), reports, None, at(1))
    assert time.thread_time() - began < 5


def test_rules_are_not_evaluated_on_too_much_data(caplog: pytest.LogCaptureFixture) -> None:
    reports = [report("a", {"text": "x" * conditions.LARGEST}, Up="True")]
    assert mapped(rule(), reports=reports) == []
    assert "the data that rules see is larger than 262144 characters" in caplog.text
    assert mapped(rule(), spec={"text": "x" * conditions.LARGEST}), "no rule reads the resource"


def size(value: Any) -> int:
    """Returns the size of a value as the documentation describes it."""
    if isinstance(value, dict):
        return 8 + sum(len(name) + size(one) for name, one in value.items())
    if isinstance(value, list):
        return 8 + sum(map(size, value))
    return 8 + (len(value) if isinstance(value, str) else 0)


@pytest.mark.parametrize(
    "data",
    [
        {"numbers": [1] * 1000, "text": ""},
        {"x" * 10_000: None, "text": ""},
        {"nested": [{"a": True, "texts": ["b"] * 100}] * 10, "text": ""},
    ],
)
def test_characters_of_strings_and_names_and_eight_for_each_value_count_towards_the_size(
    data: Json,
) -> None:
    reports = [report("a", data, **{f"Type{number}": "True" for number in range(100)})]
    seen = [
        {name: one[name] for name in ("type", "status", "reason", "message")}
        for one in reports[0]["conditions"]
    ]
    data["text"] = "x" * (conditions.LARGEST - size(data) - size([seen]))
    assert mapped(rule(), reports=reports)
    data["text"] += "x"
    assert mapped(rule(), reports=reports) == []


@pytest.mark.parametrize(
    ("when", "length", "least", "most"),
    [
        ("statuses[0].data.l.exists(i, i == 2)", 240_000, 480, 560),
        ("statuses[0].data.l.all(i, statuses[0].data.l.all(j, i == j))", 240_000, 16, 18),
        ('statuses[0].data.l.exists(i, dig(statuses[0].data, "b") == "q")', 240_000, 60, 75),
        ('statuses[0].data.l.exists(i, toJson(statuses[0].adapter) == "q")', 240_000, 60, 75),
        (
            "statuses[0].data.l.exists(i, statuses[0].data.b.contains(statuses[0].data.k))",
            30_000,
            40,
            60,
        ),
    ],
)
def test_a_rule_fails_if_its_loops_could_look_at_more_than_128_mi_in_the_worst_case(
    when: str, length: int, least: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    for items, fails in ((least, False), (most, True)):
        caplog.clear()
        data = {"l": [1] * items, "b": "x" * length, "k": "y"}
        Rules("Cluster", [rule(when)]).conditions(
            resource(), [report("a", data, Up="True")], None, at(1)
        )
        assert ("it could take too long" in caplog.text) == fails
        assert len(caplog.records) == fails


# The list of entities


def entity(**members: Any) -> Json:
    return {"kind": "Cluster", **members}


def written(**members: Any) -> Json:
    texts = {"status": '"True"', "reason": '"R"', "message": '"m"'}
    output = {name: {"expression": text} for name, text in texts.items()}
    return {"type": "Mapped", "when": {"expression": "true"}, "output": output, **members}


def test_entities_are_parsed_and_shown_in_a_form_that_parses_to_the_same() -> None:
    given = [
        entity(plural="clusters", required_adapters=["dns", "dns"], conditions=[written()]),
        {"kind": "NodePool", "parent_kind": "Cluster"},
    ]
    found = entities.parse(given)
    cluster = Entity("Cluster", "clusters", required_adapters=("dns",), conditions=(rule(),))
    assert found == (cluster, Entity("NodePool", parent_kind="Cluster"))
    assert entities.parse(entities.shown(found)) == found
    assert entities.parse("") == entities.parse([]) == ()
    # Helm turns `--set config.entities[0].required_adapters={}` into this.
    assert entities.parse([entity(required_adapters=[""])]) == entities.parse(
        [entity(required_adapters=[])]
    )


OUTPUT = written()["output"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "Cluster"}, "entities must be a list of mappings, each with a kind."),
        (["Cluster"], "entities[0] must be a mapping with a kind."),
        ([{"plural": "clusters"}], "entities[0] must be a mapping with a kind."),
        ([{"kind": "cluster"}], "Did you mean Cluster?"),
        ([entity(), entity()], "entities names the kind Cluster twice."),
        ([entity(name_min_len="x")], "Cluster.name_min_len must be a number from 0 to 63."),
        ([entity(require_spec_schema="x")], "Cluster.require_spec_schema must be true or false."),
        (
            [entity(search_disallowed_fields="spec")],
            "Cluster.search_disallowed_fields must be a list of names.",
        ),
        (
            [entity(condition=[])],
            "Cluster.condition is not supported: unknown. Did you mean conditions?",
        ),
        ([entity(plural="klusters")], "Cluster.plural is 'clusters' and cannot be changed"),
        ([entity(parent_kind="Fleet")], "Cluster.parent_kind is none and cannot be changed"),
        ([entity(required_adapters="dns")], "Cluster.required_adapters must be a list of names."),
        ([entity(required_adapters=["a b"])], "'a b', which is not a name that an adapter can have"),
        ([entity(conditions={"a": "b"})], "Cluster.conditions must be a list of rules."),
        ([entity(conditions=[written()] * 51)], "has 51 rules; at most 50 are allowed."),
        ([entity(conditions=[written(), written()])], "has the type 'Mapped' twice."),
        ([entity(conditions=["x"])], "Cluster.conditions[0] must be a mapping with type, when, output."),
        ([entity(conditions=[{"type": "a"}])], "Cluster.conditions[0] lacks when."),
        ([entity(conditions=[written(type="")])], "conditions[0].type must be the name of a condition."),
        ([entity(conditions=[written(type="a\nb")])], "type must be the name of a condition."),
        ([entity(conditions=[written(type="x" * 101)])], "has 101 characters; at most 100"),
        ([entity(conditions=[written(also="x")])], "conditions[0].also is not supported: unknown."),
        ([entity(conditions=[written(when="true")])], "Cluster.Mapped.when must be a mapping with expr"),
        ([entity(conditions=[written(when={"expression": []})])], "when.expression must be a string."),
        (
            [entity(conditions=[written(when={"expression": "1 +"})])],
            "entities: Cluster.Mapped.when: invalid CEL expression: line 1, column 4: Syntax error",
        ),
        (
            [entity(conditions=[written(output={**OUTPUT, "reason": {"expression": "nope"}})])],
            "entities: Cluster.Mapped.output.reason: invalid CEL expression: line 1, column 1: undecl",
        ),
        *(
            (
                [entity(conditions=[written(type=type_)])],
                f"cannot have the type '{type_}': it is reserved",
            )
            for type_ in (
                *("Ready", "Reconciled", "Available", "LastKnownReconciled"),
                *("DnsSuccessful", "Successful"),
            )
        ),
    ],
)
def test_each_mistake_in_the_entities_has_its_own_message(given: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        entities.parse(given)
    assert sentence in str(error.value)


def test_the_examples_in_the_documentation_are_valid() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "conditions.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (found,) = entities.parse(yaml.load(shown, yaml.BaseLoader)["entities"])
    assert [one.type for one in found.conditions] == ["QuotaValid"]
    (examples,) = re.findall(r"each a `message` or a part of one:\n\n```\n(.*?)```", page, re.DOTALL)
    for text in examples.splitlines():
        Expression(text)


def test_a_mistake_is_reported_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("entities:\n  - kind: Channel\n")
    with pytest.raises(ConfigurationError, match=r"c\.yaml: entities: Channel lacks a plural"):
        read_file(path)


def test_the_reserved_types_are_those_that_the_fold_makes() -> None:
    status = fold(resource(), [report("dns-adapter", Available="True")], None, (), at(1))
    kinds = [c["type"] for c in status["conditions"]]
    assert {*kinds[:4]} == {*entities.AGGREGATED}
    assert all(kind.endswith(entities.SUCCESSFUL) for kind in kinds[4:])
