"""The settings of one run. Plain data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..items import Item
from ..replay import SessionSettings
from .model import Model, check_model
from .reasoning import REPLAY_REASONING, ReplayReasoning

InputCallback = Callable[[list[Item], list[Item]], "list[Item] | Awaitable[list[Item]]"]
"""A function of the replayed history and the run's new input, each oldest first. It returns what the model is sent."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run. A setting that is None leaves the matter to the agents and the session.

    The settings that the Agents SDK has too have the same names there.

    Args:
        model: the model of every agent in the run: a name or a :class:`~agentmem.runner.Model`.
        model_settings: further arguments of ``client.responses.create``, such as ``{"temperature": 0}``. They override
            the model's own settings. A model of your own gets them in ``ModelRequest.settings``.
        session_settings: the caps of the replay window of this run, instead of the session's.
        session_input_callback: a function, sync or async, of the replayed history and the new input. It returns the
            items that the first model call is sent; incomplete exchanges among them are left out. What is stored does
            not depend on it: the session gets the new input as it is. In a run that continues an unfinished turn, the
            new input is the part of that turn that is stored.
        replay_reasoning: which reasoning of the session is sent. "all"; or "encrypted": what stands by itself, because
            it has its encrypted content (or its text), where the provider has forgotten what it knew only by its id; or
            "none", where the model's key, organization or kind has changed and it cannot be decrypted. Nothing is
            removed from the session.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model's name is empty, or ``replay_reasoning`` is none of the three.
    """

    model: str | Model | None = None
    model_settings: Mapping[str, Any] | None = None
    session_settings: SessionSettings | None = None
    session_input_callback: InputCallback | None = None
    replay_reasoning: ReplayReasoning = "all"

    def __post_init__(self) -> None:
        check_model(self.model, "RunConfig")
        settings, window, callback = self.model_settings, self.session_settings, self.session_input_callback
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(f"RunConfig: model_settings is a mapping of arguments or None, got {settings!r}")
        if window is not None and not isinstance(window, SessionSettings):
            raise TypeError(f"RunConfig: session_settings is an agentmem.SessionSettings or None, got {window!r}")
        if callback is not None and not callable(callback):
            raise TypeError(f"RunConfig: session_input_callback is a function or None, got {callback!r}")
        if self.replay_reasoning not in REPLAY_REASONING:
            names = ", ".join(map(repr, REPLAY_REASONING))
            raise ValueError(f"RunConfig: replay_reasoning is one of {names}, got {self.replay_reasoning!r}")
