"""Provider schemas, one feature at a time: dialects, references, read-only members, discriminators."""
# ruff: noqa: E501 (tables of cases, a line for each)

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperfleet.contract import faults as faults_module
from hyperfleet.contract.provider_document import BrokenDocument, read
from hyperfleet.contract.schema import compile_schema


def compiled(
    tmp_path: Path, version: str, spec: Any, **named: Any
) -> Callable[[Any], list[tuple[str, str]]]:
    file = tmp_path / f"{time.monotonic_ns()}.yaml"
    document = {"openapi": version, "components": {"schemas": {"ClusterSpec": spec, **named}}}
    file.write_text(yaml.safe_dump(document))
    validator = read(file).validators["Cluster"]

    def check(value: Any) -> list[tuple[str, str]]:
        found = faults_module.faults(validator, value, ["spec"])
        return [(fault["field"], fault["constraint"]) for fault in found]

    return check


def test_openapi_3_0_keeps_its_own_rules_where_it_differs_from_json_schema(tmp_path: Path) -> None:
    check = compiled(
        tmp_path,
        "3.0.3",
        {
            "properties": {
                "size": {"type": "string", "nullable": True, "enum": ["s", "m"]},
                "over": {"minimum": 3, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
                # Members beside a reference are ignored.
                "ref": {"$ref": "#/components/schemas/Text", "maxLength": 1},
                "some": {"nullable": True, "oneOf": [{"$ref": "#/components/schemas/Text"}]},
                "int32": {"type": "integer", "format": "int32"},
                "deep": {"$ref": "#/components/schemas/Outer/properties/in~1%6Eer"},
                "tilde": {"$ref": "#/components/schemas/Outer/properties/~01"},
                "port": {"format": "int32", "minimum": 0, "allOf": [{"multipleOf": 5}]},
                "five": {"format": "int32", "allOf": [{"multipleOf": 5}]},
                "strict": {"exclusiveMinimum": True, "exclusiveMaximum": True},
                "not": {"not": {"minimum": 3, "exclusiveMinimum": True}},
                "other": {"type": "string", "nullable": True, "not": {"pattern": "^x"}},
            }
        },
        Text={"type": "string"},
        Outer={"properties": {"in/ner": {"type": "boolean"}, "~1": {"type": "string"}}},
    )  # fmt: skip
    assert (
        check(
            {
                "size": None,
                "over": 9,
                "ref": "long",
                "some": None,
                "int32": 1.0,
                "deep": True,
                "tilde": "~",
                "port": 5,
                "five": -5,
                "strict": 0,
                "not": 3,
                "other": None,
            }
        )
        == []
    )
    bad = {"size": "x", "over": 3, "ref": 1, "some": 1, "int32": 2**31, "deep": 1}
    assert check({**bad, "tilde": 1, "port": 2**31 + 2, "five": 3, "not": 4}) == [
        ("spec.size", "enum"),
        ("spec.over", "exclusiveMinimum"),
        ("spec.ref", "type"),
        ("spec.some", "oneOf"),
        ("spec.int32", "format"),
        ("spec.deep", "type"),
        ("spec.tilde", "type"),
        ("spec.port", "format"),
        ("spec.five", "multipleOf"),
        ("spec.not", "not"),
    ]


def test_openapi_3_1_is_validated_as_json_schema(tmp_path: Path) -> None:
    check = compiled(
        tmp_path,
        "3.1.0",
        {
            "properties": {
                "const": {"const": 5},
                "both": {"$ref": "#/components/schemas/Text", "maxLength": 1},
                "tuple": {"prefixItems": [{"type": "string"}], "items": False},
                "if": {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
                "names": {"propertyNames": {"pattern": "^[a-z]+$"}},
                "needs": {"dependentRequired": {"a": ["b"]}},
                "local": {"$defs": {"n": {"type": "null"}}, "type": "null"},
            },
            "patternProperties": {"^x-": {"type": "integer"}},
        },
        Text={"type": "string"},
    )
    good = {"const": 5, "both": "a", "tuple": ["a"], "if": {"a": 1, "b": 2}, "x-a": 1}
    assert check({**good, "names": {"a": 1}, "local": None}) == []
    bad = {"const": "5", "both": "ab", "tuple": ["a", 1], "if": {"a": 1}, "x-a": "1"}
    assert set(check({**bad, "names": {"A": 1}, "needs": {"a": 1}, "local": 1})) == {
        ("spec.const", "const"),
        ("spec.both", "maxLength"),
        ("spec.tuple[1]", "items"),
        ("spec.if.b", "required"),
        ("spec.x-a", "type"),
        ("spec.names", "pattern"),
        ("spec.needs.b", "dependentRequired"),
        ("spec.local", "type"),
    }


@pytest.mark.parametrize(
    "place",
    [
        *("properties.a", "patternProperties.a", "dependentSchemas.a", "$defs.a", "definitions.a"),
        *("allOf.0", "anyOf.0", "oneOf.0", "prefixItems.0", "items", "contains", "not", "if", "then"),
        *("else", "additionalProperties", "propertyNames", "contentSchema"),
        *("unevaluatedItems", "unevaluatedProperties"),
    ],
)
def test_a_reference_that_leads_nowhere_is_found_wherever_a_schema_may_stand(
    tmp_path: Path, place: str
) -> None:
    keyword, _, step = place.partition(".")
    ref: Any = {"$ref": "#/components/schemas/Gone"}
    within = {keyword: {"a": {"a": ref}, "0": [ref]}.get(step, ref)}
    with pytest.raises(BrokenDocument) as raised:
        compiled(tmp_path, "3.1.0", {"items": within})
    [line] = raised.value.faults
    assert f": components.schemas.ClusterSpec.items.{place}.$ref: refers to " in line


def test_an_unevaluated_member_is_reported_although_an_alternative_that_does_not_fit_has_it(
    tmp_path: Path,
) -> None:
    choice = [{"properties": {"a": {}}, "required": ["b"]}, {"properties": {"b": {}}}]
    inner = {"anyOf": choice, "unevaluatedProperties": False}
    check = compiled(tmp_path, "3.1.0", {"properties": {"in": inner, "n": {"type": "integer"}}})
    assert check({"in": {"b": 1}}) == []
    assert check({"in": {"a": 1}}) == [("spec.in.a", "unevaluatedProperties")]
    assert check({"in": {"a": 1}, "n": "x"}) == [
        ("spec.n", "type"),
        ("spec.in.a", "unevaluatedProperties"),
    ]


def test_a_long_enum_is_reported_as_its_first_20_values_and_the_number_of_others() -> None:
    def message(count: int) -> str:
        validator = compile_schema({"enum": [f"v{number}" for number in range(count)]})
        [found] = faults_module.faults(validator, "x", ["spec"])
        return found["message"]

    twenty = "must be one of " + ", ".join(f"v{number}" for number in range(20))
    assert message(20) == twenty
    assert message(22) == f"{twenty} and 2 more"


@pytest.mark.parametrize("alternatives", [False, True])
def test_a_value_of_the_wrong_type_is_reported_for_its_type_alone_and_an_empty_one_as_empty(
    tmp_path: Path, alternatives: bool
) -> None:
    mail = {"type": "string", "minLength": 1, "format": "email", "pattern": "@"}
    members = {"a": {"type": "string", "enum": ["x", "y"]}, "b": {"type": "string", "const": "x"}}
    whole: dict[str, Any] = {"type": "object", "properties": {**members, "c": mail}}
    spec = {"oneOf": [whole, {"type": "array"}]} if alternatives else whole
    check = compiled(tmp_path, "3.1.0", spec)
    assert check({"a": 5, "b": 5}) == [("spec.a", "type"), ("spec.b", "type")]
    assert check({"a": "z", "b": "z"}) == [("spec.a", "enum"), ("spec.b", "const")]
    assert check({"c": ""}) == [("spec.c", "minLength")]


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        ({"enum": [None]}, 1, "must be null"),
        ({"enum": ["", "a"]}, "b", 'must be one of "", a'),
        ({"anyOf": [{"required": ["a"]}, {"minProperties": 2}]}, {}, "a is required; or must have at least 2 members"),
        ({"anyOf": [{"required": ["a"], "type": "object", "enum": [{}]}, {"required": ["c"], "minProperties": 2}]}, {"b": 1}, "must be {} and a is required; or must have at least 2 members and c is required"),
        ({"anyOf": [{"required": [name]} for name in "abcd"]}, {}, "alternatives: a is required; or b is required; or c is required; or d is required"),
        ({"anyOf": [{"required": [name]} for name in "abcde"]}, {}, "must fit one of the alternatives"),
        ({"anyOf": [{"required": ["a", "b", "c"]}, {"required": ["d", "e", "f"]}]}, {}, "a is required and b is required; or d is required and e is required"),
        ({"oneOf": [{"type": "string"}, {"type": "array"}]}, 5, "must be a string or an array"),
        ({"propertyNames": {"anyOf": [{"maxLength": 1}, {"pattern": "^x"}]}}, {"abc": 1}, "must have at most 1 character; or must match the pattern ^x: abc"),
    ],
)  # fmt: skip
def test_a_message_about_a_value_itself_names_no_member(spec: Any, value: Any, message: str) -> None:
    for where, whole, given in (
        (["spec"], spec, value),
        ([], {"properties": {"a": spec}}, {"a": value}),
    ):
        [found] = faults_module.faults(compile_schema(whole, old=False), given, where)
        assert found["field"] == ("spec" if where else "a")
        assert found["message"].endswith(message)
        assert "body" not in found["message"]


