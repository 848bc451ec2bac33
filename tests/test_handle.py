"""Sessions, stores and streams: they are weakly referenced, and refuse to be pickled or copied by name."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmem import Agent, AsyncSessionStore, AsyncSQLiteSession, RunContext, Runner, SessionStore, SQLiteSession
from agentmem.engines import ENGINES
from agentmem.integrations import openai_agents
from agentmem.runner import OfflineModel

MAKERS: dict[str, Callable[[Path], Any]] = {
    "AsyncSQLiteSession": lambda path: AsyncSQLiteSession(path, session_id="alice"),
    "SQLiteSession": lambda path: SQLiteSession(path, session_id="alice"),
    "AsyncSession": lambda path: AsyncSessionStore(path).session("alice"),
    "Session": lambda path: SessionStore(path).session("alice"),
    "AsyncSessionStore": AsyncSessionStore,
    "SessionStore": SessionStore,
    "the SDK's AsyncSQLiteSession": lambda path: openai_agents.AsyncSQLiteSession("alice", path),
    "the SDK's SQLiteSession": lambda path: openai_agents.SQLiteSession("alice", path),
    "RunStream": lambda path: Runner.run_streamed(Agent("A", None, model=OfflineModel()), "Hi"),
}


@dataclasses.dataclass
class State:
    """An application's own state, which holds a session."""

    handle: Any


@pytest.fixture(params=MAKERS)
def handle(request: pytest.FixtureRequest, path: Path) -> Any:
    """A handle of each kind, unused; of a store, one on each engine is as good as another."""
    return MAKERS[request.param](path)


COPIES: dict[str, Callable[[Any], object]] = {
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": lambda handle: dataclasses.asdict(State(handle)),
    "asdict of a context": lambda handle: dataclasses.asdict(RunContext(handle, "A")),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_handle_refuses_to_be_copied_and_says_what_to_pass_instead(handle: Any, how: str) -> None:
    with pytest.raises(
        TypeError, match=f"^{type(handle).__name__} cannot be pickled or copied .* make a new"
    ) as raised:
        COPIES[how](handle)
    assert raised.value.__cause__ is None


def test_a_handle_that_is_open_refuses_likewise(path: Path) -> None:
    with SessionStore(path) as store:
        for handle in (store, store.async_store, store.session("alice"), store.session("alice").async_session):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                copy.deepcopy(handle)


def test_a_handle_is_weakly_referenced_and_goes_with_its_last_reference(handle: Any) -> None:
    handles = [handle]
    reference = weakref.ref(handle)
    assert reference() is handles.pop()
    assert len(weakref.WeakSet([handle])) == 1


def test_a_session_of_a_store_is_collected_when_it_is_dropped(path: Path) -> None:
    with SessionStore(path) as store:
        reference = weakref.ref(store.session("alice"))
        gc.collect()
        assert reference() is None


@pytest.mark.parametrize("scheme", sorted(ENGINES))
def test_no_engine_comes_through_a_copy(scheme: str, request: pytest.FixtureRequest) -> None:
    store = AsyncSessionStore(request.getfixturevalue(f"empty_{scheme}"))
    with pytest.raises(TypeError, match="AsyncSessionStore cannot be pickled"):
        pickle.dumps(store)
