"""The ``openai`` clients that models share: one for each event loop and environment, created by the first call.

Rules:

- ``openai`` is imported, and a client is created, in a thread, because together they take a second.
- A client is used only on its own event loop, because asyncio's transports work on no other. It is closed when the loop
  shuts down.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import weakref
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..event_loop import running_loop
from ..threads import call_in_thread

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_DEFAULT_BASE_URL = "https://api.openai.com/v1"

_ENVIRONMENT = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")

# Kept by loop and environment, so that connections are kept between runs. Each client has the generator that closes it.
_ClientAndCloser = tuple["AsyncOpenAI", AsyncGenerator[None, None]]
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], _ClientAndCloser]]
_clients = weakref.WeakKeyDictionary()
_clients_lock = threading.Lock()


def clients_by_loop() -> dict[asyncio.AbstractEventLoop, list[AsyncOpenAI]]:
    """Return the clients that are open, by their event loop."""
    with _clients_lock:
        return {loop: [client for client, _ in clients.values()] for loop, clients in _clients.items()}


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
    loop = running_loop()
    with _clients_lock:
        for closed_loop in [other for other in _clients if other.is_closed()]:
            # The client's connections refer to the loop, so the weak dictionary would never drop it.
            del _clients[closed_loop]
        clients = _clients.setdefault(loop, {})
    if environment not in clients:
        try:
            client = await call_in_thread(partial(_create_client, key, base_url or _DEFAULT_BASE_URL))
        except Exception as error:
            raise ModelError(f"no client for {shown_url(base_url or _DEFAULT_BASE_URL)}: {error}") from error
        if environment in clients:
            await client.close()  # another task of this loop was faster
        else:
            closer = _close_with_loop(client)
            clients[environment] = (client, closer)
            await closer.__anext__()
    return clients[environment][0]


def shown_url(url: object) -> str:
    """Return a URL for messages: without the user and the password that may stand before its host."""
    return re.sub(r"(?<=://)[^/?#]*@", "", str(url))


def _create_client(key: str, base_url: str) -> AsyncOpenAI:
    # In a thread, because it would block the event loop: the import of openai takes about 0.8 s, that of its
    # Responses API 0.1 s, and the certificates 0.03 s for each client (openai 3.54).
    from openai import AsyncOpenAI

    # The client insists on a key, also for a server that needs none. OPENAI_BASE_URL="" counts as not set.
    client = AsyncOpenAI(api_key=key or "none", base_url=base_url)
    _ = client.responses
    return client


async def _close_with_loop(client: AsyncOpenAI) -> AsyncGenerator[None, None]:
    """Wait until the event loop shuts down, then close the client.

    asyncio has one hook for a loop that is about to close: ``loop.shutdown_asyncgens()``, which asyncio.run(), anyio
    and uvicorn call. It finishes every async generator that was started on the loop.
    """
    try:
        yield
    finally:
        with _clients_lock:
            _clients.pop(asyncio.get_running_loop(), None)
        await client.close()
