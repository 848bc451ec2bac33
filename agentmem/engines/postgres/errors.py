"""What PostgreSQL's and asyncpg's errors mean: to agentmem's callers, and to a retry."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, NamedTuple

import asyncpg

from ...errors import AgentMemError, StorageBusyError, StorageCorruptError, StorageError, StorageFullError


class Meaning(NamedTuple):
    """What an error becomes, and what a caller can do about it."""

    error: type[StorageError]
    advice: str


_DEFECT = Meaning(StorageError, "a defect in agentmem; please report it")
_TRY_AGAIN = Meaning(StorageBusyError, "nothing was written; try again")
_GONE = Meaning(StorageBusyError, "the server does not serve now; try again, or raise busy_timeout_s")
_TABLES = Meaning(StorageCorruptError, "its tables are not as agentmem made them; restore a backup")

ERRORS = {
    "01": Meaning(StorageError, "a trigger of another program's refused it"),
    "02": Meaning(StorageError, "a trigger of another program's refused it"),
    "03": _DEFECT,
    "08": _GONE,
    "09": Meaning(StorageError, "a trigger of another program's refused it"),
    "0A": Meaning(StorageError, "the server lacks what agentmem uses; PostgreSQL 12 and later have it"),
    "0B": _DEFECT,
    "0F": _DEFECT,
    "0L": _DEFECT,
    "0P": Meaning(StorageError, "check the role that the URL names"),
    "0Z": _DEFECT,
    "10": _DEFECT,
    "20": _DEFECT,
    "21": _DEFECT,
    "22": Meaning(StorageError, "nothing was written; the database must be in UTF8 to hold any text"),
    "22023": Meaning(StorageError, "check the options in the URL"),
    "23": _TABLES,
    "23505": Meaning(StorageCorruptError, "positions and rows do not fit together; restore a backup"),
    "24": _DEFECT,
    "25": _DEFECT,
    "25006": Meaning(
        StorageError, "the server only reads: it is a replica, or was made read-only; nothing was written"
    ),
    "25P03": _GONE,
    "25P04": _GONE,
    "26": Meaning(StorageError, "behind PgBouncer, statement_cache_size=0 is needed; nothing was written"),
    "27": _TABLES,
    "28": Meaning(StorageError, "check the URL's user and password, and the server's pg_hba.conf"),
    "2B": _DEFECT,
    "2D": _DEFECT,
    "2F": _DEFECT,
    "34": _DEFECT,
    "38": _DEFECT,
    "39": _DEFECT,
    "3B": _DEFECT,
    "3D": Meaning(StorageError, "check the URL's database; agentmem makes none"),
    "3F": Meaning(StorageError, "its schema is gone; restore a backup, or close all handles to begin anew"),
    "40": _TRY_AGAIN,
    "42": Meaning(StorageError, "its tables are not as agentmem made them; restore a backup, or choose another schema"),
    "42501": Meaning(
        StorageError,
        "the role needs CREATE on the database to make the schema; in one that there is USAGE, and CREATE to make the "
        "tables; in these SELECT, INSERT, UPDATE and DELETE",
    ),
    "42704": Meaning(StorageError, "check the options in the URL"),
    "42939": Meaning(StorageError, "choose another schema"),
    "42P01": Meaning(StorageError, "its tables are gone; restore a backup, or close all handles to begin anew"),
    "42P05": Meaning(StorageError, "behind PgBouncer, statement_cache_size=0 is needed; nothing was written"),
    "44": _TABLES,
    "53": Meaning(StorageError, "the server is short of it; nothing was written, try again"),
    "53100": Meaning(StorageFullError, "nothing was written; make room on the server and try again"),
    "53300": Meaning(StorageBusyError, "raise the server's max_connections, or put PgBouncer in between; try again"),
    "54": Meaning(StorageError, "PostgreSQL stores up to 1 GB in a value; split the item"),
    "55": Meaning(StorageError, "nothing was written; try again"),
    "55P03": Meaning(
        StorageBusyError, "another connection holds the session; nothing was written, try again or raise busy_timeout_s"
    ),
    "57": _GONE,
    "57014": Meaning(StorageBusyError, "somebody cancelled it, or statement_timeout is too short; nothing was written"),
    "58": Meaning(StorageError, "check the server's disk and its log"),
    "58P01": Meaning(StorageCorruptError, "a file of the server's is missing; restore a backup"),
    "72": _TRY_AGAIN,
    "F0": Meaning(StorageError, "check the server's configuration"),
    "HV": _DEFECT,
    "P0": Meaning(StorageError, "a trigger of another program's refused it"),
    "XX": Meaning(StorageError, "check the server's log"),
    "XX001": Meaning(StorageCorruptError, "copy the server's data away as it is, then restore a backup"),
    "XX002": Meaning(StorageCorruptError, "an index is damaged: REINDEX it, and check the server's disk"),
}
"""What PostgreSQL's errors mean to a caller: by SQLSTATE, or by its class, the first two characters
(postgresql.org/docs/current/errcodes-appendix.html). Classes 01 and 02 are no errors, but a trigger may say so."""

PASSING = {"25006", "40003", "25P03", "25P04", "53300", "57P01", "57P02", "57P03", "57P05"}
"""SQLSTATEs after which another connection may do: the server ends, starts, is full, is no primary any more,
or does not know whether it has committed."""

REPEATABLE = {"40001", "40P01"}
"""Those after which the same transaction may succeed at once; nothing of it was written."""

READ_ONLY = "25006"
"""Of those that pass, the one that answers a write: nothing of it was done."""

LOCKED = "55P03"

ENDED = (OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a connection raises where it was lost before it is closed or given back."""

