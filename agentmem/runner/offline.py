"""A model without a network or a language model: rules that answer from what was replayed to it.

For demos, documentation and tests. The same request always gets the same answer, and what is not in the
request is not known, so a session that replays little visibly forgets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pydantic_core import to_json

from ..errors import ModelError
from ..items import Item, message_text
from .model import ModelRequest, ModelResponse

_VERBS = "love|like|prefer|hate|want|need|have|use|live|work|study"
# A fact ends with its sentence or where the next one begins: "My name is Alice and I love Python."
_END = r"(?=[.!?;,\n]|\s+(?:and|but)\s+(?:I|my)\b|$)"
_FACT = re.compile(rf"\bmy ([\w ]+?) (is|are) (.+?){_END}|\bI ({_VERBS}) (.+?){_END}", re.IGNORECASE)
_ASKED = re.compile(
    rf"\bmy ([\w ]+?)(?=\s+(?:and|is|are|was|were)\b|[?.!,]|$)|\bI ({_VERBS})\b|(\bwho am I\b)", re.IGNORECASE
)
_QUESTION = re.compile(r"\?|^\s*(what|who|where|when|which|how|do|does|am|is|are|can|tell|remember)\b", re.IGNORECASE)

# A tool or agent is meant where all words of its name but these are in the message.
_SMALL_WORDS = {"get", "find", "fetch", "look", "up", "lookup", "show", "tell", "ask", "the", "a", "an", "of", "for"}
_SMALL_WORDS |= {"in", "to", "by", "agent", "tool", "transfer"}
# Words with a capital that are no name.
_NO_NAMES = {"What", "What's", "How", "How's", "Is", "Are", "Do", "Does", "Can", "Could", "Please", "The", "A", "An"}
_NO_NAMES |= {"I", "I'm", "Tell", "Show", "Give", "Which", "And", "Ask"}


class OfflineModel:
    """Answers from the replayed history by a few fixed rules. It is no language model, and says so.

    It remembers ``My … is …`` and ``I like …`` (love, prefer, live, use, …; the latest statement counts), answers
    questions about them, summarizes what the user said, hands over to an agent whose name is mentioned, and
    calls a tool whose name is mentioned, with the capitalised words and the numbers of the message.
    Its usage counts requests and no tokens, because there are none.
    """

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """See :meth:`~agentmem.runner.Model.respond`.

        Raises:
            ModelError: the agent has an ``output_type``; these rules write no JSON.
        """
        if request.text_format is not None:
            raise ModelError("the offline model cannot answer in an output_type; use a language model")
        said = [message_text(item) for item in request.input if item.get("role") == "user"]
        turn = _since_last_user_message(request.input)
        call = _call(said[-1] if said else "", turn, request.tools)
        if call is not None:
            digest = hashlib.sha256(to_json(request.input, inf_nan_mode="strings", serialize_unknown=True)).hexdigest()
            return ModelResponse([{"type": "function_call", "call_id": f"call_{digest[:24]}", **call}])
        text = _handed_to(turn) + (_tool_answer(turn) or _answer(said, len(request.input)))
        return ModelResponse([{"type": "message", "role": "assistant", "content": text}])

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Item | ModelResponse, None]:
        """See :meth:`~agentmem.runner.StreamingModel.stream`; the text comes word by word."""
        response = await self.respond(request)
        for item in response.output:
            for word in re.findall(r"\S+\s*", message_text(item)):
                yield word
            yield item
        yield response


def _answer(said: list[str], seen: int) -> str:
    if not said:
        return f"I am agentmem's offline model, no language model. I saw {seen} items and no message from you."
    *before, message = said
    if re.search(r"\bsummar", message, re.IGNORECASE):
        return _summary(before)
    asked = _asked(message)
    if asked:
        return " ".join(_recall(subject, _facts(said), seen) for subject in asked)
    if _facts([message]):
        return "I will remember: " + "; ".join(_facts([message]).values()) + "."
    return (
        f"I am agentmem's offline model, no language model. I saw {seen} items, and I can tell you what you told "
        "me about yourself, or summarize our conversation."
    )


def _facts(messages: list[str]) -> dict[str, str]:
    """What the user said of themselves, turned round to "you"; later statements replace earlier ones."""
    facts: dict[str, str] = {}
    statements = (text for message in messages for text in _sentences(message) if not _QUESTION.search(text))
    for statement in statements:
        for noun, copula, value, verb, thing in _FACT.findall(statement):
            if noun:
                facts[noun.lower()] = f"your {noun.lower()} {copula.lower()} {value}"
            else:
                facts[verb.lower()] = f"you {verb.lower()} {thing}"
    return facts


def _asked(message: str) -> list[str]:
    questions = " ".join(text for text in _sentences(message) if _QUESTION.search(text))
    return [(noun or verb or "name").lower() for noun, verb, _ in _ASKED.findall(questions)]


def _sentences(message: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", message)


def _recall(subject: str, facts: dict[str, str], seen: int) -> str:
    fact = facts.get(subject)
    if fact is not None:
        return f"{fact[0].upper()}{fact[1:]}."
    what = f"what you {subject}" if re.fullmatch(_VERBS, subject) else f"your {subject}"
    return f"I don't know {what}: it is not in the {seen} items that I was sent."


def _summary(messages: list[str]) -> str:
    if not messages:
        return "There is nothing to summarize: I was sent no earlier message of yours."
    lines = (message if len(message) <= 80 else f"{message[:79]}…" for message in messages)
    return "You said: " + " / ".join(lines)


def _since_last_user_message(items: Sequence[Item]) -> list[Item]:
    turn: list[Item] = []
    for item in items:
        turn = [] if item.get("role") == "user" else [*turn, item]
    return turn


def _tool_answer(turn: list[Item]) -> str:
    """What the tools of this turn answered; a handoff's output is not for the user."""
    names = {item.get("call_id"): str(item.get("name")) for item in turn if item.get("type") == "function_call"}
    outputs = [item for item in turn if item.get("type") == "function_call_output"]
    told = [(names.get(item.get("call_id"), "tool"), item.get("output")) for item in outputs]
    return " ".join(f"{name} says: {text}" for name, text in told if not name.startswith("transfer_to_"))


