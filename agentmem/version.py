"""Which version of agentmem this is.

A checkout says it in its own pyproject.toml, also where it was not installed, or was installed before the version there
changed. An installed package says it in the metadata of its distribution, which is called ``agentmem-sessions``: the
distribution ``agentmem`` on the public package index is another project's.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "agentmem-sessions"
"""What pip installs agentmem as."""

UNKNOWN = "0+unknown"
"""Of a package that was copied without its metadata. A version that any other is newer than, in the form of PEP 440."""


def _of_checkout() -> str | None:
    """The version in the pyproject.toml beside the package; None where there is none, or another project's."""
    try:
        text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text).get("project", {})
    except (OSError, ValueError):  # there is none, or it is not TOML: then this is no checkout
        return None
    return str(project["version"]) if project.get("name") == DISTRIBUTION else None


def _of_distribution() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return UNKNOWN


__version__ = _of_checkout() or _of_distribution()
