"""Every check of this project: ``nox -s tests``, and ``nox --list`` for the others.

Rules kept here:

- The tests run against the built wheel, from an empty directory outside the repository, so that what they import is
  what a user installs, never the source tree.
- ``tests`` takes minutes: the newest Python here, and all tests but the exhaustive ones. Other sessions run those, and
  what can differ on the other Pythons. Each Python version among pyproject.toml's classifiers is tested if the machine
  has it, also one that only pyenv keeps. A missing one is reported and skipped; where all are missing the run fails.
- A machine with Python and git is enough: tests that need a server or a tool that is missing are skipped. They fail
  instead where AGENTMEM_REQUIRE_ENGINES or AGENTMEM_REQUIRE_TOOLS names it ("postgresql"; several with commas), as in
  CI.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"

ROOT = Path(__file__).resolve().parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
del EXTRAS["all"]  # it only names the others again, as extras of agentmem itself, which is installed from here
REQUIREMENTS: list[str] = [*PYPROJECT["project"]["dependencies"], *itertools.chain.from_iterable(EXTRAS.values())]
SUPPORTED = nox.project.python_versions(PYPROJECT)


def candidates(version: str) -> Iterator[str]:
    """Where a Python of this version may be: on PATH, then among those that pyenv keeps, newest release first."""
    name = f"python{version}"
    yield from filter(None, (shutil.which(name, path=folder) for folder in os.get_exec_path()))
    pyenv_root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    releases = [p for p in pyenv_root.glob("versions/*") if re.fullmatch(re.escape(version) + r"\.\d+", p.name)]
    releases.sort(key=lambda p: int(p.name.rpartition(".")[2]), reverse=True)
    yield from filter(None, (shutil.which(name, path=p / "bin") for p in releases))


def works(command: list[str], version: str) -> bool:
    """Whether this command is a Python of this version that agentmem can run on.

    Only running it tells: pyenv puts a command on PATH for each version that it keeps, and it fails for all but
    the selected ones; a Python built from source may lack SQLite.
    """
    check = "import sqlite3, ssl, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([*command, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def present() -> list[str]:
    """The supported versions that this machine has, oldest first. PATH is extended so that nox finds them too."""
    found = []
    for version in SUPPORTED:
        if version == "{}.{}".format(*sys.version_info[:2]):
            found.append(version)  # nox itself runs on it
        elif python := next((p for p in candidates(version) if works([p], version)), None):
            found.append(version)
            if python != shutil.which(f"python{version}"):
                os.environ["PATH"] = os.path.dirname(python) + os.pathsep + os.environ["PATH"]
        elif sys.platform == "win32" and works(["py", f"-{version}"], version):
            found.append(version)  # nox knows the launcher
    return found


PRESENT = present()
NEWEST = (PRESENT or SUPPORTED)[-1]
OLDEST = (PRESENT or SUPPORTED)[0]

# What can differ between Pythons: asyncio, threads, forks, the end of the interpreter, json, sqlite3, annotations.
DIFFERS = [
    "tests/engines/postgres/test_postgres_cancellation.py",
    "tests/engines/postgres/test_postgres_lifecycle.py",
    "tests/engines/sqlite/test_sqlite_pool.py",
    "tests/engines/test_batching*.py",
    "tests/engines/test_conformance.py",
    "tests/runner/*.py",
    "tests/test_items.py",
    "tests/test_lifecycle.py",
    "tests/test_replay.py",
    "tests/test_session.py",
    "tests/test_sync.py",
]

nox.options.sessions = ["lint", "types", "tests"]
nox.options.download_python = "never"
# A missing version is skipped and named in nox's summary, under CI too; but a run that tests nothing fails.
nox.options.error_on_missing_interpreters = not PRESENT


def group(name: str) -> list[str]:
    """The requirements of one dependency group. Read here, since pip knows groups only from 25.1 on."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: the rules, then the format."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on package, tests, benchmarks and examples, as the oldest and the newest Python see them."""
    session.install(*REQUIREMENTS, *group("types"))
    for version in (SUPPORTED[0], SUPPORTED[-1]):
        session.run("mypy", "--python-version", version)


@nox.session(python=NEWEST)
def tests(session: nox.Session) -> None:
    """Pytest on the built wheel, on the newest Python here. Arguments after -- go to pytest, paths as seen from the
    repository."""
    install_wheel(session, *group("test"))
    run_pytest(session, *QUICK)
    others = [f"Python {version}" for version in PRESENT if version != NEWEST]
    session.log(f"Left out: {', '.join([*others, 'exhaustive tests'])}. Run: nox -s tests_python tests_exhaustive")


@nox.session(python=NEWEST)
def tests_exhaustive(session: nox.Session) -> None:
    """What takes minutes, root's rights or a server of its own; and property tests with many more random cases."""
    # Type checkers take half a minute to read the SDK.
    install_wheel(session, *group("test"), *group("typing-test"))
    run_pytest(session, "-m", "exhaustive or hypothesis", "--hypothesis-profile=exhaustive")


