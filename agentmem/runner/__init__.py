"""The Runner: it runs an agent, with its tools and a model, on a session. It is thin, and not an agent framework.

For guardrails, MCP and tracing, use the Agents SDK; agentmem's sessions work there as well.
"""

from .agent import Agent
from .config import RunConfig
from .context import RunContext
from .model import Model, ModelRequest, ModelResponse, StreamingModel, Usage
from .offline import OfflineModel
from .responses_api import OpenAIResponsesModel
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
