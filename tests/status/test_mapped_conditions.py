"""Mapped conditions over HTTP: rules from a file, and what callers see of them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Api
from process import Serving, run, run_here

from hyperfleet.resources.resource import _statements
from hyperfleet.resources.snapshot import LOOK, LOOK_SEEN

pytestmark = pytest.mark.slow

Json = dict[str, Any]

RULES = """
entities:
  - kind: Cluster
    plural: clusters
    required_adapters: [validation]
    conditions:
      - type: QuotaValid
        when:
          expression: |
            statuses.exists(s, s.adapter == "validation"
              && s.conditions.exists(c, c.type == "QuotaSufficient"))
        output:
          status:
            expression: |
              statuses.filter(s, s.adapter == "validation")[0]
                .conditions.filter(c, c.type == "QuotaSufficient")[0].status
          reason:
            expression: |
              statuses.filter(s, s.adapter == "validation")[0]
                .conditions.filter(c, c.type == "QuotaSufficient")[0].reason
          message:
            expression: |
              "Left: " + string(statuses.filter(s, s.adapter == "validation")[0].?data.?left.orValue(0))
              + " in " + resource.spec.?region.orValue("no region")
      - type: Broken
        when: {expression: 'statuses.size() > 0'}
        output:
          status: {expression: 'statuses[0].data.nothing'}
          reason: {expression: '"R"'}
          message: {expression: '"m"'}
  - kind: NodePool
    parent_kind: Cluster
    conditions:
      - type: Sized
        when: {expression: 'true'}
        output:
          status: {expression: 'resource.spec.?replicas.hasValue()'}
          reason: {expression: 'resource.kind + "Size"'}
          message: {expression: '"replicas: " + toJson(resource.spec.?replicas.orValue(null))'}
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


@pytest.fixture(params=["1", "2"])
def server(database: str, rules: Path, request: pytest.FixtureRequest) -> Iterator[Serving]:
    flags = ("--no-auth", "--database-url", database, "--config", str(rules))
    env = {"HYPERFLEET_WORKERS": request.param, "HYPERFLEET_VALIDATE_RESPONSES": "all"}
    with Serving(*flags, env=env) as serving:
        yield serving


def shown(api: Api, resource: Json) -> dict[str, Json]:
    return {c["type"]: c for c in api.read(resource)["status"]["conditions"]}


def quota(status: str, **members: Any) -> Json:
    says = {"type": "QuotaSufficient", "status": status, "reason": "Quota", "message": "m"}
    return {"conditions": [{"type": "Available", "status": "True"}, says], **members}


def test_a_mapped_condition_follows_the_reports_and_the_spec(server: Serving) -> None:
    api = Api(server.url)
    cluster = api.cluster(spec={"region": "east"})
    assert "QuotaValid" not in shown(api, cluster)
    assert api.report(cluster, "validation", **quota("True", data={"left": 25})).status_code == 201
    first = shown(api, cluster)
    assert first["Ready"]["status"] == "True", "the required adapters come from the file"
    found = first["QuotaValid"]
    assert (found["status"], found["reason"], found["message"]) == ("True", "Quota", "Left: 25 in east")
    assert found["observed_generation"] == 1

    # Another adapter's report updates only the time.
    assert api.report(cluster, "other").status_code == 201
    second = shown(api, cluster)["QuotaValid"]
    assert second["last_updated_time"] > found["last_updated_time"]
    assert {**second, "last_updated_time": ""} == {**found, "last_updated_time": ""}

    # A change of the spec takes effect at once.
    api.patch(f"/clusters/{cluster['id']}", json={"spec": {"region": "west"}})
    third = shown(api, cluster)["QuotaValid"]
    assert (third["message"], third["observed_generation"]) == ("Left: 25 in west", 2)
    assert third["last_transition_time"] == found["last_transition_time"]

    # False is shown. Rules do not see Unknown, so the condition disappears.
    api.report(cluster, "validation", **quota("False", observed_generation=2))
    fourth = shown(api, cluster)["QuotaValid"]
    assert (fourth["status"], fourth["message"]) == ("False", "Left: 0 in west")
    assert fourth["created_time"] == found["created_time"]
    assert fourth["last_transition_time"] > found["last_transition_time"]
    api.report(cluster, "validation", **quota("Unknown", observed_generation=2))
    assert "QuotaValid" not in shown(api, cluster)

    # It can be searched for like any other condition, and stays while the cluster is being deleted.
    api.report(cluster, "validation", **quota("True", observed_generation=2, data={"left": 3}))
    search = {"search": "status.conditions.QuotaValid='True'"}
    assert api.get("/clusters", params=search).json()["total"] == 1
    marked = api.delete(f"/clusters/{cluster['id']}").json()
    assert marked["status"]["conditions"][-1]["observed_generation"] == 3
    api.report(cluster, "other", observed_generation=3)
    assert shown(api, cluster)["QuotaValid"]["message"] == "Left: 3 in west"


def test_each_kind_has_its_own_rules_which_apply_from_the_first_status(server: Serving) -> None:
    api = Api(server.url)
    cluster = api.cluster()
    pool = api.node_pool(cluster, spec={"replicas": 3})
    found = pool["status"]["conditions"][-1]
    assert (found["type"], found["status"]) == ("Sized", "True")
    assert (found["reason"], found["message"]) == ("NodePoolSize", "replicas: 3")
    assert found["created_time"] == pool["created_time"]
    api.report(pool, "np")
    assert shown(api, pool)["Sized"]["created_time"] == pool["created_time"]
    assert "Sized" not in shown(api, cluster)


