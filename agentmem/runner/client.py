"""The ``openai`` clients that models share: one per event loop, made when a model is first called.

Rules kept here:

- ``openai`` is imported, and a client made, in a worker thread: together they take a second.
- No client is used on a loop other than its own, where asyncio's transports do not work. It closes with the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import anyio.to_thread

from ..errors import ModelError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_DEFAULT_BASE_URL = "https://api.openai.com/v1"

# By loop and environment, so that connections are kept between runs. With each client stands the generator that
# closes it.
_Owned = tuple["AsyncOpenAI", AsyncGenerator[None, None]]
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], _Owned]]
_clients = weakref.WeakKeyDictionary()
_clients_lock = threading.Lock()


async def shared_client() -> AsyncOpenAI:
    """The running loop's client for OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID and OPENAI_PROJECT_ID as they are.

    Raises:
        ModelError: neither a key nor a URL is set, or they make no client.
    """
    environment = tuple(
        os.environ.get(name, "").strip()
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    )
    key, base_url = environment[:2]
    if not key and not base_url:
        raise ModelError(
            "no model to call. Either set OPENAI_API_KEY; or set OPENAI_BASE_URL to a server that speaks the OpenAI "
            "Responses API (with the OPENAI_API_KEY that it wants, if any); or give the agent a model object, such "
            "as Agent(..., model=agentmem.runner.OfflineModel()), which needs no network"
        )
    loop = asyncio.get_running_loop()
    with _clients_lock:
        for closed in [other for other in _clients if other.is_closed()]:
            del _clients[closed]  # its connections refer to the loop, so it would never go by itself
        of_loop = _clients.setdefault(loop, {})
    if environment not in of_loop:
        try:
            client = await anyio.to_thread.run_sync(_make_client, key, base_url or _DEFAULT_BASE_URL)
        except Exception as error:
            raise ModelError(f"no client for {base_url or _DEFAULT_BASE_URL}: {error}") from error
        if environment in of_loop:
            await client.close()  # another task of this loop was faster
        else:
            owner = _close_with_loop(client)
            of_loop[environment] = (client, owner)
            await owner.__anext__()
    return of_loop[environment][0]


def _make_client(key: str, base_url: str) -> AsyncOpenAI:
    # In a worker thread: about 0.8 s to import openai, 0.1 s for its Responses API, 0.03 s to read the
    # certificates for each client (openai 3.54), in which the event loop would stand still.
    from openai import AsyncOpenAI

    # A server that wants no key still gets one, because the client insists. OPENAI_BASE_URL="" counts as not set.
    client = AsyncOpenAI(api_key=key or "none", base_url=base_url)
    _ = client.responses
    return client


async def _close_with_loop(client: AsyncOpenAI) -> AsyncGenerator[None, None]:
    """Stands still until the event loop shuts down, and closes the client then.

    asyncio has one hook for "this loop is about to close": ``loop.shutdown_asyncgens()``, called by
    asyncio.run(), anyio and uvicorn, finishes every async generator that was begun on the loop.
    """
    try:
        yield
    finally:
        with _clients_lock:
            _clients.pop(asyncio.get_running_loop(), None)
        await client.close()
