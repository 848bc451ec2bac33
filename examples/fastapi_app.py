"""A chat with memory behind HTTP: one store for the app, one session for each user.

    pip install fastapi uvicorn
    uvicorn fastapi_app:app
    curl localhost:8000/chat/alice -H "content-type: application/json" -d '{"message": "My name is Alice."}'
    curl localhost:8000/chat/alice

CHAT_DB names the database: a file (the default is conversations.db in the current folder), or one that many machines
share, CHAT_DB=postgresql://user@host/database (`pip install asyncpg`). With either, `--workers 4` uses four cores.
Behind a real server, take the user's id from who is logged in, never from the URL.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse

from agentmem import Agent, AgentMemError, AsyncSession, AsyncSessionStore, Runner, SessionSettings
from agentmem.errors import ModelError, StorageBusyError, StorageFullError
from agentmem.runner import OfflineModel

# OfflineModel needs no key and answers by a few fixed rules. For a real model set OPENAI_API_KEY and leave
# `model` out, or name one: model="gpt-5.6-luna".
agent = Agent("Assistant", "Answer briefly.", model=OfflineModel())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncSessionStore(os.environ.get("CHAT_DB", "conversations.db"), busy_timeout_s=2) as app.state.store:
        yield


app = FastAPI(lifespan=lifespan)


async def user_session(request: Request, user_id: Annotated[str, Path(pattern=r"^[\w.@-]{1,100}$")]) -> AsyncSession:
    store: AsyncSessionStore = request.app.state.store
    return store.session(user_id, settings=SessionSettings(max_turns=20))


UserSession = Annotated[AsyncSession, Depends(user_session)]
Text = Annotated[str, Body(embed=True, min_length=1, max_length=10_000)]
Limit = Annotated[int, Query(ge=0, le=1_000)]


@app.post("/chat/{user_id}")
async def chat(session: UserSession, message: Text) -> dict[str, str]:
    result = await Runner.run(agent, message, session=session)
    return {"answer": result.final_output}


@app.get("/chat/{user_id}")
async def history(session: UserSession, limit: Limit = 100) -> list[dict[str, Any]]:
    return await session.get_items(limit=limit)


STATUS: dict[type[AgentMemError], int] = {StorageBusyError: 503, StorageFullError: 507, ModelError: 502}


@app.exception_handler(AgentMemError)
async def failed(request: Request, error: AgentMemError) -> JSONResponse:
    """None of these loses anything: what was answered is stored, and what was not can be sent again."""
    logging.getLogger("uvicorn.error").error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": f"not answered: {type(error).__name__}"}, STATUS.get(type(error), 500))
