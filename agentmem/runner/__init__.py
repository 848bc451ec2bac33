"""The thin Runner adapter: an agent, its tools and a model, run on a session. No framework.

Guardrails, MCP and tracing are the Agents SDK's; agentmem's sessions work there as well.
"""

from .agent import Agent
from .model import Model, ModelRequest, ModelResponse, OpenAIResponsesModel, Usage
from .offline import OfflineModel
from .result import RunResult
from .run import Runner
from .tools import FunctionTool, function_tool

__all__ = [
    "Agent",
    "FunctionTool",
    "Model",
    "ModelRequest",
    "ModelResponse",
    "OfflineModel",
    "OpenAIResponsesModel",
    "RunResult",
    "Runner",
    "Usage",
    "function_tool",
]
