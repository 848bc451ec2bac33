"""Checks of the arguments of sessions and stores: each returns the argument, or raises an error that says what to pass.

All of them run before anything is awaited or opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from .engines import options_of, scheme_of
from .engines.base import MAX_SESSION_ID_BYTES
from .replay import SessionSettings

InitT = TypeVar("InitT", bound=Callable[..., None])

_NO_CAPS = SessionSettings()


def check_session_id(session_id: str) -> str:
    """Check a session id: 1 to 1,024 bytes in UTF-8, without NUL.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty, too long, or has a character that a database cannot store.
    """
    if not isinstance(session_id, str):
        raise TypeError(f"session_id is a str, got {type(session_id).__name__}")
    try:
        size_bytes = len(session_id.encode())
    except UnicodeEncodeError:
        raise ValueError(f"session_id {session_id[:80]!r} has a lone surrogate, which has no UTF-8 form") from None
    if not 1 <= size_bytes <= MAX_SESSION_ID_BYTES:
        raise ValueError(f"session_id is 1 to {MAX_SESSION_ID_BYTES} bytes long in UTF-8, got {size_bytes}")
    if "\0" in session_id:
        raise ValueError(f"session_id {session_id[:80]!r} has a NUL character, which not every database can store")
    return session_id


def check_settings(settings: SessionSettings | None) -> SessionSettings:
    """Check the settings of a session; None becomes settings without a cap.

    Raises:
        TypeError: they are neither ``SessionSettings`` nor None.
    """
    if settings is None:
        return _NO_CAPS
    if not isinstance(settings, SessionSettings):
        raise TypeError(f"settings is an agentmem.SessionSettings, got {type(settings).__name__}")
    return settings


def check_limit(limit: int) -> int:
    """Check how many of the latest items are wanted.

    Raises:
        TypeError: it is not an int.
        ValueError: it is negative.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is an int or None, got {limit!r}")
    if limit < 0:
        raise ValueError(f"limit is 0 or more, got {limit}; None means no limit")
    return limit


def check_sqlite_database(db: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Check that a database is an SQLite file: a path, a ``sqlite://`` URL or ":memory:".

    Raises:
        ValueError: it is the URL of another kind of database.
    """
    scheme = scheme_of(db)
    if scheme != "sqlite":
        raise ValueError(
            f"{scheme}:// is the URL of another kind of database; for one conversation in PostgreSQL there are "
            "PostgresSession and AsyncPostgresSession; SessionStore and AsyncSessionStore take both kinds"
        )
    return db


def check_postgres_database(dsn: str | Any) -> str | Any:
    """Check that a database is a PostgreSQL URL or an ``asyncpg.Pool``.

    Raises:
        TypeError: it is neither text nor a pool.
        ValueError: it is not a PostgreSQL URL.
    """
    if scheme_of(dsn) != "postgresql":
        if not isinstance(dsn, (str, os.PathLike)):
            raise TypeError(f"dsn is a URL or an asyncpg.Pool, got {type(dsn).__name__}")
        text = os.fspath(dsn)
        # What has one of these may hold a password.
        shown = "dsn" if any(character in text for character in "@=") else repr(text)
        raise ValueError(f"{shown} is not a PostgreSQL URL (postgresql://user@host/database)")
    return dsn


def check_options(store: object, db: object, options: Mapping[str, object]) -> Mapping[str, object]:
    """Check that the engine for a database has these options.

    Args:
        store: the object that is made, whose class the error names.
        db: the database, as the store takes it.
        options: the options, by name.

    Raises:
        TypeError: the engine has no such option.
        Everything that :func:`~agentmem.engines.open_engine` raises for `db`.
    """
    known = options_of(db)
    if unknown := [repr(name) for name in options if name not in known]:
        raise TypeError(
            f"{type(store).__name__} on {scheme_of(db)} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return options


def session_id_by_keyword(init: InitT) -> InitT:
    """Refuse a constructor call in the Agents SDK's form, ``SQLiteSession(session_id, db_path)``, with an explanation.

    Two plain strings do not tell which of them is the file. A guess could create a file with the name of a user.
    """

    @wraps(init)
    def checked_init(self: object, *args: Any, **kwargs: Any) -> None:
        if len(args) > 1 or "session_id" not in kwargs or "db_path" in kwargs:
            name = type(self).__name__
            raise TypeError(
                f'agentmem\'s {name} takes the database, and the session id by keyword: {name}("conversations.db", '
                f'session_id="user_123"). The Agents SDK\'s form, {name}("user_123", "conversations.db"), is that of '
                f"the class that this imports: from agentmem.integrations.openai_agents import {name}"
            )
        init(self, *args, **kwargs)

    return cast(InitT, checked_init)
