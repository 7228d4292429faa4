"""During an upgrade, the previous version and this one serve side by side, on the schema that this one
has migrated. Each reads what the other writes.

The file `previous_version` names the commit of the previous version.
"""

import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alike import ADAPTER, Json, at, finalize, merge, read
from conftest import Api
from process import Serving, run

pytestmark = pytest.mark.tools

PREVIOUS = Path(__file__).with_name("previous_version").read_text().strip()
ADAPTERS = ("--required-adapters-cluster=dns", "--required-adapters-nodepool=np")


@pytest.fixture(scope="module")
def previous(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the previous version's `hyperfleet`, installed in its own environment."""
    folder = tmp_path_factory.mktemp("previous")
    archive = folder / "source.tar"
    try:
        subprocess.run(
            ["git", "archive", f"--output={archive}", PREVIOUS],
            cwd=root,
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"the history does not reach back to {PREVIOUS}")
    with tarfile.open(archive) as source:
        source.extractall(folder / "source", filter="data")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, folder / "source"], check=True)
    # It shares this environment's packages, which come after its own: `hyperfleet` is the old one.
    [packages] = (folder / "venv").glob("lib/*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # A PYTHONPATH must not lead elsewhere.
    command = folder / "hyperfleet"
    command.write_text(f'#!/bin/sh\nexec env -u PYTHONPATH {python.with_name("hyperfleet")} "$@"\n')
    command.chmod(0o755)
    return str(command)


@pytest.fixture
def both(previous: str, database: str, tmp_path: Path) -> Iterator[dict[str, Api]]:
    """A client of the previous version and one of this version, on one database."""
    arguments = ("--no-auth", "--database-url", database, *ADAPTERS)
    with (
        Serving(*arguments, command=previous, cwd=tmp_path) as old,
        Serving(*arguments) as new,
    ):
        for one in (old, new):
            ready = Api(one.url).get(one.health + "/readyz")
            assert ready.status_code == 200, ready.text
        yield {"previous": Api(old.url), "this": Api(new.url)}
        for one in (old, new):
            assert one.stop() == 0, one.output
            assert "Traceback" not in one.output


def test_the_previous_version_has_fewer_migrations(previous: str, database: str, tmp_path: Path) -> None:
    listed = run(
        *("migrate", "--list", "--database-url", database), command=previous, cwd=tmp_path
    ).stdout
    now = run("migrate", "--list", "--database-url", database).stdout
    assert "pending" not in listed + now
    own = [line for line in listed.splitlines() if line.startswith("applied")]
    assert len(own) < len(now.splitlines())


@pytest.mark.parametrize(("writer", "reader"), [("previous", "this"), ("this", "previous")])
def test_each_version_reads_what_the_other_writes(
    both: dict[str, Api], writer: str, reader: str
) -> None:
    writing, reading = both[writer], both[reader]

    def same(resource: Json) -> Json:
        known = read(writing, resource)
        assert read(reading, resource) == known
        return known[1]

    cluster = writing.cluster("one", labels={"env": "production", "team": "a"}, spec={"nodes": 5})
    writing.cluster("two", labels={"env": "test"})
    pool = writing.node_pool(cluster, "pool", labels={"type": "worker"})
    assert same(cluster)["spec"] == {"nodes": 5}
    same(pool)
    for path in (
        "/clusters",
        "/clusters?pageSize=1",
        "/clusters?orderBy=name desc",
        "/clusters?search=labels.env='production' and name='one'",
        "/clusters?search=status.phase='NotReady'&order=created_time",
        f"/clusters/{cluster['id']}/nodepools?search=labels.type='worker'",
        "/nodepools",
    ):
        answers = [api.get(path).json() for api in (writing, reading)]
        assert answers[0]["total"] >= 1, path
        for answer in answers:
            answer.pop("next", None)
            # A version without a feed has no link to it.
            answer.pop("changes", None)
        assert answers[0] == answers[1], path

    for one in (cluster, pool):
        assert writing.report(one, ADAPTER[one["kind"]]).status_code in {200, 201}
        assert same(one)["status"]["phase"] == "Ready"
        reports = [api.get(at(one, "/statuses")).json() for api in (writing, reading)]
        assert reports[0]["total"] == 1
        assert reports[0] == reports[1]
    assert reading.get("/clusters?search=status.phase='Ready'").json()["total"] == 1

    # Both change the same resource, in turns.
    for number, api in enumerate((writing, reading, writing), start=2):
        changed = merge(api, cluster, {"spec": {"nodes": number}, "labels": {"env": f"stage-{number}"}})
        assert changed.status_code == 200, changed.text
        assert same(cluster)["generation"] == number
        found = [
            each.get(f"/clusters?search=labels.env='stage-{number}'").json() for each in both.values()
        ]
        assert [one["total"] for one in found] == [1, 1]
    answer = reading.report(cluster, "dns", observed_generation=4)
    assert answer.status_code in {200, 201}
    assert same(cluster)["status"]["phase"] == "Ready"

    # One marks the cluster, the other gets a last report.
    assert writing.delete(at(cluster)).status_code == 202
    assert same(cluster)["deleted_time"]
    assert same(pool)["deleted_time"]
    assert finalize(reading, pool).status_code in {200, 201, 204}
    assert writing.get(at(pool)).status_code == 404
    assert finalize(writing, cluster, generation=5).status_code in {200, 201, 204}
    for api in both.values():
        assert [api.get(at(one)).status_code for one in (cluster, pool)] == [404, 404]
        assert api.get("/clusters").json()["total"] == 1
        assert api.get("/nodepools").json()["total"] == 0
