"""Optimizer: declares the states it keeps beside each master weight, and updates one chunk of them.

A backend's ``open`` is called as ``open(config, threads=...)``: ``config`` is an instance of the backend's own config
class, which subclasses :class:`OptimizerConfig`; ``threads`` is the number of cores that updates may use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from lohan_core.backend import Backend
from lohan_core.layout import BLOCK_ALIGNMENT

if TYPE_CHECKING:
    import torch
    from attrs import Attribute

__all__ = ["Hyperparameters", "LearningRateSchedule", "Optimizer", "OptimizerBackend", "OptimizerConfig", "StateField"]


class LearningRateSchedule(StrEnum):
    """How the learning rate falls after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


@frozen(kw_only=True)
class OptimizerConfig:
    """The keys that every optimizer's section has. A backend's own class adds to them.

    The core carries them out, and what an update needs of them comes with each (:class:`Hyperparameters`): a backend
    reads only the keys that its own class adds.

    Attributes:
        lr: Learning rate after warm-up.
        weight_decay: Decay of weights per step, in units of the learning rate; norms and biases are exempt.
        max_grad_norm: Global gradient norm above which gradients are scaled down to it; `null` or 0: no clipping.
        schedule: How the learning rate falls from the end of warm-up to the last step: `constant`, `linear` to 0, or
            `cosine` to 0.
        warmup_steps: Steps in which the learning rate rises linearly from 0.
    """

    lr: float = field(default=1e-5, validator=gt(0.0))
    weight_decay: float = field(default=0.0, validator=ge(0.0))
    # mypy takes the field's type from the default alone.
    max_grad_norm: float | None = field(default=1.0, validator=optional(ge(0.0)))  # type: ignore[arg-type]
    schedule: LearningRateSchedule = LearningRateSchedule.CONSTANT
    warmup_steps: int = field(default=0, validator=ge(0))


def _divides_what_is_updated_at_once(field: StateField, _: Attribute[int], value: int) -> None:
    if value < 1 or BLOCK_ALIGNMENT % value:
        raise ValueError(
            f"state {field.name!r}: elements_per_value is {value}, which does not divide {BLOCK_ALIGNMENT}"
        )


@frozen(kw_only=True)
class StateField:
    """One state kept per parameter, beside the fp32 master weight that the core owns.

    ``elements_per_value`` is how many parameters share one value: 1 for Adam's moments, 256 for a block-wise scale. It
    divides 4096: updates begin and end at multiples of that many parameters, and never cut through a value.

    Raises:
        ValueError: it does not.
    """

    name: str
    dtype: torch.dtype
    initial: float = 0.0
    elements_per_value: int = field(default=1, validator=_divides_what_is_updated_at_once)


@frozen(kw_only=True)
class Hyperparameters:
    """What one update needs to know beside the tensors.

    ``step`` counts from 1. ``gradient_factor`` multiplies every gradient before use: the unscale and clip factor.
    """

    step: int
    lr: float
    weight_decay: float
    gradient_factor: float = 1.0


