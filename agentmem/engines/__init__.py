"""The registry of engines, by URL scheme. An engine is imported when the first database of its kind is opened.

A new engine is one package here, one row in ``ENGINES`` and one optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from ..errors import MissingDependencyError
from .base import Engine


class Entry(NamedTuple):
    """Where an engine is, and how it is opened.

    Attributes:
        module: the module of the Engine class.
        name: the name of the Engine class. The class takes the database and keyword options.
        driver: the package that the engine needs; its name is the same for pip and ``import``. An object of this
            package, such as a pool, can be given instead of a URL. "" if the engine needs no package.
        keeps_url: whether the engine takes the whole URL; otherwise it takes the path in it.
        alias: another URL scheme for the engine; "" for none.
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
    """Create the engine for a database. It does not connect yet.

    Args:
        db: a URL with one of the schemes in ``ENGINES``, the path of an SQLite file, or a pool of a driver in
            ``ENGINES``. As in SQLAlchemy, a URL with three slashes has a relative path, and one with four an absolute
            path: ``sqlite:///conversations.db``.
        options: the engine's own options, such as ``busy_timeout_s``.

    Raises:
        ValueError: the URL's scheme is unknown, the URL is not valid for its engine, or an option is out of range.
        TypeError: `db` or an option has the wrong type, or the engine has no such option.
        MissingDependencyError: the engine's driver is not installed.
    """
    scheme, database = _split(db)
    entry = ENGINES[scheme]
    try:
        module = import_module(entry.module)
    except ImportError as error:
        # If another module is missing, installing the driver would not help.
        if not entry.driver or (error.name or "").partition(".")[0] != entry.driver:
            raise
        raise MissingDependencyError(f"pip install {entry.driver}") from error
    engine: Engine = getattr(module, entry.name)(database, **options)
    return engine


def scheme_of(db: Any) -> str:
    """Return the key in ``ENGINES`` of the engine for a database: a URL, a path, or a driver's pool.

    Raises:
        ValueError: the URL's scheme is unknown, or an SQLite URL names a host or no file.
    """
    return _split(db)[0]


def _split(db: Any) -> tuple[str, Any]:
    """Return the key in ``ENGINES``, and the database as that engine takes it."""
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
