"""Every error that agentmem raises, in one tree.

::

    AgentMemError
    ├── InvalidItemError (ValueError)          an item has no faithful JSON form
    ├── SessionClosedError (RuntimeError)      a method was called on a closed handle
    ├── ConflictError                          the session is not in the expected state; nothing raises it yet
    ├── StorageError                           the database failed
    │   ├── StorageBusyError                   a lock or the server was not available in time
    │   ├── StorageFullError                   no space is left on the disk
    │   ├── StorageCorruptError                the database is damaged, or the file is not a database
    │   └── SchemaVersionError                 the database was written by a newer agentmem
    ├── RunError                               a run of an agent failed
    │   ├── MaxTurnsExceeded                   the model still asked for tools after max_turns calls
    │   ├── ModelError                         the model could not be called, or its answer is unusable
    │   └── ToolError                          a tool failed that was declared with raise_errors=True
    ├── BackgroundLoopError                    the event loop of the sync calls was stopped
    └── MissingDependencyError (ImportError)   an optional package; the message is the pip command

    CorruptItemWarning (UserWarning)           a stored row cannot be read and was skipped
    HardLinkWarning (UserWarning)              the database's file has another name, under which writes can be lost

Wrong arguments raise Python's own ``TypeError`` (wrong type) and ``ValueError`` (out of range: a negative ``limit``,
an empty session id, an unknown URL scheme).

A driver's exception (``sqlite3.Error``, ``asyncpg.PostgresError``) never reaches the caller. The engine raises one of
these errors from it, so it is the ``__cause__``.
"""

from __future__ import annotations


class AgentMemError(Exception):
    """The base class of every error that agentmem defines.

    Attributes:
        in_doubt: whether a write may have been stored although its call failed. Only a :class:`StorageError` of a write
            can be in doubt; every other error says for certain what is stored.
    """

    in_doubt: bool = False


class InvalidItemError(AgentMemError, ValueError):
    """An item cannot be stored as JSON and read back equal. Nothing of its batch was stored.

    Attributes:
        index: the item's index in the batch, from 0.
        path: the invalid value's path inside the item, such as ``$.content[0].text``.
    """

    # The defaults are for pickle, which creates the error from its message alone and then sets the attributes.
    def __init__(self, message: str, *, index: int = 0, path: str = "$") -> None:
        super().__init__(message)
        self.index = index
        self.path = path


class SessionClosedError(AgentMemError, RuntimeError):
    """The handle (a session or a store) was closed. The stored data is unchanged; open a new handle to use it."""


class ConflictError(AgentMemError):
    """A write was refused because the session is not in the state that the caller expected. Nothing was written.

    Nothing raises it yet. It is kept for writes that state what they expect.
    """


class StorageError(AgentMemError):
    """The database failed; the message says why and what to do.

    Nothing was written, unless ``in_doubt`` is true. Then all of the write is stored or nothing: look before you write
    it again. Either the connection to a server was lost before it answered, and no server told the outcome in time. Or
    an SQLite file was deleted, moved or replaced while the write was committed to it.
    """

    # The default is for pickle; see InvalidItemError.
    def __init__(self, message: str = "", *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt


class StorageBusyError(StorageError):
    """A lock or the server was not available within ``busy_timeout_s``. Nothing was written."""


class StorageFullError(StorageError):
    """No space is left on the disk. Nothing was written; writes work again as soon as there is space."""


class StorageCorruptError(StorageError):
    """The database is damaged, or the file is not a database. agentmem does not change it."""


class SchemaVersionError(StorageError):
    """The database was written by a newer version of agentmem than this one; upgrade agentmem."""


class RunError(AgentMemError):
    """A run of an agent failed; the message says what the session now holds of it."""


class MaxTurnsExceeded(RunError):  # noqa: N818  DESIGN's and the Agents SDK's name for it
    """The model still asked for tools after ``max_turns`` calls."""


class ModelError(RunError):
    """The model could not be called, or its answer is unusable. That call added nothing to the session."""


class ToolError(RunError):
    """A tool failed that was declared with ``raise_errors=True``. The default reports failures to the model."""


class BackgroundLoopError(AgentMemError):
    """The background event loop, on which all sync calls of this process run, has ended before the program did.

    Code that ran on the loop has stopped it; the ``__cause__`` is what ended it. Whether a write that was under way is
    stored is in doubt.
    """


class MissingDependencyError(AgentMemError, ImportError):
    """An optional package is not installed; the message is the pip command that installs it."""


class CorruptItemWarning(UserWarning):
    """A stored row cannot be read and was skipped; the message names the session and the position."""


class HardLinkWarning(UserWarning):
    """The database's file has another name, a hard link; the message names the file.

    SQLite names a file's WAL after the path by which the file is opened. So programs that use different names do not
    see each other's writes, and can lose them (sqlite.org/howtocorrupt.html, section 2.5).
    """
