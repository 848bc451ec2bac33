"""Checks that every engine must pass. Anyone can run them against an engine; they need no test framework.

A check is an async function. Its name is the promise that it checks. Its argument is a function that opens the database
anew, as another handle or process would. It raises :class:`NotConforming` if the engine breaks the promise::

    for check in CHECKS:
        await check(lambda: SQLiteEngine("scratch.db"))

A check uses session ids of its own. So one database serves all checks, more than once and at the same time.
"""

from . import appending, cancelling, concurrency, integrity, listing, reading, removing
from .fixtures import Check, NotConforming, OpenEngine

__all__ = ["CHECKS", "Check", "NotConforming", "OpenEngine"]

CHECKS: tuple[Check, ...] = (
    *appending.CHECKS,
    *reading.CHECKS,
    *removing.CHECKS,
    *listing.CHECKS,
    *concurrency.CHECKS,
    *cancelling.CHECKS,
    *integrity.CHECKS,
)
"""Every check, the simplest first."""
