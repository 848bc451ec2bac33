"""The tool calls of one response, which run at the same time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from ..errors import ToolError
from ..items import Item
from .context import RunContext
from .run_queue import run_queue
from .tools import NO_RUN, FunctionTool, ToolOutput


async def run_calls(
    calls: Sequence[Item],
    tools: Mapping[str, FunctionTool[..., Any]],
    context: RunContext[Any] = NO_RUN,
    on_output: Callable[[Item, ToolOutput], None] = lambda call, output: None,
) -> list[ToolOutput]:
    """Run ``function_call`` items at the same time.

    Args:
        calls: the items.
        tools: the tools, by name.
        context: the run's context.
        on_output: called with each call and its output, as soon as the call is done.

    Returns:
        The outputs in the order of the calls. A call of an unknown tool gets an output that says so.

    Cancellation: all calls are cancelled. This function ends only when none of them is running.

    Raises:
        ToolError: a tool with ``raise_errors=True`` failed. The other calls are cancelled.
        SystemExit, KeyboardInterrupt: a tool raised it. The other calls are cancelled.
    """
    outputs: list[ToolOutput | None] = [None] * len(calls)
    fatal_errors: list[BaseException] = []

    async def call_tool(call: Item) -> ToolOutput:
        name = call.get("name")
        tool = tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return ToolOutput.for_error(f"there is no tool called {name!r}; there are: {', '.join(tools) or 'none'}")
        try:
            with run_queue.step(f"its tool {name!r}"):
                return await tool.invoke(str(call.get("arguments") or ""), context)
        except asyncio.CancelledError as error:
            if group.cancel_scope.cancel_called or anyio.current_effective_deadline() == -math.inf:
                raise
            return tool.output_for_error(error)  # not the run was cancelled, but something that the tool awaited

    async def run_call(index: int, call: Item) -> None:
        try:
            output = outputs[index] = await call_tool(call)
            on_output(call, output)
        except (ToolError, SystemExit, KeyboardInterrupt) as error:
            # Kept instead of raised: the task group would wrap it into an exception group. The last two would also
            # stop the event loop, which in ``run_sync`` is the loop of all sync calls.
            fatal_errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run_call, index, call)
    if fatal_errors:
        raise fatal_errors[0]
    return [output for output in outputs if output is not None]
