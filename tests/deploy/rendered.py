"""What Helm renders from the chart, and a container's files as Kubernetes would mount them."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy" / "chart"
TOOLS = ROOT / ".tools"
HELM = shutil.which("helm", path=f"{TOOLS / 'bin'}:{os.environ.get('PATH', '')}")
needs_helm = pytest.mark.skipif(not HELM, reason="no helm: make test-tools installs it where Go is")

# Values with every switch on, with every switch off, with the original's names, and the examples.
CASES = {path.stem: path for path in sorted([*CHART.glob("ci/*.yaml"), *CHART.glob("examples/*.yaml")])}

Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs helm in the root of the repository."""
    return subprocess.run(
        [str(HELM), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@functools.cache
def template(*arguments: str) -> tuple[Manifest, ...]:
    """Returns the manifests of a release."""
    done = helm("template", "hyperfleet-api", "./chart", *arguments)
    assert done.returncode == 0, done.stderr
    return tuple(one for one in yaml.safe_load_all(done.stdout) if one)


def case(name: str) -> tuple[Manifest, ...]:
    return template("--values", str(CASES[name]))


def one(manifests: tuple[Manifest, ...], kind: str, ending: str = "") -> Manifest:
    """Returns the manifest of a kind whose name is the release's with this ending."""
    found = [
        each
        for each in manifests
        if each["kind"] == kind and each["metadata"]["name"] == "hyperfleet-api" + ending
    ]
    assert len(found) == 1, (kind, ending, len(found))
    return found[0]


def settings(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    """Returns the service's settings file."""
    found: dict[str, Any] = yaml.safe_load(one(manifests, "ConfigMap")["data"]["config.yaml"])
    return found


def pod_specs(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the kind of each workload, and the spec of its pods."""
    for each in manifests:
        if "template" in each.get("spec", {}):
            yield each["kind"], each["spec"]["template"]["spec"]


def containers(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in containers(spec) if each["name"] == name)


class Mounted:
    """A container's files in a folder, and what it is started with.

    :param manifests: ConfigMaps and Secrets in them are mounted
    :param others: files of ConfigMaps and Secrets that are not part of the release
    """

    def __init__(
        self,
        manifests: tuple[Manifest, ...],
        spec: Mapping[str, Any],
        name: str,
        folder: Path,
        others: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.folder = folder
        held = {
            each["metadata"]["name"]: each.get("data") or each.get("stringData")
            for each in manifests
            if each["kind"] in ("ConfigMap", "Secret")
        }
        held |= others
        volumes = {each["name"]: each for each in spec["volumes"]}
        started = container(spec, name)
        for mount in started["volumeMounts"]:
            volume = volumes[mount["name"]]
            place = Path(self.mapped(mount["mountPath"]))
            if "emptyDir" in volume:
                place.mkdir(parents=True, exist_ok=True)
                continue
            source = volume.get("configMap") or volume["secret"]
            files = held[source.get("name") or source["secretName"]]
            if "items" in source:
                files = {item["path"]: files[item["key"]] for item in source["items"]}
            if "subPath" in mount:
                place, files = place.parent, {place.name: files[mount["subPath"]]}
            place.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (place / file).write_text(self.mapped(text))
        self.arguments = [self.mapped(text) for text in started.get("args", [])]
        self.command = [self.mapped(text) for text in started.get("command", [])]
        self.env = {each["name"]: self.mapped(each["value"]) for each in started.get("env", [])}
        # Where the service looks by default in a container.
        self.config = f"{folder}/etc/hyperfleet/config.yaml"

    def mapped(self, text: str) -> str:
        """Returns a text with the folder put before each path of the container."""
        return re.sub(r"(?<![\w/.-])/(?=(etc|tmp)(/|$))", f"{self.folder}/", text, flags=re.MULTILINE)