HIDDEN = {"$ref": "#/components/schemas/Hidden"}
SHORT = {"type": "string", "maxLength": 3}


@pytest.mark.parametrize(
    "spec",
    [
        {"properties": {"a": {"prefixItems": [{}, HIDDEN], "items": True}}},
        {"properties": {"a": {"contains": HIDDEN, "items": SHORT}}},
        {"properties": {"a": {"prefixItems": [{}], "unevaluatedItems": HIDDEN}}},
        {"additionalProperties": {"items": HIDDEN}},
        {"unevaluatedProperties": {"items": HIDDEN}},
        {"patternProperties": {"^a": {"items": HIDDEN}}},
        {"properties": {"a": {"items": SHORT, "if": True, "then": {"items": {"format": "password"}}}}},
        {"properties": {"a": SHORT}, "dependentSchemas": {"a": {"properties": {"a": HIDDEN}}}},
        {"$dynamicRef": "#/components/schemas/Inner"},
    ],
)
def test_a_secret_is_not_echoed_whichever_keyword_marks_it(spec: Any) -> None:
    named = {
        "Hidden": {**SHORT, "writeOnly": True},
        "Inner": {"properties": {"a": {"items": {"$ref": "#/components/schemas/Hidden"}}}},
    }
    validator = compile_schema(spec, named, old=False)
    value = {"a": "secret" if "dependentSchemas" in spec else ["", "secret"]}
    found = [*faults_module.faults(validator, value, ["spec"])]
    assert found
    assert "secret" not in str(found)


