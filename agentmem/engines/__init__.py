"""The engines, by URL scheme; each is imported when the first database of its kind is opened.

A new engine is one package here, one row in ``ENGINES`` and one optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from ..errors import MissingDependencyError
from .base import Engine


class Entry(NamedTuple):
    """Where an engine is found.

    Attributes:
        module, name: of the Engine class; it takes the database (see ``keeps_url``) and keyword options.
        driver: the package that it needs, by the name that pip and ``import`` know it by; objects of it (a pool) are
            taken instead of a URL. "" for none.
        keeps_url: whether it takes the whole URL, or only the path in it.
        alias: another scheme for it; "" for none.
    """

    module: str
    name: str
    driver: str = ""
    keeps_url: bool = True
    alias: str = ""


ENGINES = {
    "sqlite": Entry("agentmem.engines.sqlite.engine", "SQLiteEngine", keeps_url=False),
    "postgresql": Entry("agentmem.engines.postgres.engine", "PostgresEngine", driver="asyncpg", alias="postgres"),
}


def open_engine(db: Any, **options: Any) -> Engine:
    """The engine for a database; nothing is connected yet.

    Args:
        db: a URL with one of the schemes in ``ENGINES``, the path of an SQLite file, or a pool of a driver in
            ``ENGINES``. As in SQLAlchemy, three slashes begin a relative path and four an absolute one:
            ``sqlite:///conversations.db``.
        options: the engine's own, such as ``busy_timeout_s``.

    Raises:
        ValueError: the URL's scheme is unknown, or an option out of range.
        TypeError: an option that the engine does not have.
        MissingDependencyError: the engine's driver is not installed.
    """
    scheme, database = _split(db)
    entry = ENGINES[scheme]
    try:
        module = import_module(entry.module)
    except ImportError as error:
        # Another module that is missing is a defect, which installing the driver would not mend.
        if not entry.driver or (error.name or "").partition(".")[0] != entry.driver:
            raise
        raise MissingDependencyError(f"pip install {entry.driver}") from error
    engine: Engine = getattr(module, entry.name)(database, **options)
    return engine


def scheme_of(db: Any) -> str:
    """Which of ``ENGINES`` serves this database: a URL, a path, or a driver's pool.

    Raises:
        ValueError: the URL's scheme is unknown, or it is no URL of a file.
    """
    return _split(db)[0]


def _split(db: Any) -> tuple[str, Any]:
    """The scheme, and what its engine takes."""
    if not isinstance(db, str):
        packages = {base.__module__.partition(".")[0] for base in type(db).__mro__}
        return next((scheme for scheme, entry in ENGINES.items() if entry.driver in packages), "sqlite"), db
    if "://" not in db:
        return "sqlite", db
    scheme, _, rest = db.partition("://")
    scheme = next((name for name, entry in ENGINES.items() if entry.alias == scheme), scheme)
    if scheme not in ENGINES:
        known = ", ".join(f"{name}://" for name in ENGINES)
        raise ValueError(f"unknown database URL {scheme}://…; agentmem knows {known} and paths of SQLite files")
    if ENGINES[scheme].keeps_url:
        return scheme, db
    if not rest.startswith("/"):
        raise ValueError(f"{db!r} names a host; write {scheme}:///{rest} for a relative path, four slashes for others")
    if rest == "/":
        raise ValueError(f"{db!r} names no file; write {scheme}:///:memory: for a database in memory")
    return scheme, rest[1:]
