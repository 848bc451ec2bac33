"""The ``openai`` clients that models share: one for each event loop and environment, created by the first call.

Rules:

- ``openai`` is imported, and a client is created, in a thread, because together they take a second.
- A client is used only on its own event loop, and closed when that shuts down; see ``loop_clients``.
"""

from __future__ import annotations

import asyncio
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from ..errors import ModelError
from .loop_clients import LoopClients

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_DEFAULT_BASE_URL = "https://api.openai.com/v1"

_ENVIRONMENT = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")

_clients: LoopClients[AsyncOpenAI] = LoopClients(lambda client: client.close())


def clients_by_loop() -> dict[asyncio.AbstractEventLoop, list[AsyncOpenAI]]:
    """Return the clients that are open, by their event loop."""
    return _clients.open()


async def shared_client() -> AsyncOpenAI:
    """Return the running loop's client for the current environment.

    The environment is OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID and OPENAI_PROJECT_ID.

    Raises:
        ModelError: neither a key nor a URL is set, or the client refuses them.
    """
    environment = tuple(os.environ.get(name, "").strip() for name in _ENVIRONMENT)
    key, base_url = environment[:2]
    if not key and not base_url:
        raise ModelError(
            "no model to call. Either set OPENAI_API_KEY; or set OPENAI_BASE_URL to a server that speaks the OpenAI "
            "Responses API (with the OPENAI_API_KEY that it wants, if any); or give the agent a model object, such "
            "as Agent(..., model=agentmem.runner.OfflineModel()), which needs no network"
        )
    return await _clients.get(environment, partial(_create_client, key, base_url or _DEFAULT_BASE_URL))


def shown_url(url: object) -> str:
    """Return a URL for messages: without the user and the password that may stand before its host."""
    return re.sub(r"(?<=://)[^/?#]*@", "", str(url))


def _create_client(key: str, base_url: str) -> AsyncOpenAI:
    # In a thread, because it would block the event loop: the import of openai takes about 0.8 s, that of its
    # Responses API 0.1 s, and the certificates 0.03 s for each client (openai 3.54).
    try:
        from openai import AsyncOpenAI

        # The client insists on a key, also for a server that needs none. OPENAI_BASE_URL="" counts as not set.
        client = AsyncOpenAI(api_key=key or "none", base_url=base_url)
        _ = client.responses
    except Exception as error:
        raise ModelError(f"no client for {shown_url(base_url)}: {error}") from error
    return client
