"""The tail of every "unknown name" message: the nearest name, and all there are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["choose_one_of"]


def choose_one_of(name: object, choices: Iterable[str]) -> str:
    """Say which of ``choices`` the writer of ``name`` may have meant, and list them all; one line, no full stop."""
    names = sorted(choices)
    if not names:
        return "There are none to choose from"
    lowered = {choice.lower(): choice for choice in names}
    nearest = get_close_matches(str(name).lower(), lowered, n=1)
    meant = f"Did you mean {lowered[nearest[0]]!r}? " if nearest else ""
    return f"{meant}Choose one of: {', '.join(names)}"