def test_circular_references_terminate(tmp_path: Path) -> None:
    tree = {"properties": {"left": {"$ref": "#/components/schemas/Tree"}, "n": {"type": "integer"}}}
    check = compiled(tmp_path, "3.0.3", {"$ref": "#/components/schemas/Tree"}, Tree=tree)
    value: dict[str, Any] = {"n": "x"}
    for _ in range(60):
        value = {"left": value}
    assert check(value) == [("spec" + ".left" * 60 + ".n", "type")]
    # This schema constrains nothing, but must not be followed forever.
    loop = {"$ref": "#/components/schemas/Loop"}
    assert compiled(tmp_path, "3.0.3", loop, Loop={"allOf": [loop]})({}) == []
    choice = {
        "oneOf": [loop, {"$ref": "#/components/schemas/Tree"}],
        "discriminator": {"propertyName": "t"},
    }
    check = compiled(tmp_path, "3.0.3", choice, Loop={"allOf": [loop]}, Tree=tree)
    assert check({"t": "Tree", "n": "x"}) == [("spec.n", "type")]


def test_a_pattern_cannot_hang_the_service(tmp_path: Path) -> None:
    slow = {"type": "string", "pattern": r"^(([a-z])+.)+(?!q)[A-Z]([a-z])+$"}
    check = compiled(tmp_path, "3.0.3", {"properties": {"list": {"items": slow}}})
    [found] = faults_module.faults(compile_schema(slow), "a" * 40 + "!")
    assert found["message"] == "takes too long to compare with its pattern"
    start = time.thread_time()
    # A match that takes too long counts as none.
    assert check({"list": ["a" * 40 + "!"] * 1000})[0] == ("spec.list[0]", "pattern")
    assert check({"list": ["a" * 40 + "!"] * 20_000}) == [("spec.list[0]", "pattern")]
    assert time.thread_time() - start < 3
    assert check({"list": ["aaaaAa"] * 1000}) == []


