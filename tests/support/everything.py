"""A container that holds whatever it is asked for."""

from __future__ import annotations

__all__ = ["EVERYTHING"]


class _Everything:
    def __contains__(self, item):
        return True


EVERYTHING = _Everything()
