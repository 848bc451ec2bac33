"""Agents of the Agents SDK: their runs are handed over to the SDK's own Runner.

The SDK is never imported here. A caller who has one of its agents has loaded it.
"""

from __future__ import annotations

import sys
from typing import Any

from .config import RunConfig


def sdk_runner(agent: object, run_config: object) -> Any:
    """Return the SDK's ``Runner`` if `agent` is an agent of the SDK, else None.

    Raises:
        TypeError: it is, and ``run_config`` is agentmem's and not the SDK's.
    """
    if not any(base.__module__ == "agents.agent" for base in type(agent).__mro__):
        return None
    if isinstance(run_config, RunConfig):
        raise TypeError("an Agents SDK agent takes a run_config of the SDK's, agents.RunConfig(...)")
    return sys.modules["agents"].Runner