def test_ambiguous_discriminators_leave_the_choice_to_the_schemas(tmp_path: Path) -> None:
    kinds = {"type": "object", "properties": {"t": {"enum": ["x", "y"]}, "n": {"type": "integer"}}}
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in "AB"]
    one = {"oneOf": refs, "discriminator": {"propertyName": "t"}}
    check = compiled(
        tmp_path, "3.0.3", one, A={**kinds, "required": ["a"]}, B={**kinds, "required": ["b"]}
    )
    assert check({"t": "x", "a": 1}) == []
    assert check({"t": "x"}) == [("spec", "oneOf")]
    # A discriminator does not select by lists.
    either = {"properties": {"t": {"enum": [["x"], "x"]}}, "required": ["a"]}
    check = compiled(tmp_path, "3.0.3", one, A=either, B={"properties": {"t": {"enum": ["y"]}}})
    assert check({"t": "x"}) == [("spec.a", "required")]
    assert check({"t": "y"}) == []
    # It makes the value an object, also where no alternative says so, and the other rules still hold.
    assert check("x") == [("spec", "type")]
    more = {**one, "allOf": [{"required": ["z"]}]}
    check = compiled(tmp_path, "3.0.3", more, A={"properties": {"a": {"type": "string"}}}, B={})
    assert check({"t": "A", "a": 1}) == [("spec.z", "required"), ("spec.a", "type")]
    # This is a key without a value in YAML.
    check = compiled(tmp_path, "3.0.3", {"oneOf": [{"required": ["t"]}], "discriminator": None})
    assert check({"u": 1}) == [("spec.t", "required")]


def test_a_member_that_the_intended_alternative_lacks_is_named(tmp_path: Path) -> None:
    disk = {"type": "object", "properties": {"size": {}}, "additionalProperties": False}
    check = compiled(tmp_path, "3.0.3", {"properties": {"disk": {"oneOf": [disk, {"type": "string"}]}}})
    assert check({"disk": {"size": 1, "sizee": 1}}) == [("spec.disk.sizee", "additionalProperties")]


@pytest.mark.parametrize("rule", [lambda value: {"enum": [value]}, lambda value: {"const": value}])
def test_the_alternative_with_the_value_of_a_member_is_meant_or_else_the_one_with_fewest_faults(
    tmp_path: Path, rule: Callable[[str], Any]
) -> None:
    long = {"properties": {"by": rule("a"), "word": {"minLength": 8}, "more": {"maxItems": 0}}}
    either = {"oneOf": [long, {"properties": {"by": rule("b")}}]}
    check = compiled(tmp_path, "3.1.0", either)
    assert check({"by": "a", "word": "x", "more": [1]}) == [
        ("spec.word", "minLength"),
        ("spec.more", "maxItems"),
    ]
    inner = [{"properties": {"y": {"type": name}, "z": {"type": "null"}}} for name in ("null", "string")]
    check = compiled(tmp_path, "3.1.0", {"oneOf": [{"properties": {"x": one}} for one in inner]})
    assert check({"x": {"y": "s", "z": 1}}) == [("spec.x.z", "type")]


