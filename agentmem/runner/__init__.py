"""The thin Runner adapter: an agent, its tools and a model, run on a session. No framework.

Guardrails, MCP and tracing are the Agents SDK's; agentmem's sessions work there as well.
"""

from .agent import Agent
from .config import RunConfig
from .context import RunContext
from .model import Model, ModelRequest, ModelResponse, OpenAIResponsesModel, StreamingModel, Usage
from .offline import OfflineModel
from .result import RunResult
from .run import Runner
from .stream import RunEvent, RunStream, TextDelta
from .tools import FunctionTool, function_tool

__all__ = [
    "Agent",
    "FunctionTool",
    "Model",
    "ModelRequest",
    "ModelResponse",
    "OfflineModel",
    "OpenAIResponsesModel",
    "RunConfig",
    "RunContext",
    "RunEvent",
    "RunResult",
    "RunStream",
    "Runner",
    "StreamingModel",
    "TextDelta",
    "Usage",
    "function_tool",
]
