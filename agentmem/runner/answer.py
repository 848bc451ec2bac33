"""What one answer of a model asks for: tools to run, something of the caller, or nothing more. Pure.

Rules:

- The Runner runs function calls. Every other call without an output is a request to the caller.
- An asynchronous call (``"async": true``) waits for nobody: the answer counts without its output. The Runner runs it
  if the agent has the function; otherwise the caller sends the output with any later run.
- A program (programmatic tool calling) waits for the calls that it makes. Their outputs are sent together with the
  program, and the API goes on with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..items import Item, message_text
from ..replay import is_async_call, is_output, unanswered_calls


def calls_to_run(output: Sequence[Item], functions: Collection[str]) -> list[Item]:
    """Return the calls of an answer that the Runner runs.

    Args:
        output: the items of the answer.
        functions: the names of the agent's tools and handoffs. A call of another function is run too, so that the model
            is told that there is none, unless it is asynchronous.
    """
    calls = [item for item in output if item.get("type") == "function_call"]
    return [call for call in calls if not is_async_call(call) or call.get("name") in functions]


def waits_for_caller(produced: Sequence[Item]) -> bool:
    """Whether the model waits for what only the caller can give, such as an approval.

    Args:
        produced: the items of the answer, and the outputs of the calls that were run.
    """
    # A program goes on when its calls are answered. Each of them is looked at by itself.
    going_on = {_caller_id(item) for item in produced if is_output(item)}
    return any(
        call.get("call_id") not in going_on if call.get("type") == "program" else not is_async_call(call)
        for call in unanswered_calls(produced)
    )


def answer_text(output: Sequence[Item]) -> str | None:
    """Return the text of the last message of an answer.

    Returns:
        "" without a message; None if the model only made asynchronous calls, and so will answer when it has an output.
    """
    messages = [item for item in output if item.get("type", "message") == "message"]
    if messages:
        return message_text(messages[-1])
    return None if any(map(is_async_call, unanswered_calls(output))) else ""


def call_output(call: Item, text: str) -> Item:
    """Return the item that answers a function call; it names the same caller, such as a program."""
    output = {"type": "function_call_output", "call_id": call.get("call_id"), "output": text}
    return output if call.get("caller") is None else {**output, "caller": call["caller"]}


def _caller_id(item: Item) -> object:
    caller = item.get("caller")
    return caller.get("caller_id") if isinstance(caller, dict) else None
