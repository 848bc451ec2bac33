"""What the errors of PostgreSQL, asyncpg and the network mean: to agentmem's callers, and to a retry."""

from __future__ import annotations

import ssl
from typing import NamedTuple

import asyncpg

from ...errors import StorageBusyError, StorageCorruptError, StorageError, StorageFullError


class _Meaning(NamedTuple):
    """What an error becomes, and what a caller can do about it."""

    error: type[StorageError]
    advice: str


_DEFECT = _Meaning(StorageError, "a defect in agentmem; please report it")
_TRY_AGAIN = _Meaning(StorageBusyError, "nothing was written; try again")
_UNAVAILABLE = _Meaning(StorageBusyError, "the server does not serve now; try again, or raise busy_timeout_s")
_WRONG_TABLES = _Meaning(StorageCorruptError, "its tables are not as agentmem made them; restore a backup")
_FOREIGN_TRIGGER = _Meaning(StorageError, "a trigger of another program's refused it")

ERRORS = {
    "01": _FOREIGN_TRIGGER,
    "02": _FOREIGN_TRIGGER,
    "03": _DEFECT,
    "08": _UNAVAILABLE,
    "09": _FOREIGN_TRIGGER,
    "0A": _Meaning(StorageError, "the server lacks what agentmem uses; PostgreSQL 12 and later have it"),
    "0B": _DEFECT,
    "0F": _DEFECT,
    "0L": _DEFECT,
    "0P": _Meaning(StorageError, "check the role that the URL names"),
    "0Z": _DEFECT,
    "10": _DEFECT,
    "20": _DEFECT,
    "21": _DEFECT,
    "22": _Meaning(StorageError, "nothing was written; the database must be in UTF8 to hold any text"),
    "22023": _Meaning(StorageError, "check the options in the URL"),
    "23": _WRONG_TABLES,
    "23505": _Meaning(StorageCorruptError, "positions and rows do not fit together; restore a backup"),
    "24": _DEFECT,
    "25": _DEFECT,
    "25006": _Meaning(
        StorageError, "the server only reads: it is a replica, or was made read-only; nothing was written"
    ),
    "25P03": _UNAVAILABLE,
    "25P04": _UNAVAILABLE,
    "26": _Meaning(StorageError, "behind PgBouncer, statement_cache_size=0 is needed; nothing was written"),
    "27": _WRONG_TABLES,
    "28": _Meaning(StorageError, "check the URL's user and password, and the server's pg_hba.conf"),
    "2B": _DEFECT,
    "2D": _DEFECT,
    "2F": _DEFECT,
    "34": _DEFECT,
    "38": _DEFECT,
    "39": _DEFECT,
    "3B": _DEFECT,
    "3D": _Meaning(StorageError, "check the URL's database; agentmem makes none"),
    "3F": _Meaning(StorageError, "its schema is gone; restore a backup, or close all handles to begin anew"),
    "40": _TRY_AGAIN,
    "42": _Meaning(
        StorageError, "its tables are not as agentmem made them; restore a backup, or choose another schema"
    ),
    "42501": _Meaning(
        StorageError,
        "the role needs CREATE on the database to make the schema; in one that there is USAGE, and CREATE to make the "
        "tables; in these SELECT, INSERT, UPDATE and DELETE; the role that owns them upgrades them",
    ),
    "42704": _Meaning(StorageError, "check the options in the URL"),
    "42939": _Meaning(StorageError, "choose another schema"),
    "42P01": _Meaning(StorageError, "its tables are gone; restore a backup, or close all handles to begin anew"),
    "42P05": _Meaning(StorageError, "behind PgBouncer, statement_cache_size=0 is needed; nothing was written"),
    "44": _WRONG_TABLES,
    "53": _Meaning(StorageError, "the server is short of it; nothing was written, try again"),
    "53100": _Meaning(StorageFullError, "nothing was written; make room on the server and try again"),
    "53300": _Meaning(StorageBusyError, "raise the server's max_connections, or put PgBouncer in between; try again"),
    "54": _Meaning(StorageError, "PostgreSQL stores up to 1 GB in a value; split the item"),
    "55": _Meaning(StorageError, "nothing was written; try again"),
    "55P03": _Meaning(
        StorageBusyError, "another connection holds the session; nothing was written, try again or raise busy_timeout_s"
    ),
    "57": _UNAVAILABLE,
    "57014": _Meaning(
        StorageBusyError, "somebody cancelled it, or statement_timeout is too short; nothing was written"
    ),
    "58": _Meaning(StorageError, "check the server's disk and its log"),
    "58P01": _Meaning(StorageCorruptError, "a file of the server's is missing; restore a backup"),
    "72": _TRY_AGAIN,
    "F0": _Meaning(StorageError, "check the server's configuration"),
    "HV": _DEFECT,
    "P0": _FOREIGN_TRIGGER,
    "XX": _Meaning(StorageError, "check the server's log"),
    "XX001": _Meaning(StorageCorruptError, "copy the server's data away as it is, then restore a backup"),
    "XX002": _Meaning(StorageCorruptError, "an index is damaged: REINDEX it, and check the server's disk"),
}
"""By SQLSTATE, or by its class, which is the first two characters
(postgresql.org/docs/current/errcodes-appendix.html). Classes 01 and 02 are not errors, but a trigger may raise them."""

