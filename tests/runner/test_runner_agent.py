"""Agents: mistakes are found when the agent is made, and two agents can know each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from agentmem.errors import ModelError
from agentmem.runner import Agent, OfflineModel, OpenAIResponsesModel, function_tool
from agentmem.runner.agent import handoff_name
from agentmem.runner.responses_api import DEFAULT_MODEL


@function_tool
def now() -> str:
    """The time."""
    return "now"


class Answer(BaseModel):
    city: str
    sunny: bool = True


@dataclass
class Point:
    x: int


def test_arguments_may_be_given_by_position() -> None:
    other = Agent("Other", None)
    agent = Agent("A", "Be kind.", "some-model", [now], [other], Answer)
    assert (agent.name, agent.instructions, agent.model) == ("A", "Be kind.", "some-model")
    assert (list(agent.tools), list(agent.handoffs), agent.output_type) == ([now], [other], Answer)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": 3}, "name is a string"),
        ({"instructions": 3}, "instructions is a string, a function or None"),
        ({"model": 3}, "a model's name, a Model object or None"),
        ({"model": OfflineModel}, "the class OfflineModel; make an object"),
        ({"tools": [len]}, "decorate it with @function_tool"),
        ({"tools": ["now"]}, "which is not a tool"),
        ({"handoffs": ["A"]}, "handoffs is a list of agents"),
        ({"handoffs": "A"}, "handoffs is a list of agents"),
        ({"output_type": int}, "a pydantic model or a dataclass"),
        ({"output_type": list[int]}, "a pydantic model or a dataclass"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_by_name(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        Agent(**{"name": "A", "instructions": None, **arguments})


def test_an_agent_needs_nothing_but_a_name() -> None:
    agent = Agent("A")
    assert (agent.name, agent.instructions, agent.model, agent.tools, agent.handoffs) == ("A", None, None, (), ())
    assert Agent("A", model="some-model").model == "some-model"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": ""}, "must not be empty"),
        ({"tools": [now, now]}, "more than one tool or handoff called now"),
        ({"handoffs": [Agent("My Bot", ""), Agent("my-bot", "")]}, "called transfer_to_my_bot"),
        ({"handoffs": [Agent("日本", "")]}, "ASCII letter"),
        ({"handoffs": [Agent("x" * 60, "")]}, "1 to 64"),
        ({"tools": [function_tool(name="transfer_to_b")(now)], "handoffs": [Agent("B", "")]}, "transfer_to_b"),
    ],
)
def test_names_that_cannot_be_told_apart_or_sent_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Agent(**{"name": "A", "instructions": None, **arguments})


def test_two_agents_can_hand_over_to_each_other_through_a_list() -> None:
    friends: list[Agent] = []
    a = Agent("A", "", handoffs=friends)
    b = Agent("B", "", handoffs=[a])
    friends.append(b)
    assert a.handoff_targets() == {"transfer_to_b": b}
    assert b.handoff_targets() == {"transfer_to_a": a}
    assert "B" not in repr(a)


def test_a_handoff_is_offered_as_a_strict_function_without_arguments() -> None:
    [tool, handoff] = Agent("A", "", tools=[now], handoffs=[Agent("Spanish agent!", "")]).tool_specs()
    assert tool["name"] == "now"
    assert handoff["name"] == handoff_name(Agent("Spanish agent!", "")) == "transfer_to_spanish_agent"
    assert handoff["strict"] is True
    assert handoff["parameters"]["properties"] == {}
    assert "Spanish agent!" in handoff["description"]


def test_the_model_is_the_agents_or_the_environments_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(agent: Agent) -> str:
        model = agent.resolve_model()
        assert isinstance(model, OpenAIResponsesModel)
        return model.model

    monkeypatch.delenv("OPENAI_DEFAULT_MODEL", raising=False)
    assert name(Agent("A", "")) == DEFAULT_MODEL
    monkeypatch.setenv("OPENAI_DEFAULT_MODEL", "env-model")
    assert name(Agent("A", "")) == "env-model"
    assert name(Agent("A", "", "own-model")) == "own-model"
    model = OfflineModel()
    assert Agent("A", "", model).resolve_model() is model


def test_an_output_type_is_asked_for_in_strict_mode_and_parsed() -> None:
    agent = Agent("A", "", output_type=Answer)
    assert agent.text_format is not None
    assert {k: agent.text_format[k] for k in ("type", "name", "strict")} == {
        "type": "json_schema",
        "name": "Answer",
        "strict": True,
    }
    assert agent.text_format["schema"]["required"] == ["city", "sunny"]
    assert agent.parse('{"city": "Nice", "sunny": false}') == Answer(city="Nice", sunny=False)
    assert Agent("A", "", output_type=Point).parse('{"x": 3}') == Point(3)
    assert Agent("A", "").parse("text") == "text"


def test_a_text_that_is_no_output_type_is_a_model_error_that_quotes_it() -> None:
    with pytest.raises(ModelError, match=r"not a valid Answer \(Field required\).*\{\}"):
        Agent("A", "", output_type=Answer).parse("{}")
