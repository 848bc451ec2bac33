"""Imports only go down, and no engine imports another; read from the source. And what ``import agentmem`` loads."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentmem

FLOORS = {
    "errors": 0,
    "items": 0,
    "replay": 0,
    "version": 0,
    "calling_thread": 1,
    "cancellation": 1,
    "checking": 1,
    "event_loop": 1,
    "handle": 1,
    "lifecycle": 1,
    "reading": 1,
    "threads": 1,
    "conformance": 2,
    "engines": 2,
    "arguments": 3,
    "copying": 3,
    "restoring": 3,
    "upgrading": 3,
    "session": 3,
    "store": 3,
    "blocking": 4,
    "sync": 4,
    "runner": 5,
    "integrations": 6,
    "__main__": 7,
    "cli": 7,
}
"""The floor of each module, or of each folder with all that is in it."""

FRONT_DOOR_FLOOR = 5
"""``agentmem/__init__.py`` offers the public names, up to the Runner. Nothing in the package imports from it."""


def violations(package: Path) -> list[str]:
    """Each import that goes up or into another engine, and each module on no floor, as ``file:line: what``."""
    found = []
    engines = {folder.name for folder in package.glob("engines/*/")}
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package).as_posix()
        module = where.removesuffix(".py").split("/")
        if module == ["__init__"]:
            floor = FRONT_DOOR_FLOOR
        elif module[0] in FLOORS:
            floor = FLOORS[module[0]]
        else:
            found.append(f"{where}: on no floor")
            continue
        for line, target in imports(file, package):
            if not target:
                found.append(f"{where}:{line}: imports the front door")
            elif FLOORS.get(target[0], -1) > floor:
                found.append(f"{where}:{line}: floor {floor} imports {target[0]}, floor {FLOORS[target[0]]}")
            elif target[0] == module[0] == "engines" and engines & {*target[1:2]} - {*module[1:2]}:
                found.append(f"{where}:{line}: imports the engine {target[1]}")
    return found


def imports(file: Path, package: Path) -> Iterator[tuple[int, list[str]]]:
    """The line of each import of the package's own modules, wherever it stands in the file (in a function and under
    TYPE_CHECKING too), with the parts of the module's name after the package's; none for the package itself."""
    home = [package.name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # "from . import items" names a module; any other name that the root gives is its own.
            named = [alias.name for alias in node.names]
            names = [[*base, name] if name in FLOORS or base[1:] == ["engines"] else base for name in named]
        else:
            continue
        for name in names:
            if name[0] == package.name:
                yield node.lineno, name[1:]


def installed_package() -> Path:
    spec = importlib.util.find_spec("agentmem")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_no_import_goes_up() -> None:
    assert violations(installed_package()) == []


def test_the_installed_package_holds_every_module_of_the_tree(repo: Path) -> None:
    def files(package: Path) -> set[str]:
        return {p.relative_to(package).as_posix() for p in package.rglob("*") if p.suffix in {".py", ".typed"}}

    assert files(installed_package()) == files(repo / "agentmem")
    assert "py.typed" in files(installed_package())


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("replay.py", "from .session import AsyncSession", "replay.py:1: floor 0 imports session, floor 3"),
        ("replay.py", "from . import items, session", "replay.py:1: floor 0 imports session, floor 3"),
        ("replay.py", "import os\nimport agentmem.session", "replay.py:2: floor 0 imports session, floor 3"),
        ("replay.py", "from agentmem.runner.tools import x", "replay.py:1: floor 0 imports runner, floor 5"),
        ("engines/base.py", "from ..store import x", "engines/base.py:1: floor 2 imports store, floor 3"),
        ("engines/__init__.py", "from .. import sync", "engines/__init__.py:1: floor 2 imports sync, floor 4"),
        ("store.py", "def f():\n    from .sync import x", "store.py:2: floor 3 imports sync, floor 4"),
        ("sync.py", "if TYPE_CHECKING:\n    from .runner import x", "sync.py:2: floor 4 imports runner, floor 5"),
        ("__init__.py", "from .cli import main", "__init__.py:1: floor 5 imports cli, floor 7"),
        ("cli.py", "from . import Runner", "cli.py:1: imports the front door"),
        ("cli.py", "from agentmem import Runner", "cli.py:1: imports the front door"),
        ("integrations/x.py", "import agentmem", "integrations/x.py:1: imports the front door"),
        ("engines/b/pool.py", "from ..a.pool import x", "engines/b/pool.py:1: imports the engine a"),
        ("engines/b/pool.py", "from .. import a", "engines/b/pool.py:1: imports the engine a"),
        ("engines/b/pool.py", "import agentmem.engines.a.pool", "engines/b/pool.py:1: imports the engine a"),
        ("engines/pools.py", "from .a import x", "engines/pools.py:1: imports the engine a"),
        (
            "engines/pools.py",
            "if TYPE_CHECKING:\n    from .a.pool import x",
            "engines/pools.py:2: imports the engine a",
        ),
        ("utils.py", "", "utils.py: on no floor"),
    ],
)
def test_the_check_names_each_kind_of_wrong_import(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / "agentmem" / file
    (tmp_path / "agentmem" / "engines" / "a").mkdir(parents=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "agentmem") == [complaint]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("replay.py", "from .items import Item\nimport json, openai.types.responses"),
        ("session.py", "from . import errors, store\nimport agentmem.engines.base"),
        ("engines/base.py", "from .. import errors\nfrom ..items import Item\nfrom . import batching"),
        (
            "engines/a/pool.py",
            "from ..base import Engine\nfrom .. import pools\nfrom . import file\nfrom .file import x",
        ),
        ("runner/__init__.py", "from .result import RunResult\nfrom ..sync import SQLiteSession"),
        ("__init__.py", "from .runner import Runner\nfrom . import errors"),
        ("__main__.py", "from .cli import main"),
    ],
)
def test_imports_that_go_down_or_along_are_fine(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / "agentmem" / file
    (tmp_path / "agentmem" / "engines" / "a").mkdir(parents=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "agentmem") == []


def in_new_interpreter(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_agentmem_loads_nothing_that_a_session_does_not_need(tmp_path: Path) -> None:
    heavy = ["openai", "agents", "asyncpg", "fastapi", "click", "rich"]
    loaded = f"print([name for name in {heavy} if name in sys.modules])"
    assert in_new_interpreter(f"import sys; from agentmem import *; {loaded}", tmp_path) == "[]"


def test_each_public_name_is_loaded_when_it_is_first_used(tmp_path: Path) -> None:
    loaded = "print([name for name in ('pydantic', 'agentmem.session', 'agentmem.runner') if name in sys.modules])"
    assert in_new_interpreter(f"import sys, agentmem; {loaded}", tmp_path) == "[]"
    assert (
        in_new_interpreter(f"import sys; from agentmem import SQLiteSession; {loaded}", tmp_path)
        == "['pydantic', 'agentmem.session']"
    )


def test_errors_items_and_runner_are_attributes_of_the_package(tmp_path: Path) -> None:
    code = "import agentmem; print(agentmem.errors.StorageError, agentmem.items.Item, agentmem.runner.Usage)"
    assert in_new_interpreter(code, tmp_path).startswith("<class 'agentmem.errors.StorageError'>")


def test_every_public_name_is_there_and_listed() -> None:
    for name in agentmem.__all__:
        assert getattr(agentmem, name).__name__ == name
    assert set(agentmem.__all__) <= set(dir(agentmem))
    with pytest.raises(AttributeError, match="'agentmem' has no attribute 'NoSuchName'"):
        agentmem.NoSuchName  # type: ignore[attr-defined]  # noqa: B018  that is the point
