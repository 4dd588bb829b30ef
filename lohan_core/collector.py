"""Python's garbage collector, put aside where it has nothing to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Leave garbage to its reference counts while plans are made and simulated.

    A large model's schedule is a hundred thousand tasks, each a few objects, without a cycle. The collector would look
    through all of them again and again as they become more, which takes longer than making them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
