"""The offline model: a few rules that answer from the replayed history, without a network or a language model.

It is for demos, documentation and tests. Equal requests get equal answers. The model knows only what is in the request,
so a session that replays little visibly forgets.
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
# A fact ends with its sentence, or where the next fact begins: "My name is Alice and I love Python."
_FACT_END = r"(?=[.!?;,\n]|\s+(?:and|but)\s+(?:I|my)\b|$)"
_FACT = re.compile(rf"\bmy ([\w ]+?) (is|are) (.+?){_FACT_END}|\bI ({_VERBS}) (.+?){_FACT_END}", re.IGNORECASE)
_ASKED_ABOUT = re.compile(
    rf"\bmy ([\w ]+?)(?=\s+(?:and|is|are|was|were)\b|[?.!,]|$)|\bI ({_VERBS})\b|(\bwho am I\b)", re.IGNORECASE
)
_QUESTION = re.compile(r"\?|^\s*(what|who|where|when|which|how|do|does|am|is|are|can|tell|remember)\b", re.IGNORECASE)

# A message names a tool or an agent if it has all words of the name, apart from these.
_SMALL_WORDS = {"get", "find", "fetch", "look", "up", "lookup", "show", "tell", "ask", "the", "a", "an", "of", "for"}
_SMALL_WORDS |= {"in", "to", "by", "agent", "tool", "transfer"}
# Capitalized words that are not names.
_NOT_NAMES = {"What", "What's", "How", "How's", "Is", "Are", "Do", "Does", "Can", "Could", "Please", "The", "A", "An"}
_NOT_NAMES |= {"I", "I'm", "Tell", "Show", "Give", "Which", "And", "Ask"}


class OfflineModel:
    """A model that answers from the replayed history by a few fixed rules. It is not a language model, and says so.

    It remembers ``My … is …`` and ``I like …`` (love, prefer, live, use, …; the latest statement counts) and answers
    questions about these facts. It summarizes what the user said. It hands over to an agent whose name is in the
    message. It calls a tool whose name is in the message, with the capitalized words and the numbers of the message as
    arguments. Its usage counts requests; there are no tokens.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """Return the answer to a request; see :meth:`~agentmem.runner.Model.respond`.

        Raises:
            ModelError: the agent has an ``output_type``; the rules cannot write JSON.
        """
        if request.text_format is not None:
            raise ModelError("the offline model cannot answer in an output_type; use a language model")
        user_texts = [message_text(item) for item in request.input if item.get("role") == "user"]
        turn = _since_last_user_message(request.input)
        call = _choose_call(user_texts[-1] if user_texts else "", turn, request.tools)
        if call is not None:
            digest = hashlib.sha256(to_json(request.input, inf_nan_mode="strings", serialize_unknown=True)).hexdigest()
            return ModelResponse([{"type": "function_call", "call_id": f"call_{digest[:24]}", **call}])
        text = _handoff_greeting(turn) + (_report_tool_outputs(turn) or _answer(user_texts, len(request.input)))
        return ModelResponse([{"type": "message", "role": "assistant", "content": text}])

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Item | ModelResponse, None]:
        """Yield the answer word by word; see :meth:`~agentmem.runner.StreamingModel.stream`."""
        response = await self.respond(request)
        for item in response.output:
            for word in re.findall(r"\S+\s*", message_text(item)):
                yield word
            yield item
        yield response


def _answer(user_texts: list[str], item_count: int) -> str:
    if not user_texts:
        return f"I am agentmem's offline model, no language model. I saw {item_count} items and no message from you."
    *earlier, message = user_texts
    if re.search(r"\bsummar", message, re.IGNORECASE):
        return _summarize(earlier)
    subjects = _asked_subjects(message)
    if subjects:
        return " ".join(_recall(subject, _facts(user_texts), item_count) for subject in subjects)
    if _facts([message]):
        return "I will remember: " + "; ".join(_facts([message]).values()) + "."
    return (
        f"I am agentmem's offline model, no language model. I saw {item_count} items, and I can tell you what you told "
        "me about yourself, or summarize our conversation."
    )


