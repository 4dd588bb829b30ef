"""Cutting a Hugging Face causal LM into blocks without code for any architecture.

[Note: pass-through layers] The model's own forward is run with every decoder layer's ``forward`` replaced by one that
records the arguments it receives and hands its input on. Stopped at the last layer, that run is the *prelude*: it
yields the first hidden state and each layer's arguments. Run to the end with the true hidden state handed out by the
last layer, it is the *postlude*: norm, head and loss, as the model defines them. Parameters that a run does not need
are stood in for by zeros of stride 0, which take no memory; what is computed from them is thrown away.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from lohan_core.errors import ModelError
from lohan_core.layout import BlockLayout, Borrowed, lay_out
from lohan_core.model.attention import attention_of, flash_boundaries
from lohan_core.model.choices import Attention, Loss
from lohan_core.model.compiled import CompiledLayers, Make
from lohan_core.model.deferred_logits import loss_deferred
from lohan_core.model.layer_call import LayerCall, layer_settings, split_call
from lohan_core.model.loss import loss_computer
from lohan_core.model.probe import Probe, forwards_replaced
from lohan_core.model.rng import get_random_state, set_random_state
from lohan_core.model.skeleton import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CutModel", "cut_model"]


class _PreludeDone(Exception):  # noqa: N818 - not an error: it ends a forward that has served its purpose
    """Raised by the last pass-through layer."""


@define(kw_only=True)
class CutModel:
    """A model in blocks: prelude, each decoder layer, postlude. Holds no weights; every call is given them.

    ``blocks`` are in order. Weights are given by the parameter names of the block's layout, as views into whatever
    buffer they were streamed to. Calls run under the caller's grad mode.
    """

    model: PreTrainedModel
    blocks: tuple[BlockLayout, ...]
    unused: tuple[str, ...]
    """Parameters that no block computes with; they are never trained and are exported as they came."""
    loss: Loss
    """How head and loss are computed."""
    compiled: CompiledLayers | None
    """What runs layers that were prepared; None: nothing is compiled."""
    _layers: list[nn.Module] = field(alias="layers_list")
    _layer_prefix: str
    _returns_tuple: tuple[bool, ...]
    _stand_ins: dict[str, Tensor]

    @property
    def attention(self) -> Attention:
        """The kernels of attention."""
        return attention_of(self.model)

    @property
    def layers(self) -> range:
        """Indices of the decoder layers among the blocks."""
        return range(1, len(self.blocks) - 1)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return next(iter(self._stand_ins.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The compute type of weights and activations."""
        return next(iter(self._stand_ins.values())).dtype

    def kind_of(self, block: int, call: LayerCall) -> Hashable:
        """Return what tells a layer from one that computes otherwise: class, settings, shapes and kinds of argument.

        Two layers of one kind have the same operators with the same outputs.
        """
        arguments = [
            tuple(value.shape) if isinstance(value, Tensor) else repr(type(value))
            for value in tree_leaves((call.arguments, dict(call.keywords)))
        ]
        return layer_settings(self._layers[block - 1]), tuple(arguments)

    def to(self, device: torch.device) -> None:
        """Move buffers (never weights) to the device that computes."""
        for module in self.model.modules():
            for name, buffer in module._buffers.items():  # noqa: SLF001 - nn.Module has no public way
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)  # noqa: SLF001
        self._stand_ins = {
            name: torch.zeros((), dtype=t.dtype, device=device).expand(t.shape) for name, t in self._stand_ins.items()
        }

    def random_weights(self, block: int) -> dict[str, Tensor]:
        """Draw parameters for one block, small and normally distributed, as leaves that require grad."""
        layout = self.blocks[block]
        shapes = {slot.name: slot.shape for slot in layout.slots}
        shapes.update({entry.name: entry.slot.shape for entry in layout.borrowed})
        return {
            name: torch.randn(shape, dtype=self.dtype, device=self.device).mul_(0.02).requires_grad_()
            for name, shape in shapes.items()
        }

    def prelude(
        self, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[LayerCall, ...]]:
        """Run the model up to its first layer.

        Args:
            weights: the prelude's parameters by name.
            inputs: one micro-batch: input_ids, shape (rows, tokens), and what else the model's forward takes.

        Returns:
            The first layer's hidden state, and every layer's other arguments.
        """
        calls: list[LayerCall] = []
        first: list[Tensor] = []

        def record(position: int, *args: Any, **kwargs: Any) -> Any:
            hidden, call = split_call(args, kwargs)
            calls.append(call)
            if position == 0:
                first.append(hidden)
            if position == len(self._layers) - 1:
                raise _PreludeDone
            return (hidden,) if self._returns_tuple[position] else hidden

        more = {"use_cache": False, **self._boundaries(inputs)}
        with forwards_replaced(self._layers, record), suppress(_PreludeDone):
            functional_call(self.model, {**self._stand_ins, **weights}, (), {**inputs, **more})
        return first[0], tuple(calls)

    def layer(self, block: int, weights: Mapping[str, Tensor], hidden: Tensor, call: LayerCall) -> Tensor:
        """Run one decoder layer (``block`` counts the prelude as 0) and return its hidden state."""
        position, local = block - 1, self._named_within(block, weights)
        if self.compiled is not None:
            compiled = self.compiled.run(position, local, hidden, call)
            if compiled is not None:
                return compiled
        args, kwargs = call.with_hidden(hidden)
        output = functional_call(self._layers[position], local, args, kwargs)
        result: Tensor = output[0] if self._returns_tuple[position] else output
        return result

    def prepare(self, block: int, hidden: Tensor, call: LayerCall) -> None:
        """Have a layer compiled for calls like this one, where that is wanted; ``hidden`` requires grad.

        Raises:
            ConfigError: it cannot be.
        """
        if self.compiled is not None:
            self.compiled.prepare(
                block - 1, lambda: self._named_within(block, self.random_weights(block)), hidden, call
            )

    def _named_within(self, block: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name a layer's weights as the layer itself does."""
        prefix = f"{self._layer_prefix}.{block - 1}."
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}

    def postlude(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Run the model from its last layer's hidden state to the loss, a scalar: the mean over predicted tokens.

        Head and loss are the model's own, or computed together in place of them: see ``loss``.

        ``inputs`` must hold ``labels``. Randomness behind the last layer draws what it would in one piece: the random
        state that the discarded prelude has used up is put back.
        """
        state = get_random_state(hidden.device)

        def hand_out(position: int, *args: Any, **kwargs: Any) -> Any:
            passed, _ = split_call(args, kwargs)
            if position == len(self._layers) - 1:
                set_random_state(hidden.device, state)
                passed = hidden
            return (passed,) if self._returns_tuple[position] else passed

        with forwards_replaced(self._layers, hand_out), self._loss_in_place():
            output = functional_call(self.model, {**self._stand_ins, **weights}, (), {**inputs, "use_cache": False})
        loss: Tensor = output.loss
        return loss

    def _boundaries(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor | int]:
        """What flash-attn must be told of packed rows."""
        if self.attention is not Attention.FLASH or "position_ids" not in inputs:
            return {}
        return flash_boundaries(self.model, inputs["position_ids"])

    def _loss_in_place(self) -> AbstractContextManager[None]:
        compute = loss_computer(self.loss)
        return nullcontext() if compute is None else loss_deferred(self.model, compute)


def cut_model(model: PreTrainedModel, loss: Loss = Loss.WHOLE, *, compile_by: Make | None = None) -> CutModel:
    """Cut a model into blocks, finding out by one tiny run of zeros what each block needs.

    Args:
        model: a skeleton (:func:`lohan_core.model.skeleton.build_skeleton`).
        loss: how head and loss are to be computed; :func:`lohan_core.model.loss.require_same_loss` tells if they can.
        compile_by: how layers are compiled, each kind when it is prepared; None: they are not.

    Raises:
        ModelError: the model computes something between its layers, its layers depend on more than one value that
            carries a gradient, they return more than the next one takes, or some are skipped at random.
    """
    _refuse_layerdrop(model)
    prefix, layers = find_layers(model)
    names = dict(model.named_parameters())
    in_layers = [_names_below(names, f"{prefix}.{position}.") for position in range(len(layers))]
    everywhere_else = [name for name in names if not any(name in group for group in in_layers)]
    stand_ins = {
        name: torch.zeros((), dtype=names[name].dtype).expand(names[name].shape).requires_grad_()
        for name in everywhere_else
    }
    probe = Probe(list(layers), {id(tensor): name for name, tensor in stand_ins.items()})
    try:
        probe.run(model, stand_ins)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{type(model).__name__} cannot be cut into blocks: its layers are no chain: {reason}"
        ) from error
    decays = _decaying(model)

    def described(group: list[str]) -> list[tuple[str, tuple[int, ...], bool]]:
        return [(name, tuple(names[name].shape), name in decays) for name in group]

    first = [name for name in everywhere_else if name in probe.before]
    last = [name for name in everywhere_else if name in probe.behind and name not in probe.before]
    blocks = [lay_out(0, "prelude", described(first))]
    blocks += [
        lay_out(position + 1, f"{prefix}.{position}", described(group)) for position, group in enumerate(in_layers)
    ]
    tied = tuple(Borrowed(name=slot.name, owner=0, slot=slot) for slot in blocks[0].slots if slot.name in probe.behind)
    blocks.append(lay_out(len(blocks), "postlude", described(last), tied))
    return CutModel(
        model=model,
        blocks=tuple(blocks),
        unused=tuple(name for name in everywhere_else if name not in probe.before | probe.behind),
        loss=loss,
        compiled=CompiledLayers(list(layers), compile_by) if compile_by else None,
        layers_list=list(layers),
        layer_prefix=prefix,
        returns_tuple=tuple(probe.returns_tuple[type(layer)] for layer in layers),
        stand_ins={name: tensor.detach() for name, tensor in stand_ins.items()},
    )


def _refuse_layerdrop(model: PreTrainedModel) -> None:
    """Refuse LayerDrop, by which layers are skipped at random in training: a schedule has tasks for each of them."""
    config = model.config.get_text_config()
    for key in ("layerdrop", "decoder_layerdrop"):
        if share := getattr(config, key, None):
            raise ModelError(
                f"model.path: {key}: {share} in its config.json skips layers at random in training, which is not "
                f"supported; set {key} to 0 there"
            )


def _names_below(names: Mapping[str, Any], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def _decaying(model: nn.Module) -> set[str]:
    """Name the parameters that weight decay applies to: all but biases and those of normalisation layers."""
    names = set()
    for module_name, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if not is_norm and parameter.dim() > 1 and not name.endswith("bias"):
                names.add(name)
    return names
