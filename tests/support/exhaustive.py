"""Which cases of a test are for the exhaustive run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

exhaustive = pytest.mark.exhaustive


def cases(values: Iterable[Any], *, quick: Callable[[Any], bool]) -> list[Any]:
    """For ``parametrize``: all these values, of which the quick run takes those for which `quick` is true."""
    return [value if quick(value) else _for_the_exhaustive_run(value) for value in values]


def _for_the_exhaustive_run(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=exhaustive)
