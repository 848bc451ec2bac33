"""Every error that agentmem raises, in one tree.

::

    AgentMemError
    ├── InvalidItemError (ValueError)          an item that JSON cannot hold faithfully
    ├── SessionClosedError (RuntimeError)      a call on a handle after its close()
    ├── ConflictError                          the session is not what the caller took it for
    ├── StorageError                           the database did not do what was asked
    │   ├── StorageBusyError                   a lock was held, or the server did not serve, for too long
    │   ├── StorageFullError                   no room on the disk
    │   ├── StorageCorruptError                the database is damaged, or none at all
    │   └── SchemaVersionError                 the database was written by a newer agentmem
    ├── RunError                               a run of an agent that could not go on
    │   ├── MaxTurnsExceeded                   the model kept asking for tools
    │   ├── ModelError                         the model could not be called, or failed
    │   └── ToolError                          a tool failed and was told to raise
    └── MissingDependencyError (ImportError)   an optional package; the message is the pip command

    CorruptItemWarning (UserWarning)           a stored row that cannot be read was skipped

Two kinds of mistake stay the built-in errors that Python programmers expect: ``TypeError`` and
``ValueError`` for an argument of the wrong type or out of range (a negative ``limit``, an empty
session id, an unknown URL scheme).

A driver's own exception (``sqlite3.Error``, asyncpg's) never reaches the caller: each engine maps it to one
of these and keeps it as ``__cause__``.
"""

from __future__ import annotations


class AgentMemError(Exception):
    """The root: catches everything that agentmem itself raises."""


class InvalidItemError(AgentMemError, ValueError):
    """An item cannot be stored as JSON and come back equal; nothing of its batch was stored.

    Attributes:
        index: position of the item in the batch, from 0.
        path: where inside the item, as in ``$.content[0].text``.
    """

    # The defaults are for pickle, which makes the error from its message alone and then sets the attributes.
    def __init__(self, message: str, *, index: int = 0, path: str = "$") -> None:
        super().__init__(message)
        self.index = index
        self.path = path


class SessionClosedError(AgentMemError, RuntimeError):
    """The handle (session or store) was closed; open a new one to go on. The data is untouched."""


class ConflictError(AgentMemError):
    """A write was refused because the session is not in the state that the caller expected."""


class StorageError(AgentMemError):
    """The database could not do what was asked; the message says why and what to do.

    Nothing was written, unless the message says that it is in doubt: a server was lost before it answered, and did not
    come back in time.
    """


class StorageBusyError(StorageError):
    """Somebody else held the lock, or the server did not serve, longer than ``busy_timeout_s``; nothing was written."""


class StorageFullError(StorageError):
    """No room on the disk; nothing was written, and writing works again once there is room."""


class StorageCorruptError(StorageError):
    """The database is damaged, or the file is none; agentmem leaves it as it is."""


class SchemaVersionError(StorageError):
    """The database was written by a newer agentmem than this one; upgrade agentmem."""


class RunError(AgentMemError):
    """A run of an agent could not go on; the message says what the session holds."""


class MaxTurnsExceeded(RunError):  # noqa: N818  DESIGN's and the Agents SDK's name for it
    """The model was still asking for tools after ``max_turns`` calls."""


class ModelError(RunError):
    """The model could not be called, or its call failed; that call added nothing to the session."""


class ToolError(RunError):
    """A tool failed and was declared to raise instead of reporting to the model."""


class MissingDependencyError(AgentMemError, ImportError):
    """An optional package is not installed; the message is the pip command that installs it."""


class CorruptItemWarning(UserWarning):
    """A stored row that cannot be read was skipped; names the session and the position."""
