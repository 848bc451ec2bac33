"""Statements sent to a PostgreSQL server as psql sends them, in a few milliseconds; needs the standard library alone.

The protocol: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SIMPLE-QUERY.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from waiting import WAIT_S

_PIECE = re.compile(
    r"""
      '(?:[^']|'')*' | "(?:[^"]|"")*"  # texts and names
    | \$(\w*)\$.*?\$\1\$               # the body of a function
    | --[^\n]*                         # a comment
    | [^;'"$-]+ | .
    """,
    re.VERBOSE | re.DOTALL,
)


def statements(script: str) -> Iterator[str]:
    """The statements that semicolons end, but for one with nothing in it."""
    statement = ""
    for piece in _PIECE.finditer(script + ";"):
        if piece[0] != ";":
            statement += piece[0]
        elif statement.strip():
            yield statement
            statement = ""


def execute(path: Path, user: str, database: str, script: str) -> list[list[str]]:
    """Run the statements, each in a transaction of its own, on a connection that has ended when this returns.

    Args:
        path: of the server's socket.

    Returns:
        The rows of all of them, each column in PostgreSQL's own text form, nothing for NULL.

    Raises:
        RuntimeError: one failed, and those after it were not run; the message is the server's.
        OSError: the server cannot be reached.
    """
    rows: list[list[str]] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(str(path))
        with connection.makefile("rb") as answers:
            options = {"user": user, "database": database, "client_encoding": "UTF8"}
            startup = b"".join(_text(part) for option in options.items() for part in option) + b"\0"
            connection.sendall(struct.pack(">II", 8 + len(startup), 3 << 16) + startup)
            try:
                rows += _read(answers)
                for statement in statements(script):
                    query = _text(statement)
                    connection.sendall(b"Q" + struct.pack(">I", 4 + len(query)) + query)
                    rows += _read(answers)
            finally:
                _end(connection, answers)
    return rows


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _read(answers: BinaryIO) -> Iterator[list[str]]:
    """The rows up to the end of the answer to what was sent last."""
    error = ""
    while header := answers.read(5):
        kind, (length,) = header[:1], struct.unpack(">I", header[1:])
        body = answers.read(length - 4)
        if kind == b"D":
            yield list(_columns(body))
        elif kind == b"E":
            fields = {field[:1]: field[1:].decode() for field in body.split(b"\0") if field}
            error = f"{fields[b'S']}: {fields[b'M']}"
            if fields[b"S"] != "ERROR":
                break  # FATAL: the connection ends
        elif kind == b"Z":
            break
    else:
        error = "the server closed the connection"
    if error:
        raise RuntimeError(error)


def _columns(body: bytes) -> Iterator[str]:
    place = 2
    for _ in range(*struct.unpack(">H", body[:2])):
        (length,) = struct.unpack(">i", body[place : place + 4])
        place += 4
        yield body[place : place + length].decode() if length > 0 else ""
        place += max(0, length)


def _end(connection: socket.socket, answers: BinaryIO) -> None:
    """Say goodbye, and wait for the end of the server's process, which comes after it has left all its tables."""
    try:
        connection.sendall(b"X" + struct.pack(">I", 4))
        answers.read()
    except OSError:
        pass  # the server has ended the connection before
