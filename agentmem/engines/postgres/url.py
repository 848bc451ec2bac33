"""URLs of PostgreSQL databases: what is in them, and which database they lead to."""

from __future__ import annotations

import re
from collections.abc import Hashable
from urllib.parse import parse_qsl, urlsplit


def split(url: str) -> tuple[str, dict[str, str]]:
    """The URL for asyncpg, which would take agentmem's own options for the server's; and those.

    Raises:
        ValueError: it is no URL that asyncpg would take.
    """
    before, mark, query = url.partition("?")
    _check_ports(before)
    options: dict[str, str] = {}
    rest: list[str] = []
    for option in query.split("&") if query else []:
        if not re.match("[^=]+=", option):
            raise ValueError(f"the options of {without_password(url)} are name=value, joined by &")
        ((name, value),) = parse_qsl(option, keep_blank_values=True)
        if name in ("schema", "statement_cache_size"):
            options[name] = value
        else:
            rest.append(option)
    return before + (mark + "&".join(rest) if rest else ""), options


def _check_ports(url: str) -> None:
    for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
            # Without a word of it: it may be a piece of a password.
            raise ValueError(
                "a port in the URL is no number below 65536; in the user and the password, "
                "write / ? # @ : % as %2F %3F %23 %40 %3A %25"
            )


def checked_schema(schema: object) -> str:
    """`schema`, if it can be the name of one; else a TypeError or a ValueError."""
    if not isinstance(schema, str):
        raise TypeError(f"schema is a str, got {schema!r}")
    # A longer one PostgreSQL would cut.
    if re.search("[\0\ud800-\udfff]", schema) or not 1 <= len(schema.encode()) <= 63:
        raise ValueError(f"schema is a name of 1 to 63 bytes in UTF-8, got {schema!r}")
    return schema


def without_password(dsn: str) -> str:
    """The URL for messages: without its password and its options."""
    scheme, _, rest = dsn.partition("?")[0].partition("://")
    user, at, where = rest.rpartition("@")  # the last one: what should have been escaped belongs to the password
    return f"{scheme}://{user.partition(':')[0]}{at}{where}"


def rotated(dsn: str, turn: int) -> tuple[str, int]:
    """The URL with another of its hosts first, and how many it has."""
    scheme, mark, rest = dsn.partition("://")
    where = re.match("[^/?]*", rest)
    assert where is not None
    user, at, hosts = where[0].rpartition("@")
    names = hosts.split(",")
    first = turn % len(names)
    return f"{scheme}{mark}{user}{at}{','.join(names[first:] + names[:first])}{rest[where.end() :]}", len(names)


def address(dsn: str) -> Hashable:
    """Where the database is: equal for URLs that differ in how they connect to it, and without a password."""
    parts = urlsplit(dsn)
    user, _, hosts = parts.netloc.rpartition("@")
    options = sorted(pair for pair in parse_qsl(parts.query) if pair[0] in ("host", "port", "database", "dbname"))
    return (hosts, parts.path.strip("/") or user.partition(":")[0], *options)  # the user's name is the default
