"""Agents of the Agents SDK: their runs are handed over to the SDK's own Runner.

The SDK is never imported here. A caller who has one of its agents has loaded it.

Connections: the SDK's models share one HTTP client in the whole process. A connection works only on the event loop that
opened it, but the client hands it out on any. ``Runner.run_sync`` runs on agentmem's background loop, beside the
caller's. So the models that the SDK makes for a run get an HTTP client that belongs to the running loop. A model object
of the caller's keeps its client, which may have a proxy or certificates.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ..cancellation import despite_cancellation
from .config import RunConfig
from .loop_clients import LoopClients

_ADVICE = (
    "agentmem: a client that was given to a model object of the Agents SDK works on one event loop only, and "
    "Runner.run_sync has a loop of its own. Use either Runner.run_sync or `await Runner.run` with that object, or name "
    'the model: Agent(model="name")'
)

_http_clients: LoopClients[Any] = LoopClients(lambda client: client.aclose())


def sdk_runner(agent: object, run_config: object) -> Any:
    """Return the SDK's ``Runner`` if `agent` is an agent of the SDK, else None.

    Raises:
        TypeError: it is, and ``run_config`` is agentmem's and not the SDK's.
    """
    if not any(base.__module__ == "agents.agent" for base in type(agent).__mro__):
        return None
    if isinstance(run_config, RunConfig):
        raise TypeError("an Agents SDK agent takes a run_config of the SDK's, agents.RunConfig(...)")
    return sys.modules["agents"].Runner


@asynccontextmanager
async def own_connections(run_config: Any) -> AsyncIterator[Any]:
    """Yield the run_config with which the SDK's models use connections of the running event loop alone.

    Args:
        run_config: the SDK's, or a dict of its fields, or None. It is not changed.

    Raises:
        Everything that the block raises. asyncio's error for what belongs to another event loop has a note that says
        what to do.
    """
    is_dict = isinstance(run_config, dict)
    given = run_config.get("model_provider") if is_dict else getattr(run_config, "model_provider", None)
    provider = sys.modules["agents"].MultiProvider() if given is None else given  # the SDK's default
    try:
        yield _with_provider(run_config, _apart(provider, await _http_clients.get("", _create_http_client)))
    except RuntimeError as error:
        if "event loop" in str(error):  # "is bound to a different event loop", "Event loop is closed"
            error.add_note(_ADVICE)
        raise
    finally:
        if given is None:  # as the SDK's Runner closes one that it made
            await despite_cancellation(provider.aclose())


def _with_provider(run_config: Any, provider: Any) -> Any:
    run_config_class = sys.modules["agents"].RunConfig
    if run_config is None:
        return run_config_class(model_provider=provider)
    if isinstance(run_config, dict):
        return {**run_config, "model_provider": provider}
    if not isinstance(run_config, run_config_class):
        return run_config  # the SDK says what is wrong with it
    config = copy.copy(run_config)
    config.model_provider = provider
    return config


def _apart(provider: Any, http_client: Any) -> Any:
    """A copy of one of the SDK's own providers, whose models use `http_client`; any other provider as it is."""
    agents = sys.modules["agents"]
    if not isinstance(provider, (agents.MultiProvider, agents.OpenAIProvider)):
        return provider
    apart = copy.copy(provider)
    apart.get_model = lambda name: _model_apart(provider.get_model(name), http_client)
    return apart


def _model_apart(model: Any, http_client: Any) -> Any:
    """A copy of a model that uses `http_client`, if the model's own HTTP client was not made by the caller.

    The SDK's models and openai's clients have no public attribute for what they hold. A release in which it has another
    name shares its connections again, and has :data:`_ADVICE`.
    """
    agents = sys.modules["agents"]
    client: Any = getattr(model, "_client", None)
    connections = getattr(client, "_client", None)
    # By their exact types: the model for websockets, a subclass, keeps its connections apart by itself.
    if type(model) not in (agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel) or not (
        connections is sys.modules["agents.models.openai_provider"].shared_http_client()
        or type(connections).__name__ == "AsyncHttpxClientWrapper"  # which openai makes where it is given none
    ):
        return model
    apart = copy.copy(model)
    apart._client = client.copy(http_client=http_client)
    return apart


def _create_http_client() -> Any:
    # In a thread, because reading the certificates takes 0.03 s.
    import openai

    return openai.DefaultAsyncHttpxClient()
