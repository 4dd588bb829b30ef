"""What a command writes: files that it is asked for, and nothing of what libraries would say."""

from __future__ import annotations

import os
from pathlib import Path

from lohan_core.errors import ConfigError

__all__ = ["quiet_transformers", "require_writable"]


def require_writable(option: str, path: Path) -> None:
    """Look before the work whether its result will have a place.

    Raises:
        ConfigError: ``path``, which ``option`` gave, is no regular file, or its directory cannot be written.
    """
    directory = path.absolute().parent
    if (path.exists() and not path.is_file()) or not directory.is_dir() or not os.access(directory, os.W_OK):
        raise ConfigError(f"{option}: {path} cannot be written; give a file in a directory that exists")


def quiet_transformers() -> None:
    """Keep transformers' warnings and progress bars from what a command prints. Imports transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
