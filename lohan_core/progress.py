"""How whoever starts something long is told how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Report", "say_nothing"]

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""


def say_nothing(what: str, done: int, total: int) -> None:
    """Report to nobody."""
    del what, done, total
