"""Taking head and loss out of a model's own forward, whatever the architecture.

[Note: deferred logits] While the postlude runs, the head returns no logits but what stands for them. It has their
shape, dtype and device, takes down what the model does with them one by one (scaling, soft-capping, another dtype), and
when the model asks for their cross-entropy, hands all of it, with the hidden states and the head's weight, to a
function that computes both at once. Labels, which tokens count and what is divided by remain the model's own doing.
Anything else that a model does with its logits is refused by name: a silent detour through all logits would be worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lohan_core.errors import ConfigError
from lohan_core.model.chunked_loss import CASTS, HeadLoss, Transform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ComputeLoss", "loss_deferred"]

ComputeLoss = Callable[[HeadLoss], Tensor]
"""Computes the loss of hidden states; the scalar leads back to them and to the head."""

_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad"})
_QUESTIONS = frozenset({"size", "dim", "numel", "is_contiguous", "is_floating_point", "__len__"})
_SHAPES = frozenset({"view", "reshape", "flatten"})
_VALUE_BY_VALUE = CASTS | {"div", "mul", "tanh"}
"""What a model may do with logits: each value's result depends on that value alone, and on numbers."""


@contextmanager
def loss_deferred(model: PreTrainedModel, compute: ComputeLoss) -> Iterator[None]:
    """Have ``compute`` find the loss while this context lasts.

    Raises:
        ConfigError: the head is no plain matrix, or the model does something with its logits that cannot be deferred.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise _refusal(model, f"its head is {type(head).__name__}, not a plain matrix")
    computed: list[Tensor] = []

    def keep(loss: HeadLoss) -> Tensor:
        computed.append(compute(loss))
        return computed[-1]

    def forward(hidden: Tensor) -> Tensor:
        return _DeferredLogits.of(_Deferred(model, keep, hidden, head.weight, head.bias), hidden.dtype)

    head.__dict__["forward"] = forward
    try:
        yield
    finally:
        del head.__dict__["forward"]
    if not computed:
        raise _refusal(model, "its loss is not the cross-entropy of its head's logits")


def _refusal(model: nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"model.loss: {type(model).__name__} cannot be computed a slice at a time: {reason}; set model.loss: whole"
    )


@frozen(eq=False)
class _Deferred:
    """What stands behind deferred logits."""

    model: nn.Module
    compute: ComputeLoss
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    transforms: tuple[Transform, ...] = ()

    def cross_entropy(  # noqa: PLR0917 - torch's own signature
        self,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,  # noqa: FBT001 - likewise
        ignore_index: int = -100,
        reduce: bool | None = None,  # noqa: FBT001 - likewise
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Compute the loss now."""
        if weight is not None or size_average is not None or reduce is not None or label_smoothing:
            raise _refusal(self.model, "its loss weighs tokens or smooths labels")
        if reduction not in {"mean", "sum"}:
            raise _refusal(self.model, f"its loss is not reduced to one number but {reduction!r}")
        return self.compute(
            HeadLoss(
                hidden=self.hidden.reshape(-1, self.hidden.shape[-1]),
                weight=self.weight,
                bias=self.bias,
                labels=target.reshape(-1),
                transforms=self.transforms,
                ignore_index=ignore_index,
                reduction="mean" if reduction == "mean" else "sum",
            )
        )


class _DeferredLogits(Tensor):
    """A stand-in without memory that takes down what is done with it: see [Note: deferred logits]."""

    deferred: _Deferred

    @classmethod
    def of(cls, deferred: _Deferred, dtype: torch.dtype) -> _DeferredLogits:
        """Stand for the logits of ``deferred``, in the dtype that its transforms end in."""
        shape = (*deferred.hidden.shape[:-1], len(deferred.weight))
        stand_in: _DeferredLogits = cls._make_wrapper_subclass(cls, shape, dtype=dtype, device=deferred.hidden.device)
        stand_in.deferred = deferred
        return stand_in

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer what is known, take down what can wait, refuse the rest."""
        del types
        name, kwargs = func.__name__, kwargs or {}
        asked = name == "__get__" and getattr(func.__self__, "__name__", "") in _ATTRIBUTES
        if asked or name in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's documentation does
                return func(*args, **kwargs)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        logits = next(value for value in tensors if isinstance(value, cls))
        others = args[1:]
        if args and args[0] is logits:
            if name == "cross_entropy":
                return logits.deferred.cross_entropy(*others, **kwargs)
            if len(tensors) == 1 and name in _VALUE_BY_VALUE:
                return cls._waiting(logits, Transform(name, lambda values: func(values, *others, **kwargs)))
            if len(tensors) == 1 and name in _SHAPES:
                return cls._reshaped(logits, func, others, kwargs)
        raise _refusal(logits.deferred.model, f"it computes {name!r} of its logits")

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Never reached but by what passed the function above unseen."""
        raise NotImplementedError(f"{func} on logits that are not there")

    @staticmethod
    def _waiting(logits: _DeferredLogits, transform: Transform) -> _DeferredLogits:
        deferred = logits.deferred
        result = transform.apply(torch.empty(0, dtype=logits.dtype, device=logits.device))
        return _DeferredLogits.of(evolve(deferred, transforms=(*deferred.transforms, transform)), result.dtype)

    @staticmethod
    def _reshaped(logits: _DeferredLogits, func: Any, others: Any, kwargs: Mapping[str, Any]) -> _DeferredLogits:
        """Give the hidden states the shape that the logits are to have, as long as a token's stay together."""
        deferred = logits.deferred
        shape = func(torch.empty((), device="meta").expand(logits.shape), *others, **kwargs).shape
        if shape[-1] != logits.shape[-1]:
            raise _refusal(deferred.model, f"it changes its logits' shape to {tuple(shape)}")
        hidden = deferred.hidden.reshape(*shape[:-1], deferred.hidden.shape[-1])
        return _DeferredLogits.of(evolve(deferred, hidden=hidden), logits.dtype)