def test_a_failing_rule_loses_no_report_and_is_logged_once_per_worker(server: Serving) -> None:
    api = Api(server.url)
    cluster = api.cluster()
    for _ in range(20):
        assert api.report(cluster, "validation", **quota("True")).status_code == 201
    assert {"QuotaValid"} == shown(api, cluster).keys() & {"QuotaValid", "Broken"}
    lines = re.findall(r".*the rule Cluster\.Broken.*", server.output)
    # Each worker process logs it.
    assert 1 <= len(lines) <= 2
    assert 'Key not found in map : "nothing"' in lines[0]


def test_rules_are_skipped_after_a_second_of_work_and_the_report_is_accepted(
    database: str, tmp_path: Path
) -> None:
    def rule(type_: str, when: str) -> Json:
        output = {name: {"expression": "'True'"} for name in ("status", "reason", "message")}
        return {"type": type_, "when": {"expression": when}, "output": output}

    # Each takes a while on the data below, and none is refused on its own.
    slow = " || ".join(["dig(statuses, 'a') == ''"] * 28) + " || true"
    rules = [rule("A", "true"), *(rule(f"Slow{number}", slow) for number in range(49))]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"entities": [{"kind": "Cluster", "conditions": rules}]}))
    # The limit is in processor time, which takes a while to use up on a busy machine.
    options = ("--no-auth", "--request-timeout=120", "--statement-timeout=120", f"--config={path}")
    with Serving(*options, f"--database-url={database}", wait=180) as serving:
        api = Api(serving.url)
        api.timeout = 120
        cluster = api.cluster()
        assert len(shown(api, cluster).keys() & {one["type"] for one in rules}) == 50
        assert api.report(cluster, "a", data={"l": [[]] * 20_000}).status_code == 201
        there = shown(api, cluster)
        assert "A" in there
        assert "Slow48" not in there
        assert serving.says("the rules before it took longer than 1 s")


def test_refolding_applies_new_rules_to_all_and_removes_the_conditions_of_old_ones(
    service: Callable[..., Api], database: str, rules: Path
) -> None:
    api = service()
    cluster = api.cluster(spec={"region": "east"})
    api.report(cluster, "validation", **quota("True", data={"left": 7}))
    pool = api.node_pool(cluster)
    assert "QuotaValid" not in shown(api, cluster)
    command = ("migrate", "--refold", "--database-url", database, "--config", str(rules))
    assert run(*command).stdout.splitlines()[-1] == "2 statuses changed."
    assert shown(api, cluster)["QuotaValid"]["message"] == "Left: 7 in east"
    assert shown(api, pool)["Sized"]["message"] == "replicas: null"
    assert run(*command).stdout.splitlines()[-1] == "0 statuses changed."
    # Without the rules, their conditions are removed.
    assert run(*command[:-2]).stdout.splitlines()[-1] == "2 statuses changed."
    assert "QuotaValid" not in shown(api, cluster)


def test_without_rules_neither_spec_nor_data_is_read() -> None:
    assert "spec" not in LOOK["Cluster"]
    assert "spec" in LOOK_SEEN["Cluster"]
    plain = _statements("Cluster", whole=False, seen=False, children=True, root="", scoped=False)
    assert not any(re.search(r"\bspec\b|\bdata\b", one) for one in plain)


def test_an_invalid_rule_fails_every_command_with_the_same_message(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(RULES.replace("resource.spec.?replicas.hasValue()", "resourse"))
    flags = ("--database-url", database, "--config", str(path))
    sentence = (
        f"{path}: entities: NodePool.Sized.output.status: invalid CEL expression: line 1, column 1: "
        "undeclared reference to 'resourse'"
    )
    for command in (("serve", "--no-auth"), ("config", "--check"), ("config",), ("migrate",)):
        done = run(*command, *flags)
        assert done.returncode == 2
        assert done.stdout.splitlines()[-1] == f"Error: {sentence}"


def test_config_shows_the_entities_and_the_file_that_they_come_from(rules: Path) -> None:
    flags = ("config", "--config", str(rules))
    for output, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        found = load(run_here(*flags, f"--output={output}").stdout)
        assert found["entities"]["from"] == str(rules)
        assert [one["kind"] for one in found["entities"]["value"]] == ["Cluster", "NodePool"]
        assert found["entities"]["value"][1]["conditions"][0]["when"] == {"expression": "true"}
        assert found["required_adapters_cluster"] == {"value": ["validation"], "from": str(rules)}
    table = run_here(*flags).stdout
    (line,) = [line for line in table.splitlines() if line.startswith("entities ")]
    assert '"QuotaValid"' in line
    nothing = json.loads(run_here("config", "--output=json").stdout)["entities"]
    assert nothing == {"value": [], "from": "default"}


@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_required_adapters_given_in_two_places_are_refused(rules: Path, how: str) -> None:
    flags, env = [], {}
    if how == "flag":
        flags = ["--required-adapters-cluster=dns"]
    elif how == "environment":
        env = {"HYPERFLEET_REQUIRED_ADAPTERS_CLUSTER": "dns"}
    else:
        rules.write_text(RULES + "required_adapters_cluster: [dns]\n")
    done = run_here("config", "--config", str(rules), *flags, env=env)
    assert done.returncode == 2
    assert "--required-adapters-cluster" in done.stdout
    assert f" or required_adapters of Cluster, under entities in {rules}, not both." in done.stdout
