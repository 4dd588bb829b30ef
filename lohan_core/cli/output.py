"""Files that a command writes in the end, checked before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from lohan_core.errors import ConfigError

__all__ = ["require_writable"]


def require_writable(option: str, path: Path) -> None:
    """Refuse a path at which no file can be written; ``option`` is what it was given by.

    Raises:
        ConfigError: names both.
    """
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"{option}: {path} cannot be written; give a file in a directory that exists")
