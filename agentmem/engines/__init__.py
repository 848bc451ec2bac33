"""The registry of engines, by URL scheme. An engine is imported when the first database of its kind is opened.

A new engine is one package here, one row in ``ENGINES`` and one optional dependency.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
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


def options_of(db: Any) -> tuple[str, ...]:
    """Return the names of the options that the engine for a database has.

    Raises:
        ValueError, TypeError, MissingDependencyError: as in :func:`open_engine`.
    """
    parameters = signature(_engine_class(ENGINES[_split(db)[0]])).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY)


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
    engine: Engine = _engine_class(ENGINES[scheme])(database, **options)
    return engine


def scheme_of(db: Any) -> str:
    """Return the key in ``ENGINES`` of the engine for a database: a URL, a path, or a driver's pool.

    Raises:
        ValueError: the URL's scheme is unknown, or an SQLite URL names a host or no file.
    """
    return _split(db)[0]


def _engine_class(entry: Entry) -> Callable[..., Engine]:
    try:
        module = import_module(entry.module)
    except ImportError as error:
        # If another module is missing, installing the driver would not help.
        if not entry.driver or (error.name or "").partition(".")[0] != entry.driver:
            raise
        raise MissingDependencyError(f"pip install {entry.driver}") from error
    engine_class: Callable[..., Engine] = getattr(module, entry.name)
    return engine_class


def _split(db: Any) -> tuple[str, Any]:
    """Return the key in ``ENGINES``, and the database as that engine takes it.

    The messages quote nothing that follows the scheme: it may hold a password.
    """
    if not isinstance(db, str):
        packages = {base.__module__.partition(".")[0] for base in type(db).__mro__}
        return next((scheme for scheme, entry in ENGINES.items() if entry.driver in packages), "sqlite"), db
    if "://" not in db:
        return "sqlite", db
    scheme, _, rest = db.partition("://")
    scheme = scheme.lower()  # as in every URL (RFC 3986, section 3.1)
    scheme = next((name for name, entry in ENGINES.items() if entry.alias == scheme), scheme)
    if scheme not in ENGINES:
        known = ", ".join(f"{name}://" for name in ENGINES)
        unknown = f" {scheme}://…" if re.fullmatch("[a-z][a-z0-9+.-]*", scheme) else ""
        raise ValueError(f"unknown database URL{unknown}; agentmem knows {known} and paths of SQLite files")
    return scheme, db if ENGINES[scheme].keeps_url else _path_in_url(scheme, rest)


def _path_in_url(scheme: str, rest: str) -> str:
    """Return the path in the URL of a database that is a file; `rest` is what follows ``scheme://``."""
    if rest in ("", "/"):
        raise ValueError(f"{scheme}://{rest} names no file; write {scheme}:///:memory: for a database in memory")
    if not rest.startswith("/"):
        url, path = ("…", "conversations.db") if "@" in rest else (rest, rest)  # what has an @ may hold a password
        raise ValueError(
            f"'{scheme}://{url}' names a host; write {scheme}:///{path} for a relative path, four slashes for others"
        )
    if "?" in rest:
        raise ValueError(
            f"a URL {scheme}:///… has no options after a ?; give them by keyword, such as busy_timeout_s=5.0. (A file "
            "with ? in its name is opened by its path alone.)"
        )
    return rest[1:]