class Optimizer(ABC):
    """Updates flat slices of parameters in host memory. One call at a time; it may use ``threads`` cores inside it.

    How blocks are cut into slices depends on the plan, and results must not: n parameters updated in one call, or in
    several, have the same bits. n may be 0. With a learning rate of 0 no master weight moves. What a gradient that is
    not finite touches does not stay finite, so that it can be found (``torch.sign`` of NaN is 0: a rule that takes only
    the sign must see to that itself).
    """

    device_type = "cpu"
    """Where the tensors are."""
    gpu_types: ClassVar[frozenset[str]] = frozenset()
    """Types of GPU for which :meth:`on_device` has one, where what it needs is installed: ``{"cuda"}``."""

    @property
    @abstractmethod
    def fields(self) -> tuple[StateField, ...]:
        """The states kept beside the master weights, in the order in which they are stored."""

    def update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        """Update n parameters in place, in one pass, and emit their compute weights.

        Args:
            master: fp32, shape (n,), contiguous, on the optimizer's kind of device, as all others; updated in place.
            states: one tensor per field, shape (ceil(n / elements_per_value),); updated in place.
            gradient: bf16 or fp32, shape (n,); only read.
            weights: bf16 or fp32, shape (n,); receives the new master, rounded to nearest even. It may be the very
                memory of ``gradient``, element on element: what is written there must have been read.
            hyperparameters: step, learning rate, weight decay and gradient factor of this slice.

        Raises:
            ValueError: a shape, dtype or device is not as above.
        """
        self._check(master, states, gradient, weights)
        self._update(master, states, gradient, weights, hyperparameters)

    def update_into(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
        *,
        new_master: torch.Tensor,
        new_states: Mapping[str, torch.Tensor],
    ) -> None:
        """As :meth:`update`, but ``master`` and ``states`` are only read: the new ones go to another place.

        The results are the same to the bit. So an update can be taken back, by forgetting that place.

        Args:
            master: as for :meth:`update`, and so are all down to ``hyperparameters``.
            states: likewise.
            gradient: likewise.
            weights: likewise, but not the memory of ``gradient``.
            hyperparameters: likewise.
            new_master: receives the new master; of the same shape and type.
            new_states: receive the new states; likewise.

        Raises:
            ValueError: a shape, dtype or device is not as above.
        """
        self._check(master, states, gradient, weights)
        self._check(new_master, new_states, gradient, weights)
        self._update_into(
            master, states, gradient, weights, hyperparameters, new_master=new_master, new_states=new_states
        )

    def on_device(self, device: torch.device) -> Optimizer | None:
        """Return one for tensors on ``device``, of the same rule and fields, whose results are the same to the bit.

        Plans may then have states there. It is called at the same time as this one, from another thread; its updates
        are issued in the device's current stream. None (the default): there is none.
        """
        del device
        return None

    def describe(self) -> str:
        """One line for the run's log: the rule, and what carries it out."""
        return type(self).__name__

    def _check(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        n = master.numel()
        wanted = {f.name: (f.dtype, -(-n // f.elements_per_value)) for f in self.fields}
        if set(states) != set(wanted):
            raise ValueError(f"states are {sorted(states)}, want {sorted(wanted)}")
        for name, (dtype, length) in wanted.items():
            if states[name].dtype is not dtype or states[name].numel() != length:
                raise ValueError(
                    f"state {name!r} is {states[name].dtype}[{states[name].numel()}], want {dtype}[{length}]"
                )
        for label, tensor in {"master": master, "gradient": gradient, "weights": weights, **states}.items():
            if tensor.device.type != self.device_type or not tensor.is_contiguous() or tensor.dim() != 1:
                raise ValueError(f"{label} must be a contiguous 1-D tensor on {self.device_type}")
        if str(master.dtype) != "torch.float32":
            raise ValueError(f"master is {master.dtype}, want torch.float32")
        for label, tensor in {"gradient": gradient, "weights": weights}.items():
            if tensor.numel() != n:
                raise ValueError(f"{label} has {tensor.numel()} elements, master has {n}")
            if str(tensor.dtype) not in {"torch.bfloat16", "torch.float32"}:
                raise ValueError(f"{label} is {tensor.dtype}, want bfloat16 or float32")

    @abstractmethod
    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None: ...

    def _update_into(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
        *,
        new_master: torch.Tensor,
        new_states: Mapping[str, torch.Tensor],
    ) -> None:
        """What :meth:`update_into` does. A backend that can do without a copy first has its own."""
        new_master.copy_(master)
        for name, state in states.items():
            new_states[name].copy_(state)
        self._update(new_master, new_states, gradient, weights, hyperparameters)


OptimizerBackend: TypeAlias = Backend[Optimizer]