@nox.session(python=[version for version in SUPPORTED if version != NEWEST])
def tests_python(session: nox.Session) -> None:
    """What can differ between Pythons, on each of the others."""
    install_wheel(session, *group("test"))
    run_pytest(session, *QUICK, files=DIFFERS)


@nox.session(python=OLDEST)
def lowest(session: nox.Session) -> None:
    """The quick tests with the oldest dependencies that pyproject.toml allows, on the oldest Python here."""
    # Without the Agents SDK, of which no release takes so old an openai.
    extras = [extra for extra in EXTRAS if extra != "agents"]
    bounds = Path(session.cache_dir, "lowest.txt")
    bounds.write_text("\n".join(lower_bounds(*extras)), encoding="utf-8")
    install_wheel(session, *group("test"), "--constraint", str(bounds), extras=extras)
    run_pytest(session, *QUICK)


@nox.session(python=OLDEST)
def agents_oldest(session: nox.Session) -> None:
    """The tests of the agents extra, with the oldest Agents SDK that pyproject.toml allows."""
    (oldest,) = (bound for bound in lower_bounds("agents") if bound.startswith("openai-agents=="))
    install_wheel(session, *group("test"), *group("typing-test"), oldest)
    run_pytest(session, files=["tests/integrations/test_agents_sdk*.py", "tests/project/test_typing.py"])


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, with every rival that they know. Arguments after -- go to them: --quick takes about a minute."""
    install_wheel(session, *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """An hour of load, after 500 kills: what is held stays flat and what is read is right. --seconds 300 is shorter."""
    install_wheel(session)
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("python", str(ROOT / "tests" / "support" / "soak.py"), *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """``agentmem demo``, as someone who has just installed it sees it."""
    session.install(".")
    session.run("agentmem", "demo", *session.posargs)


def install_wheel(session: nox.Session, *requirements: str, extras: Iterable[str] = EXTRAS) -> None:
    """Build the wheel and install it with its extras: pip does both when it is given a folder."""
    session.install(f".[{','.join(extras)}]", *requirements)


def lower_bounds(*extras: str) -> list[str]:
    """Each dependency of pyproject.toml, and of these extras, pinned to its lower bound."""
    texts = itertools.chain(PYPROJECT["project"]["dependencies"], *(EXTRAS[extra] for extra in extras))
    requirements = map(Requirement, texts)
    return [f"{r.name}=={spec.version}" for r in requirements for spec in r.specifier if spec.operator == ">="]


QUICK = ("-m", "not exhaustive")


def run_pytest(session: nox.Session, *options: str, files: Iterable[str] = ("tests",)) -> None:
    """Run tests/, or these files of it, in parallel and from an empty directory; AGENTMEM_REPO tells the tests where
    README.md and examples/ are."""
    # One more than there are cores, because tests wait for disks, servers and other programs in two fifths of their
    # time. No more than 8, because each starts PostgreSQL servers of its own.
    processes = min((os.cpu_count() or 1) + 1, 8)
    args = [f"--numprocesses={processes}", "--dist=worksteal", *options]
    for kind in ("engine", "tool"):
        required = filter(None, os.environ.get(f"AGENTMEM_REQUIRE_{kind.upper()}S", "").split(","))
        args += [f"--require-{kind}={name}" for name in required]
    given = [str(ROOT / arg) if arg.startswith("tests/") else arg for arg in session.posargs]
    if given == session.posargs:
        args += [str(path) for file in files for path in sorted(ROOT.glob(file))]
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("pytest", "-c", str(ROOT / "pyproject.toml"), *args, *given, env={"AGENTMEM_REPO": str(ROOT)})
