"""Keeping operators' outputs in a block's forward, to be handed out when backward re-runs it (``replay.py``).

[Note: occurrences] Every operator that reaches the dispatcher while a block runs is counted; its name, and how many of
that name ran before it, tell which it is. Forward and re-run execute the same Python code on the same values, both with
grad enabled (under ``no_grad`` torch folds some matrix products differently and would give other bits), so the counts
agree between the two. Should a model's control flow depend on its data (experts), it does so alike in both, because
both see the same micro-batch.

Between micro-batches they need not agree, and a plan is made for all of them from the first. transformers gives a layer
no mask where no row is padded and none holds several documents: torch then has another kernel of attention, and the
operators that widen the mask and the keys for it are not there. Counted all together, everything behind them would be
taken for something else; counted by name, the products and attention, whose kernels are one name here, stay what they
are. What a plan names and a micro-batch has not is computed again.

A kept output is an alias of what the operator returned, so it costs no copy. An operator that writes in place into a
kept value takes it off the list: the value would no longer be what the operator returned.

[Note: host time] All of this runs between the launches of kernels, a thousand times a step: where it takes longer than
the kernels, the GPU waits. So what is known of an operator by its schema is looked up once, and an output that is one
tensor, as nearly all are, goes past the general walk through nested outputs. torch would put a wrapper around every
dispatch that keeps torch.compile out of it: nothing here is compiled that way, and it takes long. (Beside an H100, and
beside updates, the forward of a layer that keeps 7 of its 70 outputs took the host 3.5 ms without it, 5.0 with it; the
GPU's part is 4.3.)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from attrs import define, field, frozen
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lohan_core.model.rng import get_random_state

__all__ = [
    "ATTENTION",
    "Keeping",
    "Kept",
    "Occurrence",
    "OperatorCounter",
    "Saves",
    "is_keepable",
    "map_tensors",
    "mutated_storages",
    "nothing_saved",
    "storage_of",
]

Occurrence: TypeAlias = tuple[str, int]
"""An operator's name, and how many of that name ran before it in the block's forward."""

ATTENTION = "attention"
"""What all fused kernels of attention are called: torch chooses another for each kind of mask."""

_KERNELS_OF_ATTENTION = ("_scaled_dot_product_", "_flash_attn_", "_flash_attention_", "_efficient_attention_")


@frozen(kw_only=True)
class Kept:
    """What one operator returned: tensors (and other values) in their structure, and the random state behind it.

    ``random_state`` is None for operators that draw nothing.
    """

    outputs: Any
    random_state: Tensor | None = field(default=None, eq=False)

    def tensors(self) -> list[Tensor]:
        """The tensors among the outputs."""
        return _tensors(self.outputs)


@frozen(kw_only=True)
class _Facts:
    """What is known of an operator, whatever it is given.

    ``name`` is None if it does not count: autograd's own, more of them where saved tensors pass a hook, and questions
    to tensors without memory. ``written`` are the arguments that it writes into: position and name.
    """

    func: OpOverload
    name: str | None
    makes_values: bool
    written: tuple[tuple[int, str], ...]
    draws: bool


_KNOWN: dict[int, _Facts] = {}
"""By the operator's identity, which is its own for as long as it is held here: its hash would be computed in Python."""


def _facts_of(func: OpOverload) -> _Facts:
    """Return what is known of an operator."""
    return _KNOWN.get(id(func)) or _learn(func)


