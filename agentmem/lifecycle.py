"""The ends and forks of a process: callbacks that close what is open, and start anew in a child.

Rules:

- A program that closes nothing still ends, and its files are closed. The interpreter alone does neither. It would wait
  forever for aiosqlite's threads under a loop of the main thread, because they are not daemons. It would not let those
  under the background loop close, because they are daemons. So a thread of agentmem's own, for which the interpreter
  does wait, first waits for the main thread and for all other threads that the program has started. Then it runs the
  callbacks of :func:`when_program_ends`.
- An SQLite connection must not be used across a fork (https://www.sqlite.org/howtocorrupt.html, section 2.6). The
  callbacks of :func:`around_fork` close connections before a fork and start anew after it. On systems without forks,
  they never run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from weakref import WeakSet

_end_callbacks: list[Callable[[], None]] = []
_own_threads: WeakSet[threading.Thread] = WeakSet()
_end_thread: threading.Thread | None = None
_lock = threading.Lock()


def when_program_ends(callback: Callable[[], None]) -> None:
    """Register a callback for the time when the program's threads have ended and the interpreter has not yet.

    Callbacks run in the reverse order of their registration. None runs if :func:`register_own_thread` was never called.
    """
    _end_callbacks.append(callback)


def register_own_thread(own_thread: threading.Thread) -> None:
    """Register a thread as agentmem's own, so that the program's end does not wait for it.

    It must be a daemon, or a callback of :func:`when_program_ends` must end it.
    """
    global _end_thread
    with _lock:
        _own_threads.add(own_thread)
        if _end_thread is None:
            _end_thread = threading.Thread(target=_wait_and_run_callbacks, name="agentmem-end", daemon=False)
            _own_threads.add(_end_thread)
            _end_thread.start()


def around_fork(*, before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Register callbacks for every ``os.fork()`` of this process, where the system has forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _wait_and_run_callbacks() -> None:
    threading.main_thread().join()
    # Threads of the program that outlive the main thread may still use sessions.
    while program_threads := [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread not in _own_threads and thread is not threading.main_thread()
    ]:
        for thread in program_threads:
            # Looks again and again: it may be a thread of agentmem's own that was started and is not yet registered.
            while thread.is_alive() and thread not in _own_threads:
                thread.join(0.05)
    for callback in reversed(_end_callbacks):  # what was created later depends on what was created before
        callback()


def _reset_in_child() -> None:
    global _end_thread, _lock
    _end_thread, _lock = None, threading.Lock()
    _own_threads.clear()


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_reset_in_child)
