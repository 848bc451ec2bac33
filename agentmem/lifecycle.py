"""What happens around a process's life: closing when it ends, and forks.

Rules:

- A program that closes nothing still ends, and leaves closed files behind: aiosqlite's threads are not daemons
  under a loop of the main thread, so the interpreter would wait for them for ever, and are daemons under the
  background loop, so it would not let them close. One thread, which the interpreter does wait for, waits until
  the main thread and all others that the program started are done, then runs the callbacks of
  :func:`when_program_ends`.
- SQLite must not be carried across a fork (sqlite.org/howtocorrupt.html, section 2.6): the callbacks of
  :func:`around_fork` close before it and start anew after it. Where there is no fork, they never run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from weakref import WeakSet

_ends: list[Callable[[], None]] = []
_own_threads: WeakSet[threading.Thread] = WeakSet()
_watcher: threading.Thread | None = None
_lock = threading.Lock()


def when_program_ends(callback: Callable[[], None]) -> None:
    """Run `callback` when the program's own threads are done, before the interpreter ends."""
    _ends.append(callback)


def watch(own_thread: threading.Thread) -> None:
    """Count `own_thread` as agentmem's: the program's end does not wait for it, but ends it."""
    global _watcher
    with _lock:
        _own_threads.add(own_thread)
        if _watcher is None:
            _watcher = threading.Thread(target=_wait_and_end, name="agentmem-end", daemon=False)
            _own_threads.add(_watcher)
            _watcher.start()


def around_fork(*, before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Run the callbacks around every ``os.fork()`` of this process."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _wait_and_end() -> None:
    threading.main_thread().join()
    # Threads that outlive the main one may still be using sessions.
    while theirs := [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread not in _own_threads and thread is not threading.main_thread()
    ]:
        for thread in theirs:
            # One of them may be a thread that agentmem has just started and is about to report: look again.
            while thread.is_alive() and thread not in _own_threads:
                thread.join(0.05)
    for callback in reversed(_ends):  # what was built last rests on what was built before
        callback()


def _reset_in_child() -> None:
    global _watcher, _lock
    _watcher, _lock = None, threading.Lock()
    _own_threads.clear()


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_reset_in_child)
