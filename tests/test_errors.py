"""The error tree: its drawing is the truth, and every error survives what Python does with errors."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from agentmem import errors

BUILTIN = {kind.__name__: kind for kind in (ValueError, RuntimeError, ImportError, UserWarning)}


def drawn() -> dict[str, tuple[str, ...]]:
    """The base classes of each class in the module's docstring, by name."""
    assert errors.__doc__ is not None
    bases: dict[str, tuple[str, ...]] = {}
    above: list[str] = []  # the classes from the root down to the line before
    for line in errors.__doc__.splitlines():
        found = re.fullmatch(r"    ([│├└─ ]*)([A-Z]\w+)(?: \((\w+)\))?(?: {3,}\S.*)?", line)
        if found is None:
            continue
        branch, name, builtin = found.groups()
        del above[len(branch) // 4 :]
        bases[name] = tuple(filter(None, [above[-1] if above else None, builtin]))
        above.append(name)
    return bases


def defined() -> dict[str, type[BaseException]]:
    """The exception classes that the module defines, by name."""
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if kind.__module__ == errors.__name__}


@pytest.mark.parametrize("name", sorted(drawn().keys() | defined().keys()))
def test_the_tree_in_the_docstring_is_the_tree_of_classes(name: str) -> None:
    kind = defined()[name]
    assert tuple(base.__name__ for base in kind.__bases__) == (drawn()[name] or ("Exception",))
    assert all(base in (*defined().values(), *BUILTIN.values(), Exception) for base in kind.__bases__)


def test_the_tree_is_the_one_that_users_were_promised() -> None:
    assert {name: drawn()[name] for name in drawn() if len(drawn()[name]) == 2} == {
        "InvalidItemError": ("AgentMemError", "ValueError"),
        "SessionClosedError": ("AgentMemError", "RuntimeError"),
        "MissingDependencyError": ("AgentMemError", "ImportError"),
    }
    for kind in ("StorageBusyError", "StorageFullError", "StorageCorruptError", "SchemaVersionError"):
        assert drawn()[kind] == ("StorageError",)
    for kind in ("MaxTurnsExceeded", "ModelError", "ToolError"):
        assert drawn()[kind] == ("RunError",)


@pytest.mark.parametrize("name", [name for name in drawn() if not name.endswith("Warning")])
def test_the_root_catches_every_error(name: str) -> None:
    assert issubclass(defined()[name], errors.AgentMemError)


@pytest.mark.parametrize("kind", [errors.CorruptItemWarning, errors.HardLinkWarning])
def test_a_warning_is_no_error(kind: type[Warning]) -> None:
    assert issubclass(kind, UserWarning)
    assert not issubclass(kind, errors.AgentMemError)


def test_an_invalid_item_error_names_the_item_and_the_place_in_it() -> None:
    error = errors.InvalidItemError("item 2 at $.a: no", index=2, path="$.a")
    assert (str(error), error.index, error.path) == ("item 2 at $.a: no", 2, "$.a")


@pytest.mark.parametrize("name", sorted(defined()))
def test_every_error_crosses_a_process_boundary(name: str) -> None:
    """A pool of processes that cannot pickle an error hangs or breaks instead of raising it."""
    where: dict[str, object] = {"index": 3, "path": "$.a[0]"} if name == "InvalidItemError" else {}
    if issubclass(defined()[name], errors.StorageError):
        where["in_doubt"] = True
    error = defined()[name]("what happened", **where)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert twin.args == ("what happened",)
        assert vars(twin) == where


@pytest.mark.parametrize("name", [name for name in drawn() if not issubclass(defined()[name], Warning)])
def test_every_error_says_that_it_is_not_in_doubt_unless_it_was_made_so(name: str) -> None:
    assert defined()[name]("what happened").in_doubt is False  # type: ignore[attr-defined]  # not of the warning's


@pytest.mark.parametrize("name", sorted(defined()))
def test_every_error_says_what_it_means(name: str) -> None:
    assert defined()[name].__doc__
