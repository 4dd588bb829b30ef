"""The step that a crash would fall back to, and how to go on after one that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define

from lohan_core.engine.states import States
from lohan_core.store import Store

__all__ = ["Commits"]


@define
class Commits:
    """Makes finished steps durable, where states can be saved at all.

    Attributes:
        store: the run's.
        can_save: whether states can be made durable, by the workload that is carried out.
        awaited: a step that is to become durable when its deferred updates are done, and its progress.
    """

    store: Store
    can_save: bool
    awaited: tuple[int, Mapping[str, Any]] | None = None

    @property
    def step(self) -> int:
        """The step that a crash now would fall back to; 0 where nothing can be saved."""
        return self.store.committed_step if self.can_save else 0

    @property
    def progress(self) -> Mapping[str, Any]:
        """What was stored beside it."""
        return self.store.progress if self.can_save else {}

    def commit(self, step: int, progress: Mapping[str, Any], states: States) -> None:
        """Make a step durable that is whole in ``states``."""
        if not self.can_save:
            return
        if states.resident and step != self.step:
            states.write_resident()
            self.store.finish_step()
        self.store.commit(step, progress)

    def commit_awaited(self, states: States) -> None:
        """Make the step durable that waited for its updates. They are done, and no later one has begun."""
        if self.awaited is not None:
            step, progress = self.awaited
            self.awaited = None
            self.commit(step, progress, states)

    def way_on(self, finished_step: int, *, not_finite: bool = False) -> str:
        """Say what can be done after a step that failed part of the way: from the same states it may not fail again.

        Unless it was ``not_finite``.
        """
        if not self.can_save:
            return "nothing of this run can be saved: start again in another run.dir"
        if self.store.overwriting:
            return "states were overwritten in place (run.durability: none): start again in another run.dir"
        if self.step == finished_step and not_finite:
            return f"step {self.step} would lead there again: start in another run.dir"
        return f"open the run again to go on from step {self.step}, the last durable one"
