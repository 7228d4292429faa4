"""What is generated from the chart's values: their schema and the README's table. Run to write both."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from hyperfleet.settings.catalogue import DECLARED
from hyperfleet.settings.issuers import MEMBERS
from hyperfleet.settings.synonyms import BY_FIELD, SYNONYMS
from hyperfleet.settings.values import Names, Seconds, Whole

CHART = Path(__file__).parent.parent.parent / "deploy" / "chart"
HEADING = "## Values\n"

# Kubernetes and the cloud define what these contain; all members of the second are strings.
FREE = {"affinity", "podSecurityContext", "securityContext", "resources", "namespaceSelector"}
TEXTS = {"nodeSelector", "podAnnotations", "podLabels", "annotations", "labels", "additionalLabels"}
MAY_BE_NULL = {"settings", "auth", "adapters"}
VARIABLES = {"type": ["array", "null"], "items": {"type": "object", "required": ["name"]}}
LISTS_OF_TEXTS = {"audiences", "cluster", "nodepool", "loadBalancerSourceRanges", "disabled"}
CHOICES = {
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "service.type": ["ClusterIP", "NodePort", "LoadBalancer"],
    "migration.mode": ["", "hook", "init", "none"],
    "tracing.otlpProtocol": ["http/protobuf", "grpc"],
    "database.external.sslMode": ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
}
OTHERS: dict[str, dict[str, Any]] = {
    "podDisruptionBudget.minAvailable": {"type": ["integer", "string", "null"]},
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string", "null"]},
    "autoscaling.targetCPUUtilizationPercentage": {"type": ["integer", "null"], "minimum": 1},
    "autoscaling.targetMemoryUtilizationPercentage": {"type": ["integer", "null"], "minimum": 1},
    "database.postgresql.uid": {"type": ["integer", "null"], "minimum": 0},
    "tracing.samplerArg": {"type": ["string", "number"]},
    "env": VARIABLES,
    "extraEnv": VARIABLES,
}
# Values with the same members as another one.
ALIASES = {"monitoring.tracing": "tracing", "serviceMonitor": "monitoring.serviceMonitor"}
# What the chart passes on for versions of the original that knew one issuer.
JWT = ("issuer_url", "audience", "identity_claim")
TYPES = {bool: "boolean", int: "integer", str: "string"}


@functools.cache
def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def setting_type(name: str) -> dict[str, Any]:
    """Returns what a setting may be in YAML."""
    kind = DECLARED[name].metadata["option"].get("type")
    if name == "jwt_configs":
        members = {member: {"type": ["string", "null"]} for member in MEMBERS}
        return {"type": ["array", "null"], "items": closed(members, required=["issuer_url"])}
    if name == "tenant_dimensions":
        text = {"type": ["string", "null"]}
        members = {"header": text, "key": text, "required": {"type": ["boolean", "string", "null"]}}
        return {"type": ["array", "null"], "items": closed(members, required=["header", "key"])}
    if isinstance(kind, Names):
        return {"type": ["array", "string", "null"], "items": {"type": "string"}}
    if kind is bool:
        return {"type": ["boolean", "null"]}
    if isinstance(kind, Whole):
        return {"type": ["integer", "string", "null"]}
    if isinstance(kind, Seconds) or name == "access_log":
        return {"type": ["number", "string", "null"]}
    return {"type": ["string", "integer", "boolean", "null"]}


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


# The service checks the content, with a message for each mistake.
ENTITIES = {"type": "array", "items": {"type": "object", "required": ["kind"]}}


def settings_schema() -> dict[str, Any]:
    """Returns the schema of settings by their names, with hyphens or underscores."""
    patterns = {f"^{name.replace('_', '[-_]')}$": setting_type(name) for name in DECLARED}
    patterns["^entities$"] = ENTITIES
    return closed({}, patternProperties=patterns)


def config_schema() -> dict[str, Any]:
    """Returns the schema of the original's file, and of the chart's own values next to it."""
    tree: dict[str, Any] = {
        "server": {"jwt": {}},
        "entities": ENTITIES,
        **{
            part: {"host": setting_type("host"), "port": setting_type("port")}
            for part in ("health", "metrics")
        },
    }
    tree["server"]["jwt"] |= {name: {"type": "string"} for name in JWT}
    # The original's chart never had those of OCM, and has those of tracing elsewhere.
    for one in (one for one in SYNONYMS if not one.path.startswith(("ocm.", "tracing."))):
        *parents, last = one.path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if last:
            setting = BY_FIELD[one.field].setting
            node[last] = setting_type(setting) if setting else {}
    own = values()["config"]
    for name in own:
        tree[name] = (
            {"type": "array", "items": {"type": "object"}}
            if own[name] == []
            else {"type": TYPES[type(own[name])]}
        )

    def close(node: dict[str, Any]) -> dict[str, Any]:
        leaf = not node or "type" in node or "const" in node
        return node if leaf else closed({name: close(one) for name, one in node.items()})

    return close(tree)


def value_schema(path: str, value: Any) -> dict[str, Any]:
    name = path.rpartition(".")[2]
    if path in ALIASES:
        node = values()
        for key in ALIASES[path].split("."):
            node = node[key]
        return value_schema(ALIASES[path], node)
    if path == "settings":
        return settings_schema()
    if path == "config":
        return config_schema()
    if path in OTHERS:
        return OTHERS[path]
    if path in CHOICES:
        return {"enum": CHOICES[path]}
    if isinstance(value, list):
        texts = name in LISTS_OF_TEXTS
        return {"type": ["array", "null"], "items": {"type": "string" if texts else "object"}}
    if name in TEXTS:
        return {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}}
    if name in FREE:
        return {"type": ["object", "null"]}
    if isinstance(value, dict):
        # A section without members is null, which removes the chart's own.
        needed = [key for key, one in value.items() if isinstance(one, dict) and one]
        return closed(
            {key: value_schema(f"{path}.{key}".lstrip("."), one) for key, one in value.items()},
            required=[key for key in needed if key not in FREE | TEXTS | MAY_BE_NULL],
        )
    # None of the chart's own numbers is negative.
    least = {"minimum": 0} if isinstance(value, int) and not isinstance(value, bool) else {}
    return {"type": TYPES[type(value)], **least}


def schema() -> str:
    """Returns what values.schema.json must contain."""
    made = {"$schema": "http://json-schema.org/draft-07/schema#", **value_schema("", values())}
    # Helm adds it to the values of every chart.
    made["properties"]["global"] = {"type": "object"}
    return json.dumps(made, indent=1) + "\n"


def described() -> Iterator[tuple[str, str]]:
    """Yields the paths of values.yaml with the comments above them; empty if there is none."""
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if not line.strip():
            comment = []
        elif line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif key := re.match(r"( *)([\w-]+):", line):
            depth = len(key[1])
            parents = [one for one in parents if one[0] < depth] + [(depth, key[2])]
            yield ".".join(name for _, name in parents), " ".join(comment)
            comment = []


def rows() -> Iterator[tuple[str, str, str]]:
    """Yields each value that has a comment: its path, its default as JSON, and the comment."""
    known = dict(described())
    for path, comment in known.items():
        node: Any = values()
        for name in path.split("."):
            node = node[name]
        section = any(other.startswith(f"{path}.") and known[other] for other in known)
        if comment:
            yield path, "" if section else f"`{json.dumps(node)}`", comment


def readme() -> str:
    """Returns what the chart's README must contain; the text before the table is kept."""
    head = (CHART / "README.md").read_text().partition(HEADING)[0]
    lines = [HEADING, "| value | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{path}` | {default} | {comment} |" for path, default, comment in rows()]
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(schema())
    (CHART / "README.md").write_text(readme())
    click.echo("values.schema.json and README.md of the chart are written.")
