"""The command line: ``lohan``."""

from __future__ import annotations

import sys

from lohan_core.cli.app import app
from lohan_core.errors import LohanError

__all__ = ["main"]


def main() -> None:
    """Run the command line; a mistake that a person can mend ends as one line per mistake, without a traceback."""
    try:
        app()
    except LohanError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