def test_a_read_only_member_may_be_omitted_wherever_it_is_declared_read_only(tmp_path: Path) -> None:
    base = {"properties": {"id": {"type": "string", "readOnly": True}, "size": {"type": "integer"}}}
    own = {"required": ["id", "size"]}
    inner = {"$ref": SCHEMAS + "Base/properties/id"}
    for spec in (
        {"allOf": [{"$ref": SCHEMAS + "Base"}, own]},
        {"allOf": [{"$ref": SCHEMAS + "Base"}], **own},
        {"properties": {"id": inner, "size": {"type": "integer"}}, **own},
    ):
        check = compiled(tmp_path, "3.0.3", spec, Base=base)
        assert check({"size": 1}) == []
        assert {*check({"id": 1})} == {("spec.size", "required"), ("spec.id", "type")}
    # Which it is not where that is denied. The reference to the member may be one of several in a row.
    for chain in ({"readOnly": False}, {"$ref": SCHEMAS + "One"}):
        spec = {"properties": {"id": chain}, "required": ["id"]}
        one, two = {"$ref": SCHEMAS + "Two"}, {"$ref": SCHEMAS + "Three"}
        check = compiled(tmp_path, "3.0.3", spec, One=one, Two=two, Three={"readOnly": True})
        assert check({}) == ([("spec.id", "required")] if "readOnly" in chain else [])
    # A schema may be a part of two, which have other read-only members, or even of itself.
    both = [{"properties": {name: {"readOnly": True}}} for name in ("id", "size")]
    spec = {
        name: {"allOf": [{"$ref": SCHEMAS + "Own"}, one]} for name, one in zip("ab", both, strict=True)
    }
    loop = {**own, "allOf": [{"$ref": SCHEMAS + "Own"}]}
    check = compiled(tmp_path, "3.0.3", {"properties": spec}, Own=loop)
    assert check({"a": {"id": 1, "size": 1}}) == []
    check = compiled(tmp_path, "3.0.3", {"properties": spec}, Own=own)
    assert check({"a": {"size": 1}, "b": {"id": 1}}) == []
    assert check({"a": {"id": 1}, "b": {"size": 1}}) == [
        ("spec.a.size", "required"),
        ("spec.b.id", "required"),
    ]
    # The schema that requires it may be elsewhere, too, and does require it where it is not read-only.
    needs = {"allOf": [{"$ref": SCHEMAS + "Own"}]}
    spec = {"allOf": [{"$ref": SCHEMAS + "Needs"}, {"$ref": SCHEMAS + "Base"}]}
    spec["properties"] = {"inner": {"$ref": SCHEMAS + "Needs"}}
    check = compiled(tmp_path, "3.0.3", spec, Base=base, Needs=needs, Own=own)
    assert check({"size": 1}) == []
    assert {*check({"id": 1})} == {("spec.size", "required"), ("spec.id", "type")}
    assert check({"size": 1, "inner": {}}) == [
        ("spec.inner.id", "required"),
        ("spec.inner.size", "required"),
    ]
    # The same holds for schemas that contain themselves.
    for wrapped in ({"$ref": SCHEMAS + "Base"}, {"allOf": [{"$ref": SCHEMAS + "Base"}]}, needs, spec):
        node = {**base, "required": ["id", "size"]}
        node["properties"] = {**node["properties"], "child": wrapped}
        check = compiled(tmp_path, "3.0.3", wrapped, Base=node, Needs=needs, Own={"allOf": [node]})
        assert check({"size": 1, "child": {"size": 1, "child": {"size": 1}}}) == []
        assert {*check({"size": 1, "child": {"size": 1, "child": {"id": 1}}})} == {
            ("spec.child.child.size", "required"),
            ("spec.child.child.id", "type"),
        }
    # References that end in the same name are still to different schemas.
    members = {"id": {"$ref": SCHEMAS + "Base/properties/size"}, "other": {"$ref": SCHEMAS + "size"}}
    spec = {"required": ["id"], "properties": members}
    check = compiled(tmp_path, "3.0.3", spec, Base=base, size={"readOnly": True})
    assert check({}) == [("spec.id", "required")]


SCHEMAS = "#/components/schemas/"
ANIMAL = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"type": "string"}},
    "discriminator": {"propertyName": "kind"},
}


def extending(parent: str, member: str, **more: Any) -> dict[str, Any]:
    own = {"properties": {member: {"type": "integer"}}}
    return {"allOf": [{"$ref": SCHEMAS + parent}, own], **more}