READ_ONLY = "25006"
"""``read_only_sql_transaction``: the server refused a write, and did nothing of it."""

LOCK_NOT_AVAILABLE = "55P03"
"""The wait for a lock took longer than ``lock_timeout``."""

RECONNECT_STATES = frozenset({READ_ONLY, "40003", "25P03", "25P04", "53300", "57P01", "57P02", "57P03", "57P05"})
"""SQLSTATEs after which another connection may succeed: the server ends, starts, is full, is not the primary any more,
or does not know whether it committed."""

ROLLED_BACK_STATES = frozenset({"40001", "40P01"})
"""``serialization_failure`` and ``deadlock_detected``: nothing was written, and the same may succeed at once."""

CLOSING_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a lost connection raises when it is closed or its transaction is rolled back."""

_NO_PRIMARY = asyncpg.exceptions.TargetServerAttributeNotMatched
"""asyncpg's error where no host of the URL is what the URL's ``target_session_attrs`` asks for."""


class GaveUp(Exception):  # noqa: N818  it becomes a StorageError
    """A lane gave up: no connection could do the work in time, or none can be made.

    Attributes:
        error: of the last attempt.
        in_doubt: whether one of the attempts may have been committed.
    """

    def __init__(self, error: BaseException, *, in_doubt: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.in_doubt = in_doubt


def map_error(error: BaseException, name: str, session_id: str | None = None) -> BaseException:
    """agentmem's error for one of asyncpg's, of the network's or of a lane's; any other is returned as it is.

    Args:
        name: of the database, for the message.
    """
    subject = name if session_id is None else f"session {session_id[:80]!r} in {name}"
    if isinstance(error, GaveUp):
        if error.in_doubt:
            return StorageError(
                f"{subject}: the connection was lost while it was written ({_text(error.error)}), and no server would "
                "say in time whether it was; look before you write it again, or raise busy_timeout_s",
                in_doubt=True,
            )
        error = error.error
    if isinstance(error, (asyncpg.PostgresError, asyncpg.PostgresWarning)):
        code = error.sqlstate or ""
        meaning = ERRORS.get(code) or ERRORS.get(code[:2]) or _Meaning(StorageError, "see the cause above")
        return meaning.error(f"{subject}: {error} (SQLSTATE {code}); {meaning.advice}")
    if isinstance(error, TimeoutError):
        return StorageBusyError(f"{subject}: no connection, or no answer, in time; try again or raise busy_timeout_s")
    if isinstance(error, OSError):
        advice = "check that the server runs and its address"
        if isinstance(error, (ssl.SSLError, FileNotFoundError, PermissionError)):
            advice += ", and its certificate and the files that the URL names"
        return StorageError(f"{subject}: {_text(error)}; {advice}")
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):  # also where asyncpg refuses the URL
        return StorageError(f"{subject}: {error}; check the URL, or the pool")
    return error


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error that the server raised; None for any other error."""
    return getattr(error, "sqlstate", None)


def may_succeed_elsewhere(error: BaseException) -> bool:
    """Whether the error says that another connection may do what this one did not."""
    is_lost = isinstance(error, (OSError, asyncpg.PostgresConnectionError, _NO_PRIMARY))  # OSError: and TimeoutError
    return is_lost or sqlstate_of(error) in RECONNECT_STATES


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
