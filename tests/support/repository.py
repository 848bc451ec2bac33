"""Where the repository is, and which agentmem is tested."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

REPO = Path(os.environ.get("AGENTMEM_REPO") or Path(__file__).parents[2]).resolve()
"""The repository, with README.md and examples/. The tests may run from anywhere, on an installed agentmem."""


def package_dir() -> Path:
    """The folder that ``import agentmem`` would load from; found without importing it."""
    spec = importlib.util.find_spec("agentmem")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("agentmem is not installed: pip install -e . (or run `nox -s tests`)")
    return Path(spec.origin).resolve().parent