def test_a_discriminator_also_selects_schemas_that_extend_a_child(tmp_path: Path) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    cat, lion = extending("Animal", "lives"), extending("Cat", "mane")
    check = compiled(tmp_path, "3.0.3", pet, Animal=ANIMAL, Cat=cat, Lion=lion)
    assert check({"pet": {"kind": "Cat", "mane": "any"}}) == []
    assert check({"pet": {"kind": "Lion", "lives": 1, "mane": 1}}) == []
    assert check({"pet": {"kind": "Lion", "lives": "x", "mane": "y"}}) == [
        ("spec.pet.lives", "type"),
        ("spec.pet.mane", "type"),
    ]
    # The schema in between may have a discriminator, too, and offers a choice like its parent.
    own = {"discriminator": {"propertyName": "kind"}}
    check = compiled(tmp_path, "3.0.3", pet, Animal=ANIMAL, Cat={**cat, **own}, Lion=lion)
    assert check({"pet": {"kind": "Cat", "lives": 9}}) == []
    assert check({"pet": {"kind": "Lion", "lives": 1, "mane": 1}}) == []
    assert check({"pet": {"kind": "Lion", "lives": "x"}}) == [("spec.pet.lives", "type")]
    assert check({"pet": {"kind": "CatBase"}}) == [("spec.pet.kind", "enum")]
    # The document may have a schema of its own under such a name.
    bases = {"AnimalBase": {"type": "string"}, "AnimalBase_": {"type": "boolean"}}
    pets = {"properties": {**pet["properties"], **{name: {"$ref": SCHEMAS + name} for name in bases}}}
    check = compiled(tmp_path, "3.0.3", pets, Animal=ANIMAL, Cat=cat, **bases)
    assert check({"pet": {"kind": "Cat", "lives": 9}, "AnimalBase": "x", "AnimalBase_": True}) == []
    assert check({"pet": {"kind": "Cat", "lives": "x"}}) == [("spec.pet.lives", "type")]
    # A parent that its own mapping names is an alternative itself.
    targets = {"some": SCHEMAS + "Animal", "cat": "Cat"}
    some = {**ANIMAL, "discriminator": {"propertyName": "kind", "mapping": targets}}
    check = compiled(tmp_path, "3.0.3", pet, Animal=some, Cat=cat)
    assert check({"pet": {"kind": "some", "lives": "any"}}) == []
    assert check({"pet": {"kind": "cat", "lives": "x"}}) == [("spec.pet.lives", "type")]


@pytest.mark.parametrize("mapping", [{}, {"cat": SCHEMAS + "Cat", "dog": SCHEMAS + "Dog"}])
def test_a_grandchild_without_a_value_of_its_own_is_not_an_alternative(
    tmp_path: Path, mapping: dict[str, str]
) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    animal = {**ANIMAL, "discriminator": {"propertyName": "kind", "mapping": mapping}}
    cat, dog = extending("Animal", "lives"), extending("Animal", "bark")
    cat["allOf"][1]["properties"]["kind"] = {"enum": ["cat"]}
    dog["allOf"][1]["properties"]["kind"] = {"enum": ["dog"]}
    lion = extending("Cat", "mane")
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=cat, Dog=dog, Lion=lion)
    assert check({"pet": {"kind": "cat", "mane": "any"}}) == []
    assert check({"pet": {"kind": "cat", "lives": "x"}}) == [("spec.pet.lives", "type")]
    assert check({"pet": {"kind": "Lion"}}) == [("spec.pet.kind", "enum")]


def test_a_parent_with_alternatives_of_its_own_offers_no_others(tmp_path: Path) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    cat, dog = ({"properties": {name: {"type": "integer"}}} for name in ("lives", "bark"))
    for keyword in ("anyOf", "oneOf"):
        choice = [{"$ref": SCHEMAS + name} for name in ("Cat", "Dog")]
        named = {"Animal": {**ANIMAL, keyword: choice}, "Cat": cat, "Dog": dog}
        check = compiled(tmp_path, "3.0.3", pet, **named, Lion=extending("Animal", "mane"))
        assert check({"pet": {"kind": "Dog", "bark": "x"}}) == [("spec.pet.bark", "type")]
        assert check({"pet": {"kind": "Lion"}}) == [("spec.pet.kind", "enum")]


@pytest.mark.parametrize("version", ["3.0.3", "3.1.0"])
def test_a_child_may_say_more_beside_its_reference_to_the_parent(tmp_path: Path, version: str) -> None:
    names = ("Animal", "Lion")
    pets = {"properties": {name: {"$ref": SCHEMAS + name} for name in names}}
    cat, lion = extending("Animal", "lives"), extending("Animal", "mane")
    lion["allOf"][0] |= {"description": "What it is.", "required": ["mane"]}
    check = compiled(tmp_path, version, pets, Animal=ANIMAL, Cat=cat, Lion=lion)
    for name in names:
        assert check({name: {"kind": "Lion", "mane": 1}}) == []
        assert check({name: {"kind": "Lion", "mane": "x"}}) == [(f"spec.{name}.mane", "type")]
        # Before 3.1, it is ignored.
        missing = [(f"spec.{name}.mane", "required")] if version == "3.1.0" else []
        assert check({name: {"kind": "Lion"}}) == missing


