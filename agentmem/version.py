"""The version of agentmem.

In a checkout, it is the version in pyproject.toml. (The metadata may be missing, or older than pyproject.toml.) In an
installed package, it is the version in the metadata of the distribution. That is called ``agentmem-sessions``, because
``agentmem`` on the public package index is another project.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "agentmem-sessions"
"""The name of the distribution that pip installs."""

UNKNOWN = "0+unknown"
"""The version of a package that was copied without its metadata: valid by PEP 440, and older than any other."""


def _checkout_version() -> str | None:
    """The version in the pyproject.toml beside the package; None if there is none, or if it is another project's."""
    try:
        text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text).get("project", {})
    except (OSError, ValueError):  # no such file, or not TOML: this is not a checkout
        return None
    return str(project["version"]) if project.get("name") == DISTRIBUTION else None


def _distribution_version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return UNKNOWN


__version__ = _checkout_version() or _distribution_version()
