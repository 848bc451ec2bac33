"""The offline model: it knows what was replayed to it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from agentmem.errors import ModelError
from agentmem.runner import Agent, OfflineModel, Runner, function_tool
from agentmem.runner.model import ModelRequest

pytestmark = pytest.mark.anyio


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def reply(*messages: str, agent: Agent | None = None) -> str:
    agent = agent or Agent("A", None, OfflineModel())
    result = await Runner.run(agent, [user(text) for text in messages])
    return str(result.final_output)


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        (["My name is Alice and I love Python."], "I will remember: your name is Alice; you love Python."),
        (["My name is Alice and I love Python.", "What's my name?"], "Your name is Alice."),
        (
            ["My name is Alice and I love Python.", "What is my name and what do I love?"],
            "Your name is Alice. You love Python.",
        ),
        (["My name is Alice.", "Who am I?"], "Your name is Alice."),
        (["I like cats.", "What do I like?"], "You like cats."),
        (["I like cats and dogs.", "Do you remember what I like?"], "You like cats and dogs."),
        (["I prefer dark mode.", "What do I prefer?"], "You prefer dark mode."),
        (["My favourite colour is blue", "What was my favourite colour?"], "Your favourite colour is blue."),
        (["I like cats.", "I like dogs.", "What do I like?"], "You like dogs."),
        (["My name is Bob. What's my name?"], "Your name is Bob."),
        (["What's my name?"], "I don't know your name: it is not in the 1 items that I was sent."),
        (["Hi", "What do I like?"], "I don't know what you like: it is not in the 2 items that I was sent."),
        (["I like cats.", "Hello", "Summarize our conversation."], "You said: I like cats. / Hello"),
        (["x" * 100, "Please summarise."], f"You said: {'x' * 79}…"),
        (["Summarize."], "There is nothing to summarize: I was sent no earlier message of yours."),
    ],
)
async def test_it_answers_from_what_the_user_said(messages: list[str], answer: str) -> None:
    assert await reply(*messages) == answer


async def test_to_anything_else_it_says_what_it_is_and_how_much_it_saw() -> None:
    text = await reply("Hi", "Write me a poem.")
    assert "no language model" in text
    assert "I saw 2 items" in text


async def test_the_same_request_gets_the_same_answer() -> None:
    request = ModelRequest([user("What's the weather in Paris?")], tools=[weather.spec])
    first = await OfflineModel().respond(request)
    assert first == await OfflineModel().respond(request)
    assert first.usage.requests == 1
    assert first.usage.total_tokens == 0


@function_tool
def weather(city: str) -> str:
    """The weather."""
    return f"Sunny in {city}"


@function_tool
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("What's the weather in Paris?", "weather says: Sunny in Paris"),
        ("Please add 2 and 40.", "add says: 42"),
    ],
)
async def test_it_calls_a_tool_that_the_message_names_once(message: str, answer: str) -> None:
    assert await reply(message, agent=Agent("A", None, OfflineModel(), [weather, add])) == answer


async def test_it_calls_no_tool_for_which_the_message_has_no_arguments() -> None:
    assert "offline model" in await reply("add 2", agent=Agent("A", None, OfflineModel(), [weather, add]))


async def test_it_hands_over_to_an_agent_that_the_message_names() -> None:
    billing = Agent("Billing agent", None, OfflineModel())
    agent = Agent("A", None, OfflineModel(), handoffs=[billing])
    result = await Runner.run(agent, "I have a question about billing.")
    assert result.last_agent is billing
    assert str(result.final_output).startswith("Billing agent here. ")


async def test_asked_for_an_output_type_it_says_that_it_cannot() -> None:
    class Answer(BaseModel):
        text: str

    with pytest.raises(ModelError, match="output_type"):
        await Runner.run(Agent("A", None, OfflineModel(), output_type=Answer), "Hi")


async def test_a_history_without_a_user_message_is_answered_too() -> None:
    response = await OfflineModel().respond(ModelRequest([{"role": "system", "content": "x"}]))
    assert "no message from you" in response.output[0]["content"]
