"""The databases that are measured. What runs on one is compared only with what runs on the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Database:
    """One kind of database.

    Attributes:
        title: as tables call it.
        own: the system that is agentmem on it, by its name in ``rivals.SYSTEMS``.
        limit: the system that is the database's driver alone. All others are compared with these two.
    """

    title: str
    own: str
    limit: str


SQLITE = Database("SQLite", own="agentmem", limit="sqlite3")
POSTGRES = Database("PostgreSQL", own="agentmem-postgres", limit="asyncpg")

DATABASES = (SQLITE, POSTGRES)