def test_children_that_inherit_the_same_values_are_told_apart_by_their_rules(tmp_path: Path) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    animal = {**ANIMAL, "properties": {"kind": {"enum": ["cat", "dog"]}}}
    cat, dog = extending("Animal", "lives", required=["lives"]), extending("Animal", "bark")
    dog["required"] = ["bark"]
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=cat, Dog=dog)
    assert check({"pet": {"kind": "cat", "lives": 9}}) == []
    assert check({"pet": {"kind": "dog", "bark": 1}}) == []
    assert check({"pet": {"kind": "dog"}}) == [("spec.pet", "anyOf")]


def test_a_mapping_takes_precedence_over_values_inherited_from_the_parent(tmp_path: Path) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    targets = {"dog": SCHEMAS + "Dog", "lion": SCHEMAS + "Lion"}
    animal = {
        **ANIMAL,
        "properties": {"kind": {"enum": ["cat", "dog", "lion"]}},
        "discriminator": {"propertyName": "kind", "mapping": targets},
    }
    cat = extending("Animal", "lives", discriminator={"propertyName": "kind"})
    dog, lion = extending("Animal", "bark"), extending("Cat", "mane")
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=cat, Dog=dog, Lion=lion)
    assert check({"pet": {"kind": "cat", "lives": "x"}}) == [("spec.pet.lives", "type")]
    assert check({"pet": {"kind": "dog", "lives": "any"}}) == []
    assert check({"pet": {"kind": "lion", "mane": "x"}}) == [("spec.pet.mane", "type")]


def test_a_parent_with_a_discriminator_keeps_its_name_and_its_parts(tmp_path: Path) -> None:
    animal = {**ANIMAL, "properties": {"kind": {"type": "string"}, "age": {"format": "years"}}}
    sort = {"$ref": SCHEMAS + "Animal/properties/kind"}
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}, "sort": sort}}
    named = {"ClusterSpec": pet, "Animal": animal, "Cat": extending("Animal", "lives")}
    file = tmp_path / "provider.json"
    file.write_text(json.dumps({"openapi": "3.0.3", "components": {"schemas": named}}))
    document = read(file)
    assert document.schemas == named
    assert document.warnings == [
        "components.schemas.Animal.properties.age.format: years is not a known format; it is not checked"
    ]
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=named["Cat"])
    assert check({"pet": {"kind": "Cat", "lives": 9}, "sort": "Cat"}) == []
    assert check({"sort": 5}) == [("spec.sort", "type")]


@pytest.mark.parametrize("mapping", [{}, {"1": SCHEMAS + "One", "2": "Two"}], ids=["none", "strings"])
def test_a_discriminator_may_select_by_values_that_are_not_strings(
    tmp_path: Path, mapping: dict[str, str]
) -> None:
    one, two = (
        {
            "required": ["version"],
            "properties": {"version": {"type": "integer", "enum": [number]}, "size": {"type": type_}},
        }
        for number, type_ in ((1, "integer"), (2, "string"))
    )
    refs = [{"$ref": SCHEMAS + name} for name in ("One", "Two")]
    choice = {"oneOf": refs, "discriminator": {"propertyName": "version", "mapping": mapping}}
    check = compiled(tmp_path, "3.0.3", choice, One=one, Two=two)
    assert check({"version": 1, "size": 1}) == check({"version": 2, "size": "s"}) == []
    assert check({"version": 2, "size": 1}) == [("spec.size", "type")]
    assert check({"version": "1", "size": 1}) == [("spec.version", "enum")]