def _handed_to(turn: list[Item]) -> str:
    """A word of welcome from the agent that the conversation was handed to in this turn."""
    names = re.findall(r'^{"assistant":"(.+)"}$', "\n".join(str(item.get("output")) for item in turn), re.MULTILINE)
    return f"{names[-1]} here. " if names else ""


def _call(message: str, turn: list[Item], tools: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first tool that the message names, with arguments from the message, unless it was called in this turn."""
    called = {item.get("name") for item in turn if item.get("type") == "function_call"}
    words = set(re.findall(r"[^\W_]+", message.lower()))
    for tool in tools:
        meant = set(tool["name"].lower().split("_")) - _SMALL_WORDS
        arguments = _arguments(message, tool["parameters"]) if meant and meant <= words else None
        if arguments is not None and tool["name"] not in called:
            return {"name": tool["name"], "arguments": to_json(arguments).decode()}
    return None


def _arguments(message: str, schema: dict[str, Any]) -> dict[str, Any] | None:
    """Values for the required parameters, in their order; None where the message does not have enough."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", message)
    names = [word for word in re.findall(r"[A-Z][\w'-]*|\d[\w-]*", message) if word not in _NO_NAMES]
    kinds = {name: schema["properties"][name].get("type") for name in schema.get("required", ())}
    texts = sum(kind == "string" for kind in kinds.values())
    names = names[len(names) - texts :] if texts <= len(names) else []
    arguments: dict[str, Any] = {}
    for name, kind in kinds.items():
        values = {"string": names, "integer": numbers, "number": numbers}.get(str(kind), [])
        if not values:
            return None
        value = values.pop(0)
        arguments[name] = value if kind == "string" else (int(float(value)) if kind == "integer" else float(value))
    return arguments
