"""Where qcore keeps what it would otherwise make again."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Where trained float models and compiled libraries are kept: ``$QCORE_CACHE``, else ``qcore``
    in the user's cache."""
    given = os.environ.get("QCORE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qcore"
