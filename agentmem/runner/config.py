"""The settings of one run. Plain data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..items import Item
from ..replay import SessionSettings
from .model import Model, check_model
from .reasoning import REPLAY_REASONING, ReplayReasoning
from .run_queue import STEP_WAIT_S

InputCallback = Callable[[list[Item], list[Item]], "list[Item] | Awaitable[list[Item]]"]
"""A function of the replayed history and the run's new input, each oldest first. It returns what the model is sent."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RunConfig:
    """The settings of one run. A setting that is None leaves the matter to the agents and the session.

    The settings that the Agents SDK has too have the same names there.

    Args:
        model: the model of every agent in the run: a name or a :class:`~agentmem.runner.Model`.
        model_settings: further arguments of ``client.responses.create``, such as ``{"temperature": 0}``. They override
            the model's own settings. A model of your own gets them in ``ModelRequest.settings``.
        session_settings: the caps of the replay window of this run, instead of the session's.
        session_input_callback: a function of the replayed history and the new input. It returns the items that the
            first model call is sent; incomplete exchanges among them are left out. An async one runs on the event loop,
            a plain one in a thread of its own, so it may block. What is stored does not depend on it: the session gets
            the new input as it is. In a run that continues an unfinished turn, the new input is the part of that turn
            that is stored.
        session_wait_s: how many seconds this run waits while the run that holds its session is in a tool (or another
            function of yours) that had begun when this run came. That tool may have started this run in a thread that
            agentmem knows nothing of, and then each would wait for the other forever. So after that time this run fails
            with a RunError. A run that waits for anything else, such as a model's answer or runs before it, waits
            without a limit. None: no limit here either.
        replay_reasoning: which reasoning of the session is sent. "all"; or "encrypted": what stands by itself, because
            it has its encrypted content (or its text), where the provider has forgotten what it knew only by its id; or
            "none", where the model's key, organization or kind has changed and it cannot be decrypted. Nothing is
            removed from the session.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model's name is empty, ``session_wait_s`` is not above 0, or ``replay_reasoning`` is none of the
            three.
    """

    model: str | Model | None = None
    model_settings: Mapping[str, Any] | None = None
    session_settings: SessionSettings | None = None
    session_input_callback: InputCallback | None = None
    session_wait_s: float | None = STEP_WAIT_S
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
        if not (self.session_wait_s is None or _is_duration(self.session_wait_s)):
            raise ValueError(
                f"RunConfig: session_wait_s is a number of seconds above 0 or None, got {self.session_wait_s!r}"
            )
        if self.replay_reasoning not in REPLAY_REASONING:
            names = ", ".join(map(repr, REPLAY_REASONING))
            raise ValueError(f"RunConfig: replay_reasoning is one of {names}, got {self.replay_reasoning!r}")

    def __repr__(self) -> str:
        changed = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        return f"<RunConfig: {', '.join(changed) or 'defaults'}>"


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
