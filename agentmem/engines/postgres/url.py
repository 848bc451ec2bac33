"""PostgreSQL URLs: agentmem's own options, the password, the hosts, and which database a URL leads to."""

from __future__ import annotations

import re
from collections.abc import Hashable
from urllib.parse import parse_qsl, urlsplit

OWN_OPTIONS = ("schema", "statement_cache_size")
"""The options of a URL that are agentmem's. asyncpg would take them for settings of the server."""

_ESCAPE_IT = "in the user and the password, also as options, write / ? # @ : % as %2F %3F %23 %40 %3A %25"


def split_options(url: str) -> tuple[str, dict[str, str]]:
    """Take agentmem's own options out of a URL.

    Returns:
        The URL without them, for asyncpg; and the options.

    Raises:
        ValueError: asyncpg would not take the URL.
    """
    _check_escapes(url)
    base, mark, query = url.partition("?")
    _check_ports(base)
    options: dict[str, str] = {}
    rest: list[str] = []
    for option in query.split("&") if query else []:
        if not re.match("[^=]+=", option):
            raise ValueError(f"the options of {without_password(url)} are name=value, joined by &")
        ((name, value),) = parse_qsl(option, keep_blank_values=True)
        if name in OWN_OPTIONS:
            options[name] = value
        else:
            rest.append(option)
    return base + (mark + "&".join(rest) if rest else ""), options


def has_option(url: str, name: str) -> bool:
    """Whether a URL sets an option."""
    return any(option == name for option, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))


def without_password(url: str) -> str:
    """The URL for messages: without its password and its options."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    user, at, location = rest.rpartition("@")  # the last one: a character that was not escaped is the password's
    return f"{scheme}://{user.partition(':')[0]}{at}{location}"


def rotate_hosts(url: str, by: int) -> tuple[str, int]:
    """The URL with its hosts rotated by so many places, so that another one is tried first; and how many it has."""
    scheme, mark, rest = url.partition("://")
    authority = re.match("[^/?]*", rest)
    assert authority is not None
    user, at, hosts = authority[0].rpartition("@")
    names = hosts.split(",")
    first = by % len(names)
    rotated = ",".join(names[first:] + names[:first])
    return f"{scheme}{mark}{user}{at}{rotated}{rest[authority.end() :]}", len(names)


def address(url: str) -> Hashable:
    """Which database a URL leads to: equal for URLs that only connect to it in different ways. Holds no password."""
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    options = sorted(pair for pair in parse_qsl(parts.query) if pair[0] in ("host", "port", "database", "dbname"))
    return (hosts, parts.path.strip("/") or user.partition(":")[0], *options)  # PostgreSQL's default: the user's name


def _check_escapes(url: str) -> None:
    """Refuse a URL that asyncpg would read in another way than it was meant. The messages quote nothing of it."""
    rest = url.partition("://")[2]
    authority = re.match("[^/?#]*", rest)
    assert authority is not None
    path, _, query = rest[authority.end() :].partition("?")
    # In postgresql://user:1234?x=5@host, "user" would be taken for the host and "1234" for its port, and be shown.
    has_cut_password = "@" in query and ":" in authority[0] and "@" not in authority[0]
    # asyncpg drops what follows a #, and takes what follows the first @ for the host.
    if "#" in rest or authority[0].count("@") > 1 or "@" in path or has_cut_password:
        raise ValueError(f"the URL has a character in a place where it must be escaped; {_ESCAPE_IT}")


def _check_ports(url: str) -> None:
    try:
        hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    except ValueError:  # its message quotes a piece of the URL
        raise ValueError(f"the URL's host is not valid; {_ESCAPE_IT}, and write an IPv6 address in [ ]") from None
    for host in hosts:
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
            # The message does not quote the port: it may be a piece of a password.
            raise ValueError(f"a port in the URL is no number below 65536; {_ESCAPE_IT}")
