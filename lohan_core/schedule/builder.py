"""The growing list of tasks, with rings whose reuse is a dependency in the list."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from attrs import define, field

from lohan_core.plan import Tier
from lohan_core.schedule.task import Op, Pool, Slot, Task

__all__ = ["Builder", "Ring"]


@define
class Ring:
    """The slots of one pool, handed out in the order in which they were given back.

    ``acquire`` returns a slot and the tasks that must finish before its new tenant may touch it.
    """

    pool: Pool
    _given_back: deque[tuple[int, tuple[int, ...]]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._given_back = deque((index, ()) for index in range(self.pool.slots))

    @property
    def free(self) -> int:
        """How many slots have been given back, or not yet been taken."""
        return len(self._given_back)

    def acquire(self) -> tuple[Slot, tuple[int, ...]]:
        """Take the slot that was given back first. The schedule must have given one back: it is a list, not a lock."""
        if not self._given_back:
            raise RuntimeError(f"schedule takes more slots of {self.pool.name!r} than its {self.pool.slots}")
        index, after = self._given_back.popleft()
        return Slot(self.pool.name, index), after

    def release(self, slot: Slot, after: Iterable[int]) -> None:
        """Give a slot back once the tasks ``after`` are finished."""
        self._given_back.append((slot.index, tuple(after)))


@define
class Builder:
    """Appends tasks and keeps the rings."""

    tasks: list[Task] = field(factory=list)
    rings: dict[str, Ring] = field(factory=dict)

    def add_pool(self, name: str, tier: Tier, slot_bytes: int, slots: int) -> None:
        """Declare a pool before its first use."""
        self.rings[name] = Ring(Pool(name=name, tier=tier, slot_bytes=slot_bytes, slots=slots))

    def add(self, op: Op, *, after: Iterable[int] = (), **fields: Any) -> int:
        """Append a task and return its index."""
        index = len(self.tasks)
        self.tasks.append(Task(index=index, op=op, after=tuple(sorted(set(after))), **fields))
        return index

    def pools(self) -> dict[str, Pool]:
        """All declared pools by name."""
        return {name: ring.pool for name, ring in self.rings.items()}