@pytest.mark.parametrize(
    "null",
    [
        {"type": "null"},
        {"type": ["null"], "description": "None of them."},
        {"const": None},
        {"enum": [None]},
        {"$ref": SCHEMAS + "None"},
    ],
    ids=["type", "types", "const", "enum", "ref"],
)
def test_a_null_alternative_does_not_disable_the_discriminator(
    tmp_path: Path, null: dict[str, Any]
) -> None:
    refs = [{"$ref": SCHEMAS + name} for name in ("One", "Two")]
    choice = {"oneOf": [*refs, null], "discriminator": {"propertyName": "kind"}}
    one, two = (
        {"type": "object", "properties": {"size": {"type": name}}} for name in ("integer", "string")
    )
    named = {"One": one, "Two": two, "None": {"type": "null"}}
    check = compiled(tmp_path, "3.1.0", {"properties": {"a": choice}}, **named)
    assert check({"a": None}) == check({"a": {"kind": "One"}}) == check({"a": {"kind": "Two"}}) == []
    assert check({"a": {"kind": "Two", "size": 1}}) == [("spec.a.size", "type")]
    assert check({"a": {"kind": "Three"}}) == [("spec.a.kind", "enum")]
    assert check({"a": 5}) == [("spec.a", "type")]


@pytest.mark.parametrize("values", [("cat", "dog"), (1, 2)], ids=["strings", "integers"])
def test_a_mapping_takes_precedence_also_for_children_that_are_no_parents(
    tmp_path: Path, values: tuple[Any, Any]
) -> None:
    animal = {
        **ANIMAL,
        "properties": {"kind": {"enum": [*values]}},
        "discriminator": {"propertyName": "kind", "mapping": {str(values[1]): SCHEMAS + "Dog"}},
    }
    named = {"Animal": animal, "Cat": extending("Animal", "lives"), "Dog": extending("Animal", "bark")}
    check = compiled(tmp_path, "3.0.3", {"$ref": SCHEMAS + "Animal"}, **named)
    assert check({"kind": values[0], "lives": "x"}) == [("spec.lives", "type")]
    assert check({"kind": values[1], "bark": "x"}) == [("spec.bark", "type")]


def test_a_parent_among_other_alternatives_is_selected_by_the_values_that_it_allows(
    tmp_path: Path,
) -> None:
    refs = [{"$ref": SCHEMAS + name} for name in ("Animal", "Plant")]
    either = {"oneOf": refs, "discriminator": {"propertyName": "kind"}}
    animal = {**ANIMAL, "properties": {"kind": {"enum": ["Cat", "Dog"]}}}
    cat, dog = ({**extending("Animal", name), "required": [name]} for name in ("lives", "bark"))
    for one, name in ((cat, "Cat"), (dog, "Dog")):
        one["allOf"][1]["properties"]["kind"] = {"enum": [name]}
    check = compiled(tmp_path, "3.0.3", either, Animal=animal, Plant={}, Cat=cat, Dog=dog)
    assert check({"kind": "Plant"}) == check({"kind": "Dog", "bark": 1}) == []
    assert check({"kind": "Dog", "bark": "x"}) == [("spec.bark", "type")]


def test_a_parent_is_shown_with_all_that_its_mapping_names(tmp_path: Path) -> None:
    mapping = {"cat": "Cat", "dog": "Dog"}
    animal = {**ANIMAL, "discriminator": {"propertyName": "kind", "mapping": mapping}}
    cat, dog = extending("Animal", "lives"), extending("Animal", "bark")
    named = {"ClusterSpec": {"$ref": SCHEMAS + "Cat"}, "Animal": animal, "Cat": cat, "Dog": dog}
    file = tmp_path / "provider.json"
    file.write_text(json.dumps({"openapi": "3.0.3", "components": {"schemas": named}}))
    assert [*read(file).schemas] == [*named]


@pytest.mark.parametrize("own", [{"nullable": True}, {"type": ["object", "null"]}])
def test_a_parent_may_allow_null(tmp_path: Path, own: dict[str, Any]) -> None:
    spec, cat = {"$ref": SCHEMAS + "Animal"}, extending("Animal", "lives")
    check = compiled(
        tmp_path, "3.0.3" if "nullable" in own else "3.1.0", spec, Animal={**ANIMAL, **own}, Cat=cat
    )
    assert check(None) == check({"kind": "Cat", "lives": 9}) == []
    assert check({"kind": "Cat", "lives": "x"}) == [("spec.lives", "type")]
    assert check(5) == [("spec", "type")]
