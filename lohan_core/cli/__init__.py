"""The command line: ``lohan``."""

from __future__ import annotations

import os
import sys

from lohan_core.cli.app import app
from lohan_core.errors import LohanError

__all__ = ["main"]


def main() -> None:
    """Run the command line; a mistake that a person can mend ends as one line per mistake, without a traceback."""
    # Read when torch is loaded, later on. Threads that spin at the end of each parallel region hold up those that they
    # wait for, where a core has other work: a lane of ours, or somebody else's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except LohanError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
