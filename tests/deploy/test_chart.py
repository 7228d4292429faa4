"""What the Helm chart renders: valid manifests, restricted pods, an order that works."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import (
    CASES,
    CHART,
    ROOT,
    TOOLS,
    case,
    container,
    containers,
    helm,
    needs_helm,
    one,
    pod_specs,
    settings,
    template,
)

pytestmark = [pytest.mark.tools, needs_helm]

VALIDATE = TOOLS / "python" / "bin" / "kubernetes-validate"
# Only kinds of Kubernetes itself are validated; the others belong to operators.
KUBERNETES = ("1.30", "1.37")
OPERATORS = {"ServiceMonitor", "PrometheusRule", "PodMonitoring"}
PROVIDER = "tests/providers/gcp.yaml"


@pytest.mark.parametrize("name", CASES)
def test_helm_lint_reports_nothing(name: str) -> None:
    done = helm("lint", "--strict", "chart", "--values", str(CASES[name]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.skipif(not VALIDATE.exists(), reason="no kubernetes-validate: run make test-tools")
def test_every_manifest_is_valid_in_two_versions_of_kubernetes(tmp_path: Path) -> None:
    files = []
    for name in CASES:
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(
            yaml.safe_dump_all([each for each in case(name) if each["kind"] not in OPERATORS])
        )
    versions = [text for version in KUBERNETES for text in ("--kubernetes-version", version)]
    done = subprocess.run(
        [str(VALIDATE), "--strict", *versions, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("INFO") >= len(files) * len(KUBERNETES)


def test_manifests_for_operators_have_the_members_that_they_need() -> None:
    manifests = case("everything-values")
    pods = one(manifests, "Deployment")["spec"]["template"]
    services = [each for each in manifests if each["kind"] == "Service"]
    monitor = one(manifests, "ServiceMonitor")
    assert (monitor["apiVersion"], monitor["metadata"]["labels"]["release"]) == (
        "monitoring.coreos.com/v1",
        "prometheus",
    )
    chosen = [
        each
        for each in services
        if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    assert [each["metadata"]["name"] for each in chosen] == ["hyperfleet-api-metrics"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}
    assert endpoint["scheme"] == "https"
    managed = one(manifests, "PodMonitoring")
    assert managed["apiVersion"] == "monitoring.googleapis.com/v1"
    assert managed["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    ports = {port["name"] for port in container(pods["spec"], "api")["ports"]}
    assert {each["port"] for each in managed["spec"]["endpoints"]} <= ports
    rule = one(manifests, "PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    for each in rule["spec"]["groups"][0]["rules"]:
        assert {"alert", "expr", "labels", "annotations"} <= each.keys()
    dashboard = one(manifests, "ConfigMap", "-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = dashboard["data"].values()
    assert json.loads(text) == json.loads((CHART / "files" / "dashboard.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_each_service_selects_only_the_pods_of_its_own_workload(name: str) -> None:
    manifests = case(name)
    for service in (each for each in manifests if each["kind"] == "Service"):
        chosen = [
            each["metadata"]["name"]
            for each in manifests
            if "template" in each.get("spec", {})
            and service["spec"]["selector"].items()
            <= each["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert chosen == [service["metadata"]["name"].removesuffix("-metrics")]


def restricted(pod: dict[str, Any], each: dict[str, Any]) -> None:
    """Expects the Pod Security level `restricted` of a container and its pod."""
    both = {**pod.get("securityContext", {}), **each["securityContext"]}
    assert both["runAsNonRoot"] is True
    assert both.get("runAsUser") != 0
    assert both["seccompProfile"]["type"] == "RuntimeDefault"
    assert both["allowPrivilegeEscalation"] is False
    assert both["capabilities"] == {"drop": ["ALL"]}
    assert not any("hostPort" in port for port in each.get("ports", []))


@pytest.mark.parametrize("name", CASES)
def test_every_container_is_restricted_and_has_requests_and_a_memory_limit(name: str) -> None:
    allowed = {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim", "csi"}
    for kind, pod in pod_specs(case(name)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(each.keys() - {"name"} <= allowed for each in pod["volumes"])
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
        for each in containers(pod):
            restricted(pod, each)
            assert each["securityContext"]["readOnlyRootFilesystem"] is True, (kind, each["name"])
            assert each["resources"]["requests"].keys() >= {"cpu", "memory"}, (kind, each["name"])
            assert "memory" in each["resources"]["limits"], (kind, each["name"])


def test_the_service_runs_as_the_user_of_the_image_and_can_write_only_to_tmp() -> None:
    pod = one(case("default-values"), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    writable = [
        each["mountPath"] for each in container(pod, "api")["volumeMounts"] if not each.get("readOnly")
    ]
    assert writable == ["/tmp"]


@pytest.mark.parametrize("name", CASES)
def test_every_manifest_has_the_standard_labels(name: str) -> None:
    wanted = {
        *("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version"),
        *("app.kubernetes.io/component", "app.kubernetes.io/managed-by", "helm.sh/chart"),
    }
    for each in case(name):
        assert wanted <= each["metadata"]["labels"].keys(), each["metadata"]["name"]


def test_the_command_in_the_readme_mounts_the_schema_where_the_service_looks() -> None:
    manifests = template("--set-file", f"provider.schema={PROVIDER}")
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    (mount,) = (each for each in container(pod, "api")["volumeMounts"] if each["name"] == "schema")
    (volume,) = (each for each in pod["volumes"] if each["name"] == "schema")
    data = one(manifests, "ConfigMap", "-schema")["data"]
    assert volume["configMap"]["name"] == "hyperfleet-api-schema"
    assert f"{mount['mountPath']}/{next(iter(data))}" == "/etc/hyperfleet/schemas/openapi.yaml"
    assert settings(manifests)["openapi_schema_path"] == "/etc/hyperfleet/schemas/openapi.yaml"
    assert yaml.safe_load(data["openapi.yaml"]) == yaml.safe_load((ROOT / PROVIDER).read_text())
    assert (ROOT / "chart").is_symlink()
    assert (ROOT / "chart").readlink() == Path("deploy/chart")


@pytest.mark.parametrize(
    "given",
    [
        "nonsense=1",
        "settings.max-body-sizes=1",
        "config.server.prot=1",
        "database.external.secret=x",
        "monitoring.serviceMonitor.enable=true",
        "replicaCount=two",
        "service.type=Loadbalancer",
        "replicaCount=-1",
        "podLabels.team=1",
        "service.annotations.internal=true",
        "extraEnv[0].value=a",
        "config=null",
        "database.external=null",
    ],
)
def test_unknown_and_invalid_values_are_rejected(given: str) -> None:
    done = helm("template", "x", "./chart", "--set", given)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr


def test_optional_lists_and_mappings_may_be_null_in_the_values() -> None:
    on = "monitoring.prometheusRule.enabled=true,monitoring.serviceMonitor.enabled=true"
    given = [
        *("env", "extraEnv", "serviceMonitor", "monitoring.tracing", "settings", "adapters"),
        *("monitoring.prometheusRule.disabled", "monitoring.dashboard.labels", "podLabels"),
    ]
    nulls = ",".join(f"{name}=null" for name in given)
    manifests = template("--set", f"{on},monitoring.dashboard.enabled=true", "--set", nulls)
    assert one(manifests, "ConfigMap", "-dashboard")["metadata"]["labels"]
    assert one(manifests, "ServiceMonitor")["spec"]["endpoints"][0]["interval"] == "30s"


def test_a_variable_in_the_values_replaces_the_charts_own() -> None:
    manifests = template(
        *("--set-string", "extraEnv[0].name=HYPERFLEET_TRACING_ENABLED,extraEnv[0].value=true"),
        *(
            "--set-string",
            "env[0].name=TEAM,env[0].value=old,extraEnv[1].name=TEAM,extraEnv[1].value=new",
        ),
    )
    for _, pod in pod_specs(manifests):
        for each in containers(pod):
            names = [variable["name"] for variable in each["env"]]
            assert len(set(names)) == len(names), each["name"]
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    given = {variable["name"]: variable["value"] for variable in container(pod, "api")["env"]}
    assert given == {"HYPERFLEET_TRACING_ENABLED": "true", "TEAM": "new"}


def rolled(*arguments: str) -> dict[str, str]:
    manifests = template("--set", "database.postgresql.password=a", *arguments)
    found: dict[str, str] = one(manifests, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    return found


def test_a_change_of_settings_schema_or_password_rolls_the_pods_and_of_replicas_does_not() -> None:
    before = rolled()
    assert rolled("--set", "replicaCount=5") == before
    for change in (
        ("--set", "settings.stuck-after=60"),
        ("--set-file", f"provider.schema={PROVIDER}"),
        ("--set", "database.postgresql.password=b"),
    ):
        assert rolled(*change) != before, change


def test_a_rollout_removes_no_pod_before_another_is_ready() -> None:
    manifests = case("default-values")
    spec = one(manifests, "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = spec["template"]["spec"]
    stop = container(pod, "api")["lifecycle"]["preStop"]["sleep"]["seconds"]
    delay = settings(manifests)["shutdown_delay"]
    assert stop > 0 < delay
    # By default, the service gives requests in flight 20 s.
    assert pod["terminationGracePeriodSeconds"] > stop + delay + 20
    short = helm("template", "x", "./chart", "--set", "settings.shutdown-timeout=120")
    assert "terminationGracePeriodSeconds must exceed 130" in short.stderr
    assert one(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("name", ["production", "cloud-sql", "everything-values", "original-values"])
def test_the_migration_job_needs_nothing_that_is_created_after_it(name: str) -> None:
    manifests = case(name)
    job = one(manifests, "Job", "-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    made = {
        (each["kind"], each["metadata"]["name"])
        for each in manifests
        if "helm.sh/hook" not in each["metadata"].get("annotations", {})
    }
    pod = job["spec"]["template"]["spec"]
    assert ("ServiceAccount", pod["serviceAccountName"]) not in made
    for volume in pod["volumes"]:
        assert ("ConfigMap", volume.get("configMap", {}).get("name")) not in made
        assert ("Secret", volume.get("secret", {}).get("secretName")) not in made
    assert "initContainers" not in pod or all(
        each["restartPolicy"] == "Always" for each in pod["initContainers"]
    )


def test_with_the_built_in_postgresql_each_pod_migrates_before_it_serves() -> None:
    manifests = case("default-values")
    assert not [each for each in manifests if each["kind"] == "Job"]
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["initContainers"]] == ["migrate"]
    refused = helm("template", "x", "./chart", "--set", "migration.mode=hook")
    assert "the built-in PostgreSQL does not exist yet" in refused.stderr


def test_sidecars_of_the_service_start_before_it() -> None:
    pod = one(case("everything-values"), "Deployment")["spec"]["template"]["spec"]
    names = [each["name"] for each in pod["initContainers"]]
    assert names == ["proxy", "pgbouncer", "first"]
    for name in ("proxy", "pgbouncer"):
        assert container(pod, name)["restartPolicy"] == "Always"


def test_the_longest_release_name_leaves_room_for_what_kubernetes_adds() -> None:
    name = "r" * 53
    done = helm("template", name, "./chart", "--set", "fullnameOverride=" + "f" * 70)
    assert done.returncode == 0, done.stderr
    manifests = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert all(len(each["metadata"]["name"]) <= 63 for each in manifests)
    (database,) = (each for each in manifests if each["kind"] == "StatefulSet")
    # Kubernetes adds a hash in the label controller-revision-hash of the pods.
    assert len(database["metadata"]["name"]) + len("-0123456789") <= 63
    named = {each["metadata"]["name"] for each in manifests}
    (volume,) = (
        each for each in database["spec"]["template"]["spec"]["volumes"] if each["name"] == "database"
    )
    assert {volume["secret"]["secretName"], database["spec"]["serviceName"]} <= named


def test_pods_that_are_not_ready_do_not_block_draining_a_node() -> None:
    for name in ("default-values", "everything-values"):
        budget = one(case(name), "PodDisruptionBudget")["spec"]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_built_in_postgresql_keeps_its_data_in_the_given_storage_class() -> None:
    database = one(case("trial-values"), "StatefulSet", "-postgresql")["spec"]
    (claim,) = database["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert "data" not in {each["name"] for each in database["template"]["spec"]["volumes"]}


def test_no_user_is_set_where_the_platform_chooses_users() -> None:
    nulls = ("podSecurityContext.runAsUser", "podSecurityContext.fsGroup", "database.postgresql.uid")
    for _, pod in pod_specs(template("--set", ",".join(f"{name}=null" for name in nulls))):
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_only_the_api_can_be_reached_from_outside() -> None:
    manifests = case("everything-values")
    outside = one(manifests, "Service")["spec"]
    assert (outside["type"], [port["name"] for port in outside["ports"]]) == ("LoadBalancer", ["api"])
    assert one(manifests, "Service", "-metrics")["spec"]["type"] == "ClusterIP"
    refused = helm("template", "x", "./chart", "--set", "ingress.enabled=true,ingress.host=a.example")
    assert "tokens must not be sent unencrypted" in refused.stderr