def _learn(func: OpOverload) -> _Facts:
    schema = func._schema  # noqa: SLF001 - torch offers no public way to a schema
    packet: str = func.overloadpacket.__name__
    is_silent = func.overloadpacket is torch.ops.aten.detach or func.namespace == "prim"
    aliases = schema.is_mutable or any(result.alias_info is not None for result in schema.returns)
    facts = _KNOWN[id(func)] = _Facts(
        func=func,
        name=None if is_silent else ATTENTION if packet.startswith(_KERNELS_OF_ATTENTION) else packet,
        makes_values=not aliases and not packet.startswith(("empty", "new_empty")),
        written=tuple(
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if schema.is_mutable and argument.alias_info is not None and argument.alias_info.is_write
        ),
        draws=torch.Tag.nondeterministic_seeded in func.tags,
    )
    return facts


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def map_tensors(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Change the tensors among an operator's outputs."""
    return change(values) if isinstance(values, Tensor) else tree_map_only(Tensor, change, values)


def is_keepable(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> bool:
    """Tell whether an operator's outputs are values of their own: fresh, dense, and made from other tensors.

    Views and in-place operators alias their arguments; ``empty`` and its like return nothing worth keeping.
    """
    if not _facts_of(func).makes_values:
        return False
    tensors = _tensors(outputs)
    if not (any(tensor.numel() for tensor in tensors) and all(_is_dense(tensor) for tensor in tensors)):
        return False
    # Not every operator that returns a view says so: a product without bias ends in ``_unsafe_view``.
    made = {storage_of(tensor) for tensor in tensors}
    return not any(storage_of(tensor) in made for tensor in _given(args, kwargs))


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments, which are nested in lists at most."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (part for part in value if isinstance(part, Tensor))


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor fills its storage from the start, without overlap: then its bytes are its value."""
    return tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def mutated_storages(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[int]:
    """Yield the identities of the storages that an operator writes into, as :func:`storage_of` gives them."""
    for position, name in _facts_of(func).written:
        for tensor in _tensors(args[position] if position < len(args) else kwargs.get(name)):
            yield storage_of(tensor)


def storage_of(tensor: Tensor) -> int:
    """Identify a tensor's storage while it lives, with or without memory behind it."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - torch offers no public identity


class OperatorCounter(TorchDispatchMode):
    """Runs every operator and counts it among those of its name; subclasses look in."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Have torch leave ``__torch_dispatch__`` as it is; see [Note: host time]."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._counts: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count one operator and hand it on."""
        name = _facts_of(func).name
        if name is None:
            return func(*args, **(kwargs or {}))
        before = self._counts.get(name, 0)
        self._counts[name] = before + 1
        return self.run((name, before), func, args, kwargs or {})

    def run(self, occurrence: Occurrence, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator."""
        del occurrence
        return func(*args, **kwargs)


class Keeping(OperatorCounter):
    """Runs a block and keeps the outputs of the operators named by ``wanted``, those of them that there are."""

    def __init__(self, wanted: Container[Occurrence], device: torch.device) -> None:
        super().__init__()
        self.kept: dict[Occurrence, Kept] = {}
        self._wanted = wanted
        self._device = device

    def run(self, occurrence: Occurrence, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator; keep it if wanted; drop what it overwrites."""
        outputs = func(*args, **kwargs)
        facts = _facts_of(func)
        if facts.written and self.kept:
            for storage in mutated_storages(func, args, kwargs):
                self._drop(storage)
        if occurrence in self._wanted and is_keepable(func, args, kwargs, outputs):
            # An alias, since autograd will hang the graph of this forward onto the tensor that is returned.
            self.kept[occurrence] = Kept(
                outputs=map_tensors(Tensor.detach, outputs),
                random_state=get_random_state(self._device) if facts.draws else None,
            )
        return outputs

    def _drop(self, storage: int) -> None:
        """Let go of what has been overwritten. Rare: so it is looked for, not kept account of."""
        for occurrence, kept in list(self.kept.items()):
            if any(storage_of(tensor) == storage for tensor in kept.tensors()):
                del self.kept[occurrence]


@define
class Saves:
    """How many tensors autograd has asked to save."""

    count: int = 0


@contextmanager
def nothing_saved() -> Iterator[Saves]:
    """Run with grad enabled, for the same kernels as in training, but save nothing for a backward: only count."""
    saves = Saves()

    def drop(_: Tensor) -> None:
        saves.count += 1

    def refuse(_: None) -> Tensor:
        raise RuntimeError("backward through a forward that saved nothing")

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(drop, refuse):
        yield saves