NO_PRIMARY = asyncpg.exceptions.TargetServerAttributeNotMatched
"""What asyncpg raises where none of the URL's hosts is what its ``target_session_attrs`` asks for."""


class Lost(Exception):  # noqa: N818  becomes a StorageError
    """No connection could do it in time, or none can be made."""

    def __init__(self, error: BaseException, *, in_doubt: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.in_doubt = in_doubt


class FromReading(Exception):  # noqa: N818  what it holds is raised instead
    """What a reading raised, which is no error of the server's, whatever it is."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def map_error(error: BaseException, name: str, session_id: str | None = None) -> BaseException:
    """agentmem's error for one of asyncpg's or of the connection's; any other is returned as it is."""
    if isinstance(error, FromReading):
        return error.error
    subject = name if session_id is None else f"session {session_id[:80]!r} in {name}"
    if isinstance(error, Lost):
        if error.in_doubt:
            return StorageError(
                f"{subject}: the connection was lost while it was written ({_text(error.error)}), and no server would "
                "say in time whether it was; look before you write it again, or raise busy_timeout_s"
            )
        error = error.error
    if isinstance(error, (asyncpg.PostgresError, asyncpg.PostgresWarning)):
        code = error.sqlstate or ""
        meaning = ERRORS.get(code) or ERRORS.get(code[:2]) or Meaning(StorageError, "see the cause above")
        return meaning.error(f"{subject}: {error} (SQLSTATE {code}); {meaning.advice}")
    if isinstance(error, asyncio.TimeoutError):
        return StorageBusyError(f"{subject}: no connection, or no answer, in time; try again or raise busy_timeout_s")
    if isinstance(error, OSError):
        advice = "check that the server runs and its address"
        if isinstance(error, (ssl.SSLError, FileNotFoundError, PermissionError)):
            advice += ", and its certificate and the files that the URL names"
        return StorageError(f"{subject}: {_text(error)}; {advice}")
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):  # also where asyncpg refuses the URL
        return StorageError(f"{subject}: {error}; check the URL, or the pool")
    return error


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def cause(error: BaseException) -> BaseException | None:
    """What is to stand behind the error that it is mapped to: the driver's, and nothing behind itself."""
    if isinstance(error, FromReading):
        return error.error.__cause__
    return error.__cause__ if isinstance(error, AgentMemError) else error


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the server's; None for any other error."""
    return getattr(error, "sqlstate", None)


def is_lost(error: BaseException, connection: Any) -> bool:
    """Whether another connection may do what this one did not."""
    if isinstance(error, (AgentMemError, FromReading)):
        return False
    if isinstance(error, (OSError, asyncio.TimeoutError, asyncpg.PostgresConnectionError, NO_PRIMARY)):
        return True
    if sqlstate(error) in PASSING:
        return True
    try:
        return connection is not None and connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # a pool takes back at once what was lost
