"""How agentmem is installed: its distribution's name and version, and every pip command that anything here advises.

The distribution ``agentmem`` on the public package index is another project's. So no message, page or example may send
anybody there.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import REPO, package_dir

import agentmem
from agentmem.engines import ENGINES

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


OPTIONAL = {name for extra, requirements in EXTRAS.items() if extra != "all" for name in names(requirements)}

# The version


def test_the_version_is_the_one_in_pyproject() -> None:
    assert agentmem.__version__ == PROJECT["version"]
    assert "__version__" in dir(agentmem)


def said_version(folder: Path) -> str:
    """The version that a copy of agentmem in this folder says, to a Python that has no other one."""
    shutil.copytree(package_dir(), folder / "agentmem", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import agentmem; print(agentmem.__version__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_an_installed_package_says_the_version_of_its_distribution(tmp_path: Path) -> None:
    metadata = tmp_path / "agentmem_sessions-9.8.7.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: agentmem-sessions\nVersion: 9.8.7\n")
    assert said_version(tmp_path) == "9.8.7"


def test_a_checkout_that_is_not_installed_says_the_version_in_its_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "agentmem-sessions"\nversion = "9.8.7"\n')
    assert said_version(tmp_path) == "9.8.7"


@pytest.mark.parametrize("pyproject", ["", '[project]\nname = "other"\nversion = "9.8.7"\n', "[tool.x]\n", "no TOML"])
def test_a_copy_without_metadata_says_that_its_version_is_unknown(tmp_path: Path, pyproject: str) -> None:
    if pyproject:
        (tmp_path / "pyproject.toml").write_text(pyproject)
    assert said_version(tmp_path) == "0+unknown"


def test_importing_agentmem_does_not_look_for_its_version() -> None:
    code = "import sys, agentmem; print({'importlib.metadata', 'tomllib', 'agentmem.version'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# The distribution


def test_the_distribution_is_not_the_other_project_s_and_holds_the_package_and_the_command() -> None:
    assert PROJECT["name"] == "agentmem-sessions"
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["agentmem"]
    assert PROJECT["scripts"] == {"agentmem": "agentmem.cli:main"}


def test_the_extra_all_brings_every_optional_dependency() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all"}


def test_the_driver_of_every_engine_comes_with_an_extra() -> None:
    drivers = {entry.driver for entry in ENGINES.values() if entry.driver}
    assert drivers
    assert drivers <= OPTIONAL


# What anybody is advised to install

INSTALLS = re.compile(r"\bpip3? +install\b *([^`\n&|;()]*)")
ALLOWED = OPTIONAL | names(PROJECT["dependencies"]) | {"nox"}
"""What a pip command may name, beside a folder. Not agentmem-sessions: no index has it, so it is installed from one."""

WRITTEN_WHEN_RAISED = {"{entry.driver}"}
"""Placeholders in messages: of the registry of engines, whose drivers a test above looks at."""


def wrong(command: str) -> list[str]:
    """What is wrong with the arguments of a ``pip install``."""
    arguments = [word.strip("\"'").rstrip(",:") for word in command.split()]
    arguments = [word if word.startswith(".") else word.rstrip(".") for word in arguments]
    wanted = [word for word in arguments if not word.startswith("-") and word not in WRITTEN_WHEN_RAISED]
    if not arguments:
        return ["names nothing on its line"]
    return [found for word in wanted if (found := _wrong_requirement(word))]


def _wrong_requirement(text: str) -> str:
    folder = re.fullmatch(r"\.(?:\[([\w,]+)\])?", text)
    if folder:
        unknown = set(filter(None, (folder[1] or "").split(","))) - EXTRAS.keys()
        return f"{text} names no extra" if unknown else ""
    try:
        name = canonicalize_name(Requirement(text).name)
    except ValueError:
        return f"{text!r} is no requirement"
    return "" if name in ALLOWED else f"{name} is nothing that agentmem needs"


def texts(file: Path) -> Iterator[str]:
    """All that a file says: a Python file's strings, each as one, and its comments; any other file as it is."""
    source = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        yield source
        return
    nodes = list(ast.walk(ast.parse(source, str(file))))
    formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    for node in formatted:
        yield "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else ast.literal_eval(part)
            for part in node.values
        )
    pieces = {id(part) for node in formatted for part in node.values}
    for constant in nodes:
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and id(constant) not in pieces:
            yield constant.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


PLACES = ("*.md", "[a-z]*/*.md", "*.py", "*.toml", ".ci/run", "agentmem/**/*.py", "benchmarks/*.py", "examples/*.py")
FILES = [path for place in PLACES for path in sorted(REPO.glob(place))]


def complaints(file: Path) -> list[str]:
    found = []
    for text in texts(file):
        for match in INSTALLS.finditer(text):
            found += [f"{match[0].strip()}: {problem}" for problem in wrong(match[1])]
        found += [f"{match}…: the extras of another project" for match in re.findall(r"\bagentmem\[", text)]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_no_pip_command_brings_something_else(file: Path) -> None:
    assert complaints(file) == []


def test_pip_commands_are_found_where_they_are_advised() -> None:
    advising = {
        path.relative_to(REPO).as_posix() for path in FILES if any(INSTALLS.search(text) for text in texts(path))
    }
    assert advising >= {
        "README.md",
        "agentmem/engines/__init__.py",
        "agentmem/session.py",
        "examples/agents_sdk.py",
        "examples/fastapi_app.py",
    }


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.md", "`pip install agentmem`", "agentmem is nothing that agentmem needs"),
        ("a.md", "pip install 'agentmem[postgres]'", "agentmem is nothing that agentmem needs"),
        ("a.md", "with `agentmem[postgres]` installed", "the extras of another project"),
        ("a.md", "pip install agentmem-sessions", "agentmem-sessions is nothing that agentmem needs"),
        ("a.md", "pip install asyncgp", "asyncgp is nothing that agentmem needs"),
        ("a.md", "pip install -U asyncpg agentmem>=0.1", "agentmem is nothing that agentmem needs"),
        ("a.md", "pip install '.[postgress]'", "names no extra"),
        ("a.md", "`pip install\nasyncpg`", "names nothing on its line"),
        ("a.py", "raise E(f\"pip install 'agentmem[{extra}]'\")", "is no requirement"),
        ("a.py", 'raise E("pip "\n"install agentmem")', "agentmem is nothing that agentmem needs"),
        ("a.py", "x = 1  # pip install agentmem", "agentmem is nothing that agentmem needs"),
    ],
)
def test_a_pip_command_that_brings_something_else_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    assert problem in "; ".join(complaints(tmp_path / name))


@pytest.mark.parametrize(
    "command",
    [
        "pip install .",
        "pip install '.[all]'",
        "`pip install asyncpg`.",
        ".venv/bin/pip install nox && x",
        "pip install -e .",
    ],
)
def test_a_pip_command_that_brings_the_right_thing_is_none(tmp_path: Path, command: str) -> None:
    (tmp_path / "a.md").write_text(command)
    assert complaints(tmp_path / "a.md") == []
