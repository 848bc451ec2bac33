"""A web server in front of a database: what is sent to a session is added to it as one batch, and can be read.

Starlette's part of FastAPI would do; it is FastAPI because that is what people run. ``DATABASE`` names the database.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from agentmem import AsyncSessionStore

store = AsyncSessionStore(os.environ["DATABASE"], busy_timeout_s=30)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with store:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/{session_id}")
async def add(session_id: str, items: list[dict[str, Any]]) -> int:
    await store.session(session_id).add_items(items)
    return os.getpid()


@app.get("/{session_id}")
async def read(session_id: str) -> list[dict[str, Any]]:
    return await store.session(session_id).get_items()