def _facts(messages: list[str]) -> dict[str, str]:
    """Return what the user said about themselves, in the second person, by its subject; the latest statement counts."""
    facts: dict[str, str] = {}
    statements = (text for message in messages for text in _sentences(message) if not _QUESTION.search(text))
    for statement in statements:
        for noun, copula, value, verb, thing in _FACT.findall(statement):
            if noun:
                facts[noun.lower()] = f"your {noun.lower()} {copula.lower()} {value}"
            else:
                facts[verb.lower()] = f"you {verb.lower()} {thing}"
    return facts


def _asked_subjects(message: str) -> list[str]:
    """Return what the message asks about: "name" for "What is my name?", "like" for "What do I like?"."""
    questions = " ".join(text for text in _sentences(message) if _QUESTION.search(text))
    return [(noun or verb or "name").lower() for noun, verb, _ in _ASKED_ABOUT.findall(questions)]


def _sentences(message: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", message)


def _recall(subject: str, facts: dict[str, str], item_count: int) -> str:
    fact = facts.get(subject)
    if fact is not None:
        return f"{fact[0].upper()}{fact[1:]}."
    what = f"what you {subject}" if re.fullmatch(_VERBS, subject) else f"your {subject}"
    return f"I don't know {what}: it is not in the {item_count} items that I was sent."


def _summarize(messages: list[str]) -> str:
    if not messages:
        return "There is nothing to summarize: I was sent no earlier message of yours."
    lines = (message if len(message) <= 80 else f"{message[:79]}…" for message in messages)
    return "You said: " + " / ".join(lines)


def _since_last_user_message(items: Sequence[Item]) -> list[Item]:
    turn: list[Item] = []
    for item in items:
        turn = [] if item.get("role") == "user" else [*turn, item]
    return turn


def _report_tool_outputs(turn: list[Item]) -> str:
    """Report the outputs of the tools in this turn; the output of a handoff is not for the user."""
    names = {item.get("call_id"): str(item.get("name")) for item in turn if item.get("type") == "function_call"}
    outputs = [item for item in turn if item.get("type") == "function_call_output"]
    named_outputs = [(names.get(item.get("call_id"), "tool"), item.get("output")) for item in outputs]
    return " ".join(f"{name} says: {text}" for name, text in named_outputs if not name.startswith("transfer_to_"))


def _handoff_greeting(turn: list[Item]) -> str:
    """The greeting of the agent that the conversation was handed over to in this turn; "" without a handoff."""
    names = re.findall(r'^{"assistant":"(.+)"}$', "\n".join(str(item.get("output")) for item in turn), re.MULTILINE)
    return f"{names[-1]} here. " if names else ""


def _choose_call(message: str, turn: list[Item], tools: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Choose the first tool that the message names and that was not called in this turn; None if there is none."""
    called = {item.get("name") for item in turn if item.get("type") == "function_call"}
    words = set(re.findall(r"[^\W_]+", message.lower()))
    for tool in tools:
        name_words = set(tool["name"].lower().split("_")) - _SMALL_WORDS
        arguments = _find_arguments(message, tool["parameters"]) if name_words and name_words <= words else None
        if arguments is not None and tool["name"] not in called:
            return {"name": tool["name"], "arguments": to_json(arguments).decode()}
    return None


def _find_arguments(message: str, schema: dict[str, Any]) -> dict[str, Any] | None:
    """Find values for the required parameters in the message; None if it does not have enough."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", message)
    names = [word for word in re.findall(r"[A-Z][\w'-]*|\d[\w-]*", message) if word not in _NOT_NAMES]
    types = {name: schema["properties"][name].get("type") for name in schema.get("required", ())}
    string_count = sum(kind == "string" for kind in types.values())
    names = names[len(names) - string_count :] if string_count <= len(names) else []  # the last ones of the message
    arguments: dict[str, Any] = {}
    for name, kind in types.items():
        values = {"string": names, "integer": numbers, "number": numbers}.get(str(kind), [])
        if not values:
            return None
        value = values.pop(0)
        arguments[name] = value if kind == "string" else (int(float(value)) if kind == "integer" else float(value))
    return arguments
