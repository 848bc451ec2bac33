"""Settings of one run, beside those of its agents and its session. Plain data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..items import Item
from ..replay import SessionSettings
from .model import Model, checked_model

InputCallback = Callable[[list[Item], list[Item]], "list[Item] | Awaitable[list[Item]]"]
"""From the replayed history and the run's new input, each oldest first, to what the model is sent."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one run. What is None stays as the agents and the session have it. The names are the Agents SDK's.

    Args:
        model: serves every agent of the run: a name or a :class:`~agentmem.runner.Model`.
        model_settings: further arguments of ``client.responses.create``, such as ``{"temperature": 0}``; they win
            over a model's own settings. Models of your own find them in ``ModelRequest.settings``.
        session_settings: the replay window of this run, in place of the session's.
        session_input_callback: a function, sync or async, of the replayed history and the new input that returns
            what the first model call is sent. Of an exchange that its result holds only in part, nothing is
            sent. It changes what is sent only: the session is given the new input as it is. In a run that
            goes on with an unfinished turn, the new input is that turn as far as it got.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an empty model name.
    """

    model: str | Model | None = None
    model_settings: Mapping[str, Any] | None = None
    session_settings: SessionSettings | None = None
    session_input_callback: InputCallback | None = None

    def __post_init__(self) -> None:
        checked_model(self.model, "RunConfig")
        settings, window, callback = self.model_settings, self.session_settings, self.session_input_callback
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(f"RunConfig: model_settings is a mapping of arguments or None, got {settings!r}")
        if window is not None and not isinstance(window, SessionSettings):
            raise TypeError(f"RunConfig: session_settings is an agentmem.SessionSettings or None, got {window!r}")
        if callback is not None and not callable(callback):
            raise TypeError(f"RunConfig: session_input_callback is a function or None, got {callback!r}")
