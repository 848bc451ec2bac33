"""Hypothesis strategies: JSON as items hold it, and histories, from what a model leaves behind to what nobody should.

Every item of a history carries its place under "n", so that no two are equal and a test sees which one it got.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

JsonObject = dict[str, Any]
History = list[JsonObject]

OUTPUT_KIND = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
    "mcp_approval_request": "mcp_approval_response",
    "multi_agent_call": "multi_agent_call_output",
}
"""The paired kinds of the Responses API, first half to second half; test_replay holds this against ``openai``."""

HOSTED_KINDS = ["web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"]
"""Calls that the API answers in the same item."""

INPUT_ROLES = ["user", "system", "developer"]

INPUT_KINDS = ["additional_tools", "compaction", "compaction_trigger", "configuration_update", "item_reference"]
"""What the application puts into the input, beside messages and the outputs of calls."""

# --------------------------------------------------------------------------------------------------------------- JSON

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

_characters = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.characters(categories=["Cs"]),  # lone surrogates: legal in JSON text as escapes, and in Python's str
    st.sampled_from('\0\x1f\x7f"\\/\u2028\ufeff\uffff😀'),
)


def json_texts(max_size: int = 20) -> st.SearchStrategy[str]:
    """Any text that JSON holds: all of unicode, NUL and lone surrogates, but no pair of them in two code points."""
    return st.text(_characters, max_size=max_size).filter(lambda text: not _SURROGATE_PAIR.search(text))


def json_scalars() -> st.SearchStrategy[Any]:
    """null, booleans, texts, integers far beyond 64 bits, and finite floats with -0.0 and subnormals."""
    floats = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)
    integers = st.integers() | st.integers(-(10**40), 10**40) | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400])
    edges = st.sampled_from([-0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1e16, 1e22, 0.1])
    return st.none() | st.booleans() | integers | floats | edges | json_texts()


def json_values(max_leaves: int = 20, keys: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Any]:
    """Any JSON value; `keys` are those of the objects in it."""
    names = json_texts() if keys is None else keys
    return st.recursive(
        json_scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=max_leaves,
    )


def json_objects(max_leaves: int = 20) -> st.SearchStrategy[JsonObject]:
    """Any JSON object; keys in any order."""
    return st.dictionaries(json_texts(), json_values(max_leaves), max_size=5)


# ---------------------------------------------------------------------------------------------------------- histories


def numbered(items: Sequence[JsonObject]) -> History:
    """Copies of the items, each with its place under "n"."""
    return [{**item, "n": place} for place, item in enumerate(items)]


def message(role: str, text: str = "…") -> JsonObject:
    """A message in the short form that people write."""
    return {"role": role, "content": text}


def call(kind: str, call_id: object = "a", **fields: object) -> JsonObject:
    """The first half of an exchange."""
    return {"type": kind, "id" if kind == "mcp_approval_request" else "call_id": call_id, **fields}


def output(kind: str, call_id: object = "a", **fields: object) -> JsonObject:
    """The second half of the exchange that a call of this kind begins."""
    name = "approval_request_id" if kind == "mcp_approval_request" else "call_id"
    return {"type": OUTPUT_KIND[kind], name: call_id, **fields}


def reference(item_id: str = "fc_1") -> JsonObject:
    """A reference to an item that only the API has."""
    return {"type": "item_reference", "id": item_id}


def compaction() -> JsonObject:
    """What stands for all that is before it."""
    return {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAA"}


def reasoning() -> JsonObject:
    """Reasoning, as a stored response has it."""
    return {"type": "reasoning", "id": "rs", "summary": []}


@st.composite
def _steps(draw: st.DrawFn, name: Callable[[], str]) -> list[JsonObject]:
    """What one response of a model leaves, with the outputs of its calls: a few to a dozen items, nothing open."""
    items = [reasoning()] * draw(st.integers(0, 2))
    if draw(st.integers(0, 3)) == 0:
        items.append({"type": draw(st.sampled_from(HOSTED_KINDS)), "id": name()})
    outputs = []
    for _ in range(draw(st.integers(0, 3))):
        kind, call_id = draw(st.sampled_from(list(OUTPUT_KIND))), name()
        items.append(call(kind, call_id))
        outputs.append(output(kind, call_id))
        if kind == "program":
            caller = {"caller": {"type": "program", "caller_id": call_id}}
            for child in draw(st.lists(st.sampled_from(["function_call", "shell_call", "mcp_call"]), max_size=2)):
                child_id = name()
                if child in HOSTED_KINDS:
                    items.append({"type": child, "id": child_id, **caller})
                else:
                    items += [call(child, child_id, **caller), output(child, child_id, **caller)]
    if not outputs:
        return [*items, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "…"}]}]
    return items + draw(st.permutations(outputs))


@st.composite
def whole_histories(draw: st.DrawFn, max_turns: int = 4) -> History:
    """Histories in which nothing is missing: user groups, reasoning, parallel calls and their outputs in any order."""
    count = 0

    def name() -> str:
        nonlocal count
        count += 1
        return f"call_{count}"

    items: list[JsonObject] = []
    for _ in range(draw(st.integers(0, max_turns))):
        items += map(message, draw(st.lists(st.sampled_from(INPUT_ROLES), min_size=1, max_size=3)))
        for _ in range(draw(st.integers(0, 2))):
            items += draw(_steps(name))
    return numbered(items)


@st.composite
def plausible_histories(draw: st.DrawFn, max_turns: int = 4) -> History:
    """Whole histories after an accident or two: items lost, doubled, late or only referred to, the
    beginning or the end cut off."""
    items = draw(whole_histories(max_turns))
    accidents = ["lose", "double", "late", "begin", "end", "refer"]
    for accident in draw(st.lists(st.sampled_from(accidents), max_size=3)):
        if not items:
            break
        place = draw(st.integers(0, len(items) - 1))
        if accident == "lose":
            del items[place]
        elif accident == "double":
            items.insert(draw(st.integers(0, len(items))), items[place])
        elif accident == "late":
            items.insert(draw(st.integers(place, len(items) - 1)), items.pop(place))
        elif accident == "refer":
            items[place] = reference(draw(st.sampled_from(["fc_1", "msg_1"])))
        elif accident == "begin":
            del items[:place]
        else:
            del items[place:]
    return numbered(items)


_ids = st.sampled_from(["a", "b", "", "1", "None", 1, 1.0, True, None, ["a"], {"a": 1}])
_few_ids = st.sampled_from(["a", "b"])


@st.composite
def odd_items(draw: st.DrawFn) -> JsonObject:
    """One item of a history that no model wrote: few ids, so that they meet, and some of the wrong type."""
    ids = draw(st.sampled_from([_few_ids, _few_ids, _few_ids, _ids]))
    kind = draw(st.sampled_from(list(OUTPUT_KIND)) | st.sampled_from(["function_call", "program", "local_shell_call"]))
    sort = draw(st.sampled_from(["call"] * 4 + ["output"] * 4 + ["reasoning"] * 2 + ["message"] * 3 + ["odd"]))
    if sort == "reasoning":
        return reasoning()
    if sort == "message":
        item = message(draw(st.sampled_from([*INPUT_ROLES, "assistant", "tool"])))
        return {"type": "message", **item} if draw(st.booleans()) else item
    if sort == "odd":
        odd: list[JsonObject] = [
            {},
            {"type": None, "role": "user"},
            {"type": ["message"], "role": "user"},
            {"type": {}},
            {"role": ["user"]},
            {"role": {"user": 1}, "type": "message"},
            {"role": None},
            {"type": "user"},
            {
                "type": draw(st.sampled_from(["item_reference", None])),
                "id": draw(st.sampled_from(["a", "fc_1", "msg_1"])),
            },
            {"id": "fc_1"},
            {"id": ["fc_1"]},
            {"type": draw(st.sampled_from(["compaction_trigger", "configuration_update", "additional_tools"]))},
            {"type": "additional_tools", "role": "developer"},
            {"type": "function_call"},
            {"type": "function_call_output"},
            {"type": "mcp_approval_request"},
            {"type": "local_shell_call_output", "call_id": None, "id": "a"},
            {"type": draw(st.sampled_from(HOSTED_KINDS)), "call_id": "a"},
            {"type": draw(st.sampled_from(HOSTED_KINDS)), "caller": {"type": "program", "caller_id": draw(ids)}},
            {"type": "function_call_output", "call_id": "a", "role": "user"},
        ]
        return draw(st.sampled_from(odd))
    half = (call if sort == "call" else output)(kind, draw(ids))
    if sort == "output" and kind == "local_shell_call" and draw(st.booleans()):
        half["id"] = half.pop("call_id")
    if draw(st.integers(0, 3)) == 0:
        callers = [{"type": "program", "caller_id": draw(ids)}, {"type": "direct"}, {"type": "program"}, "program", []]
        half["caller"] = draw(st.sampled_from(callers))
    if sort == "call" and draw(st.integers(0, 5)) == 0:
        half["async"] = draw(st.sampled_from([True, False, None, "true"]))
    return half


def adversarial_histories(max_size: int = 12) -> st.SearchStrategy[History]:
    """Histories in which everything that can be wrong is: halves, doubled and odd ids, outputs before calls."""
    return st.lists(odd_items(), max_size=max_size).map(numbered)


def histories() -> st.SearchStrategy[History]:
    """Histories of every sort."""
    return adversarial_histories() | plausible_histories() | whole_histories()
