"""Until when a call may wait for what others hold: on one clock, counted from when the call was made.

Rules kept here:

- A deadline belongs to a call and travels with it. However many calls wait with it, and for however many things one
  after the other, none begins a new wait.
- A call whose deadline is over still gets one attempt. It fails only where that meets what others hold.
"""

from __future__ import annotations

from time import monotonic


def now() -> float:
    """The clock of all deadlines, in seconds; the same in every thread and on every event loop."""
    return monotonic()


def deadline_after(timeout_s: float) -> float:
    """The deadline of a call that is made now."""
    return now() + timeout_s
