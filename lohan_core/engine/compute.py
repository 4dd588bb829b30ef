"""The ``gpu`` lane: forward, the turn, and backward of one block and micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from lohan_core.engine.backward import backward
from lohan_core.engine.gradients import Gradients
from lohan_core.engine.lanes import Action
from lohan_core.engine.step import Saved, StepData
from lohan_core.engine.weights import Weights
from lohan_core.model.cut import CutModel
from lohan_core.model.keep import Keeping, nothing_saved
from lohan_core.model.replay import Replayer
from lohan_core.model.rng import get_random_state, set_random_state
from lohan_core.plan import Plan
from lohan_core.profile import Profile
from lohan_core.schedule.task import Op, Task

__all__ = ["Compute"]


class Compute:
    """Runs blocks. ``data`` is the step in progress; the engine sets it before each schedule."""

    data: StepData

    def __init__(
        self,
        model: CutModel,
        plan: Plan,
        profile: Profile,
        *,
        weights: Weights,
        gradients: Gradients,
        device: torch.device,
    ) -> None:
        self._model = model
        self._weights = weights
        self._gradients = gradients
        self._device = device
        self._replayer = Replayer(device)
        self._wanted = [
            frozenset(candidate.occurs_as for candidate in block.candidates if candidate.index in decisions.keep)
            for block, decisions in zip(profile.blocks, plan.blocks, strict=True)
        ]

    @property
    def actions(self) -> dict[Op, Action]:
        """What each kind of task does. Not an attribute: it would tie this object to itself and outlive the engine."""
        return {Op.FORWARD: self.forward, Op.TURN: self.turn, Op.SCORE: self.score, Op.BACKWARD: self.backward}

    def forward(self, task: Task) -> None:
        """Run one micro-batch through the prelude or a layer; remember what backward needs, where one follows."""
        data, k = self.data, task.micro_batch
        views = self._weights.views(task)
        set_random_state(self._device, data.random[k])
        if task.block == 0:
            data.prelude_random.append(data.random[k])
            with nothing_saved():
                hidden, calls = self._model.prelude(views, data.inputs[k])
            data.calls.append(calls)
        else:
            hidden = self._forward_layer(task, views)
        # Contiguous, so that a hidden state which waited elsewhere comes back with the strides it had.
        data.hidden[k] = hidden.detach().contiguous()
        data.random[k] = _unless_unchanged(get_random_state(self._device), data.random[k])

    def _forward_layer(self, task: Task, views: Mapping[str, Tensor]) -> Tensor:
        data, k = self.data, task.micro_batch
        hidden, call = data.hidden.pop(k).requires_grad_(), data.calls[k][task.block - 1]
        if data.trains:
            self._model.prepare(task.block, hidden, call)
        wanted = self._wanted[task.block] if data.trains else frozenset()
        keeping = Keeping(wanted, self._device) if wanted else None
        with nothing_saved() as saves, keeping or nullcontext():
            output = self._model.layer(task.block, views, hidden, call)
        if data.trains:
            kept = keeping.kept if keeping else {}
            data.saved[task.block, k] = Saved(hidden.detach(), kept, data.random[k], saves.count)
        return output

    def turn(self, task: Task) -> None:
        """Run the postlude of one micro-batch, forward and backward."""
        data, k = self.data, task.micro_batch
        views = self._weights.views(task)
        self._gradients.begin(task)
        set_random_state(self._device, data.random[k])
        hidden = data.hidden.pop(k).requires_grad_()
        with torch.enable_grad():
            loss = self._model.postlude(views, data.inputs[k], hidden)
        data.losses.append(loss.detach())
        share = torch.full_like(loss, data.weights[k])
        self._backward(task, loss, hidden, views, share)

    def score(self, task: Task) -> None:
        """Run the postlude of one micro-batch for its loss only."""
        data, k = self.data, task.micro_batch
        with torch.no_grad():
            hidden = data.hidden.pop(k)
            data.losses.append(self._model.postlude(self._weights.views(task), data.inputs[k], hidden))

    def backward(self, task: Task) -> None:
        """Run one micro-batch backward through a layer or the prelude, recomputing what was not kept."""
        data, k = self.data, task.micro_batch
        views = self._weights.views(task)
        self._gradients.begin(task)
        if task.block == 0:
            set_random_state(self._device, data.prelude_random[k])
            with torch.enable_grad():
                output, _ = self._model.prelude(views, data.inputs[k])
            self._backward(task, output, None, views, data.gradient.pop(k))
            return
        saved = data.saved.pop((task.block, k))
        if saved.hidden is None:
            raise RuntimeError(f"block {task.block}: its input has not come back")
        hidden = saved.hidden.requires_grad_()
        call = data.calls[k][task.block - 1]
        run = partial(self._model.layer, task.block, views, hidden, call)
        output = self._replayer.run(task.block, run, saved.kept, saved.saves, saved.random_state)
        saved.kept = {}
        self._backward(task, output, hidden, views, data.gradient.pop(k))

    def _backward(
        self, task: Task, output: Tensor, hidden: Tensor | None, views: Mapping[str, Tensor], gradient: Tensor
    ) -> None:
        data = self.data
        take = partial(self._gradients.add, task, data)
        given = backward(output, gradient, views, take, hidden=hidden)
        if given is not None:
            data.gradient[task.micro_batch] = given
        if task.micro_batch == len(data.inputs) - 1:
            self._gradients.finish(task, data)


def _unless_unchanged(state: Tensor, before: Tensor) -> Tensor:
    """Share one copy of a random state that blocks without randomness leave as it is."""
    return before if torch.equal(state, before) else state
