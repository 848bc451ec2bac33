"""Runs of the Agents SDK's agents: handed over to the SDK's own Runner.

The SDK is never imported here: whoever has one of its agents has loaded it.
"""

from __future__ import annotations

import sys
from typing import Any

from .config import RunConfig


def sdk_runner(agent: object, run_config: object) -> Any:
    """The SDK's ``Runner``, if `agent` is one of the SDK's; else None.

    Raises:
        TypeError: such an agent with a ``run_config`` of agentmem's.
    """
    if not any(base.__module__ == "agents.agent" for base in type(agent).__mro__):
        return None
    if isinstance(run_config, RunConfig):
        raise TypeError("an Agents SDK agent takes a run_config of the SDK's, agents.RunConfig(...)")
    return sys.modules["agents"].Runner
