"""Reading a URL of PostgreSQL's: its options, its hosts in rotation, and what of it may be shown."""

from __future__ import annotations

from traceback import format_exception

import pytest

from agentmem.engines.postgres.url import rotate_hosts, split_options, without_password


@pytest.mark.parametrize(
    ("url", "rest", "options"),
    [
        ("postgresql://host/db", "postgresql://host/db", {}),
        ("postgresql://host/db?sslmode=require", "postgresql://host/db?sslmode=require", {}),
        ("postgresql://host/db?schema=a%20b", "postgresql://host/db", {"schema": "a b"}),
        (
            "postgresql://host/db?a=%26&statement_cache_size=0&schema=&b=x",
            "postgresql://host/db?a=%26&b=x",
            {"statement_cache_size": "0", "schema": ""},
        ),
    ],
)
def test_agentmem_s_own_options_are_taken_out_and_the_others_stay_as_they_are(
    url: str, rest: str, options: dict[str, str]
) -> None:
    assert split_options(url) == (rest, options)


@pytest.mark.parametrize("port", ["x", "65536", "123456", "1x", "-1"])
def test_a_port_that_is_none_is_refused_without_a_word_of_it(port: str) -> None:
    with pytest.raises(ValueError, match="a port in the URL is no number below 65536") as raised:
        split_options(f"postgresql://me@host:{port}/db")
    assert f"host:{port}" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:1234?x=5@host",
        "postgresql://user:1234?user=5@host/db",
        "postgresql://user:1234?password=5@host/db?sslmode=require",
        "postgresql://user:12/34@host/db",
        "postgresql://user:12/34?5@host/db",
        "postgresql://user:12#34@host/db",
        "postgresql://user@host/db?password=12#34",
        "postgresql://user:12@34@host/db",
        "postgresql://user:[1234@host/db",
        "postgresql://user:1234]@host/db",
        "postgresql://user:1234\N{ACCOUNT OF}@host/db",
    ],
)
def test_a_password_that_is_not_escaped_is_refused_without_a_word_of_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"write / \? # @ : % as %2F %3F %23 %40 %3A %25") as raised:
        split_options(url)
    assert "12" not in "".join(format_exception(raised.value))


@pytest.mark.parametrize("url", ["postgresql://host/db?user=me@server", "postgresql://a:b@host/db?password=c@d"])
def test_an_option_may_hold_an_at_where_it_cuts_no_password(url: str) -> None:
    assert split_options(url) == (url, {})


@pytest.mark.parametrize("hosts", ["host", "host:65535", "a:1,b,[::1]:5432", "/folder"])
def test_hosts_with_and_without_a_port_are_taken(hosts: str) -> None:
    url = f"postgresql://me@{hosts}/db" if hosts[0] != "/" else "postgresql:///db?host=/folder"
    assert split_options(url) == (url, {})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:1/db?password=secret", "postgresql://me@host:1/db"),
        ("postgresql://me:sec@ret@host/db", "postgresql://me@host/db"),
        ("postgres://host/db", "postgres://host/db"),
        ("postgresql:///db?host=/folder", "postgresql:///db"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_each_rotation_puts_another_host_first() -> None:
    url = "postgresql://me:pa,ss@a:1,b,c:3/db?options=x,y"
    first = [rotate_hosts(url, by) for by in range(4)]
    assert first == [
        ("postgresql://me:pa,ss@a:1,b,c:3/db?options=x,y", 3),
        ("postgresql://me:pa,ss@b,c:3,a:1/db?options=x,y", 3),
        ("postgresql://me:pa,ss@c:3,a:1,b/db?options=x,y", 3),
        ("postgresql://me:pa,ss@a:1,b,c:3/db?options=x,y", 3),
    ]
    assert rotate_hosts("postgresql:///db?host=/folder", 5) == ("postgresql:///db?host=/folder", 1)
