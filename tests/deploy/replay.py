"""The Dockerfile, and its steps executed without a container runtime.

What its stages copy and run ends up in folders, and what runs there sees nothing else (a mount namespace
and chroot). A Python of this machine replaces that of the base image, as do the C library and the shell.
"""

import functools
import json
import os
import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from rendered import ROOT

# What a build may use here: where packages come from, and whom to trust for it.
NETWORK = ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ETC = ("ssl", "resolv.conf", "hosts", "nsswitch.conf", "pip.conf")

# Mounts end with the process, because their namespace does.
ENTER = """
root=$1 writable=$2
shift 2
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    case $1 in /dev/*|*/.s.PGSQL.*) ;; *) mount -o remount,bind,ro "$root$2" ;; esac
    shift 2
done
shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
[ "$writable" = yes ] || mount -o remount,bind,ro "$root"
exec "$@"
"""


class Step(NamedTuple):
    instruction: str
    rest: str


def steps() -> list[Step]:
    """Returns the instructions of the Dockerfile without comments, each in one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [Step(*line.split(None, 1)) for line in lines if line.strip()]


def stages() -> list[list[Step]]:
    """Returns the same by stage; each starts with what precedes the first FROM."""
    found: list[list[Step]] = [[]]
    for step in steps():
        if step.instruction == "FROM":
            found.append(found[0].copy())
        found[-1].append(step)
    return found[1:]


def context() -> Iterator[Path]:
    """Yields the files of the checkout that .dockerignore lets through, relative to it."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    taken = [line[1:] for line in lines if line.startswith("!")]
    without = [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]
    for path in (ROOT / name for name in taken):
        for one in path.rglob("*") if path.is_dir() else [path]:
            relative = one.relative_to(ROOT)
            left_out = any(fnmatch(part, pattern) for part in relative.parts for pattern in without)
            if one.is_file() and not left_out:
                yield relative


@functools.cache
def python(version: str) -> Path | None:
    """Returns where a Python of this version is installed, such as ``/usr/local``; None without one."""
    known = [
        shutil.which(f"python{version}"),
        *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"),
    ]
    for program in filter(None, known):
        asked = [str(program), "-c", "import sys, venv, ensurepip; print(sys.base_prefix)"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        prefix = Path(done.stdout.strip())
        # The system's own shares its folders with everything else.
        if done.returncode == 0 and prefix != Path("/usr") and (prefix / "bin" / "python").exists():
            return prefix
    return None


@functools.cache
def permitted() -> bool:
    """Returns whether this process may make its own mounts."""
    asked = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return (
            os.getuid() == 0 and not subprocess.run(asked, capture_output=True, check=False).returncode
        )
    except OSError:
        return False


class Stage:
    """A stage that has been executed; the last one is the image."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        self.said: dict[str, str] = {}
        # In a base image, Python finds its library without this.
        self.outside = {"LD_LIBRARY_PATH": "/usr/local/lib"}
        self.binds = [("/usr/lib", "/usr/lib"), (str(base), "/usr/local")]
        self.binds += [("/usr/lib64", "/usr/lib64")] if Path("/usr/lib64").is_dir() else []
        self.binds += [(f"/dev/{name}", f"/dev/{name}") for name in ("null", "urandom")]
        for name in ("proc", "tmp", "etc", "usr/bin", "run/postgresql"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        for name in ("sh", "mkdir", "ln"):
            shutil.copy(f"/bin/{name}", root / "usr/bin" / name)
        for name in filter(lambda name: Path("/etc", name).exists(), ETC):
            (shutil.copytree if Path("/etc", name).is_dir() else shutil.copy)(
                Path("/etc", name), root / "etc" / name
            )
        self._prepare(self.binds)

    def _prepare(self, binds: list[tuple[str, str]]) -> None:
        for source, target in binds:
            place = self.root / target[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            if Path(source).is_dir():
                place.mkdir(exist_ok=True)
            else:
                place.touch()

    def words(
        self,
        *command: str,
        env: dict[str, str] | None = None,
        user: str = "0:0",
        writable: bool = False,
        binds: list[tuple[str, str]] | None = None,
    ) -> list[str]:
        """Returns a command that runs another one within the root."""
        self._prepare(binds or [])
        mounts = [word for bind in [*self.binds, *(binds or [])] for word in bind]
        variables = {**self.env, **self.outside, **(env or {})}
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "enter"),
            *(str(self.root), "yes" if writable else "no", *mounts, "--"),
            *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *(shutil.which("chroot") or "/usr/sbin/chroot", f"--userspec={user}", str(self.root)),
            *command,
        ]


def build(stage: list[Step], root: Path, base: Path, others: dict[str, Stage], **given: str) -> Stage:
    """Executes the steps of a stage; ``given`` are build args."""
    made = Stage(root, base)
    args: dict[str, str] = {}
    workdir = "/"
    for instruction, rest in stage:
        variables = {**args, **made.env}
        text = string.Template(rest).safe_substitute(variables)
        if instruction == "FROM":
            others[text.partition(" AS ")[2] or "image"] = made
        elif instruction == "ARG":
            name, _, default = rest.partition("=")
            args[name] = given.get(name, default or args.get(name, ""))
        elif instruction == "ENV":
            made.env |= dict(word.split("=", 1) for word in shlex.split(text))
        elif instruction == "WORKDIR":
            workdir = text
            (root / text[1:]).mkdir(parents=True)
        elif instruction == "COPY":
            _copy(text.split(), root, workdir, others)
        elif instruction == "RUN":
            network = {name: os.environ[name] for name in NETWORK if name in os.environ}
            command = made.words(
                *("/bin/sh", "-c", f"cd {workdir} && {rest}"), env={**args, **network}, writable=True
            )
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
        else:
            made.said[instruction] = text
    return made


def _copy(words: list[str], root: Path, workdir: str, others: dict[str, Stage]) -> None:
    target = root / str(Path(workdir, words[-1]))[1:]
    if words[0].startswith("--from="):
        (source,) = words[1:-1]
        # Without the times of files, as some builders do.
        shutil.copytree(
            others[words[0].removeprefix("--from=")].root / source[1:],
            target,
            symlinks=True,
            copy_function=shutil.copy,
        )
        return
    for file in context():
        if any(source == "." or file == Path(source) for source in words[:-1]):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target / file)


def listed(text: str) -> list[str]:
    """Returns the words of ENTRYPOINT, CMD or HEALTHCHECK in their JSON form."""
    return json.loads(text[text.index("[") :])
