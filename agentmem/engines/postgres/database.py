"""What an engine is opened with, checked: a URL or a pool, the schema, and the options."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from .url import address, split_options, without_password

DEFAULT_SCHEMA = "agentmem"
DEFAULT_STATEMENT_CACHE_SIZE = 100
"""asyncpg's own default."""


@dataclass(frozen=True)
class Database:
    """What a pool connects to, and how.

    Attributes:
        url: for asyncpg, with its password; "" where there is a pool of the caller's.
        callers_pool: the caller's ``asyncpg.Pool``, which is used and never closed; None where there is a URL.
        schema: holds the tables.
        statement_cache_size: asyncpg's.
    """

    url: str = field(repr=False)
    callers_pool: Any
    schema: str
    statement_cache_size: int

    @property
    def name(self) -> str:
        """The database as messages name it."""
        name = without_password(self.url) if self.callers_pool is None else "the given asyncpg pool"
        return name if self.schema == DEFAULT_SCHEMA else f"{name} (schema {self.schema})"

    @property
    def key(self) -> Hashable:
        """Equal for engines on the same tables; holds no password."""
        return ("postgresql", address(self.url) if self.callers_pool is None else self.callers_pool, self.schema)

    @property
    def pool_key(self) -> Hashable:
        """Equal for engines that share a pool: what belongs to the connections is equal, too, as their password is."""
        where = self.url if self.callers_pool is None else self.callers_pool
        return (where, self.schema, self.statement_cache_size)


def checked_database(db: Any, *, schema: str | None, statement_cache_size: int | None) -> Database:
    """The database for an engine's arguments. An argument goes before the same option of the URL.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument or an option of the URL is out of range, or asyncpg would not take the URL.
    """
    url, options = "", dict[str, str]()
    if isinstance(db, str):
        url, options = split_options(db)
    elif not isinstance(db, asyncpg.Pool):
        raise TypeError(f"db is a URL or an asyncpg.Pool, got {type(db).__name__}")
    elif statement_cache_size is not None:
        raise ValueError("statement_cache_size is the pool's own; give it to asyncpg.create_pool()")
    cache_size = options.get("statement_cache_size") if statement_cache_size is None else statement_cache_size
    return Database(
        url=url,
        callers_pool=None if isinstance(db, str) else db,
        schema=_checked_schema(options.get("schema", DEFAULT_SCHEMA) if schema is None else schema),
        statement_cache_size=_checked_cache_size(DEFAULT_STATEMENT_CACHE_SIZE if cache_size is None else cache_size),
    )


def _checked_schema(schema: object) -> str:
    if not isinstance(schema, str):
        raise TypeError(f"schema is a str, got {schema!r}")
    # PostgreSQL would cut a longer name.
    if re.search("[\0\ud800-\udfff]", schema) or not 1 <= len(schema.encode()) <= 63:
        raise ValueError(f"schema is a name of 1 to 63 bytes in UTF-8, got {schema!r}")
    return schema


def _checked_cache_size(size: object) -> int:
    if not re.fullmatch("[0-9]{1,9}", str(size)):
        raise ValueError(f"statement_cache_size is 0 or more, got {size!r}")
    return int(str(size))
