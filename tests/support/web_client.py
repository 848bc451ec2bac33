"""The FastAPI example behind a real server, and its users."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from repository import REPO
from waiting import WAIT_S
from web_server import Server, uvicorn

EXAMPLES = REPO / "examples"


def environment(**variables: str) -> dict[str, str]:
    """No key, no server and no other setting than a test gives."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "CHAT_DB"))}
    return {**inherited, "PYTHONIOENCODING": "utf-8", **variables}


@contextmanager
def serving(folder: Path, app: str = "fastapi_app:app", *, workers: int = 1, **variables: str) -> Iterator[Server]:
    """The app, with its database in `folder`."""
    env = environment(**variables)
    with uvicorn(app, app_dir=EXAMPLES, folder=folder, env=env, workers=workers) as server:
        yield server


def client_of(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=64)
    return httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, limits=limits, trust_env=False)


async def say(client: httpx.AsyncClient, user_id: str, text: str) -> str:
    response = await client.post(f"/chat/{user_id}", json={"message": text})
    assert response.status_code == 200, response.text
    return str(response.json()["answer"])


async def history(client: httpx.AsyncClient, user_id: str) -> list[tuple[str, str]]:
    response = await client.get(f"/chat/{user_id}", params={"limit": 1000})
    assert response.status_code == 200, response.text
    return [(item["role"], item["content"]) for item in response.json()]


USERS, ROUNDS = 32, 3


async def converse(client: httpx.AsyncClient, user_id: str) -> list[tuple[str, str]]:
    """A few rounds of telling and asking; what the session must hold after it."""
    expected = []
    for number in range(ROUNDS):
        fact = f"code is {user_id}-{number}"
        for text, answer in (
            (f"My {fact}.", f"I will remember: your {fact}."),
            ("What is my code?", f"Your {fact}."),
        ):
            assert await say(client, user_id, text) == answer
            expected += [("user", text), ("assistant", answer)]
    return expected
