"""Run a command with a PostgreSQL server for its tests: ``python3 tests/support/with_postgres.py COMMAND…``.

The server is the first that there is of these: the one that ``AGENTMEM_TEST_POSTGRES`` names, the tests' default if it
lets us in, a private one that is gone when the command ends. The command finds it in ``AGENTMEM_TEST_POSTGRES``.

Needs PostgreSQL's programs, and of Python the standard library alone. The exit code is the command's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from empty_databases import DEFAULT_POSTGRES_URL, shown
from postgres_programs import ENVIRONMENT, find_folder
from postgres_server import PostgresServer
from waiting import WAIT_S


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of a server that runs until the end of the ``with`` at least.

    Raises:
        OSError: there is none, and no PostgreSQL to start one.
    """
    if url := os.environ.get("AGENTMEM_TEST_POSTGRES"):
        yield url
    elif lets_us_in(DEFAULT_POSTGRES_URL):
        yield DEFAULT_POSTGRES_URL
    else:
        with PostgresServer() as server:
            yield server.url


def lets_us_in(url: str) -> bool:
    """Whether a server is there that asks for no password and has the database."""
    psql = [str(find_folder() / "psql"), "--no-psqlrc", "--no-password", "--quiet", "--command", "SELECT 1", url]
    environment = {**ENVIRONMENT, "PGCONNECT_TIMEOUT": "10"}
    return subprocess.run(psql, env=environment, capture_output=True, timeout=WAIT_S, check=False).returncode == 0


def main(command: list[str]) -> int:
    """Run the command; returns its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and so through the end of each `with`
    try:
        with running_server() as url:
            print(f"AGENTMEM_TEST_POSTGRES={shown(url)}", flush=True)
            return subprocess.run(command, env={**os.environ, "AGENTMEM_TEST_POSTGRES": url}, check=False).returncode
    except OSError as error:
        print(f"with_postgres.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
