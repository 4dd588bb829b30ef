"""The same model trained by plain PyTorch with everything on the GPU: what LoHan is measured beside.

Weights in the run's dtype, fp32 master weights and moments, every layer checkpointed, ``AdamW(fused=True)``, the global
norm clipped, micro-batches summed in fp32: the arithmetic of LoHan's own step, without moving anything, by the settings
and with the kernels of attention that LoHan's side has. Where LoHan's layers are compiled, its own are too, by
``torch.compile``. Head and loss are the model's own, whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lohan_core.data.batches import Batch
    from lohan_core.layout import ParameterSlot
    from lohan_core.model.choices import Attention
    from lohan_core.reference.torch_adamw import AdamWConfig

__all__ = ["PlainStep", "PlainTrainer"]


@frozen(kw_only=True)
class PlainStep:
    """One step: its wall-clock time, mean loss, and the most GPU memory that this process has had so far.

    ``attention`` is what the model computed it with.
    """

    seconds: float
    loss: float
    peak_gpu_bytes: int
    attention: Attention


class PlainTrainer:
    """Holds a model and its states on one device and trains it."""

    def __init__(
        self,
        *,
        model: Path,
        seed: int,
        device: str,
        dtype: torch.dtype,
        attention: Attention,
        optimizer: AdamWConfig,
        compiles: bool = False,
    ) -> None:
        """Make the model of a directory's config, with the random weights that LoHan's side has too.

        Args:
            model: a model directory; its config is all that is read.
            seed: what weights are drawn from.
            device: where everything is.
            dtype: of weights, activations and gradients: bf16 or fp32.
            attention: the kernels of attention.
            optimizer: learning rate, decay, moments and the norm to clip by.
            compiles: whether layers are compiled, each as one, by ``torch.compile``.
        """
        import torch
        from torch.utils.checkpoint import checkpoint
        from transformers import AutoModelForCausalLM

        from lohan_core.model.attention import use_attention
        from lohan_core.model.skeleton import find_layers, read_config

        self._device = torch.device(device)
        with self._device:
            self._model = AutoModelForCausalLM.from_config(read_config(model), dtype=dtype).train()
        use_attention(self._model, attention)
        for layer in find_layers(self._model)[1]:
            forward = partial(checkpoint, layer.forward, use_reentrant=False)
            # Around the checkpoint: within it, a compiled layer would be recomputed to its end.
            layer.forward = torch.compile(forward, dynamic=False) if compiles else forward
        self._weights: list[torch.Tensor] = list(self._model.parameters())
        drawn = _draw_masters(model, self._model, seed, self._device, dtype)
        with torch.no_grad():
            torch._foreach_copy_(self._weights, [value for _, value in drawn])
        # Weights in fp32 are their own masters: a second copy would only take memory and time.
        self._masters = self._weights if dtype is torch.float32 else [value for _, value in drawn]
        decays = [slot.decays for slot, _ in drawn]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": _where(decays, self._masters, wanted=True), "weight_decay": optimizer.weight_decay},
                {"params": _where(decays, self._masters, wanted=False), "weight_decay": 0.0},
            ],
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=True,
        )
        self._max_grad_norm = optimizer.max_grad_norm

    def step(self, batch: Batch) -> PlainStep:
        """Train on one batch."""
        import torch

        from lohan_core.model.attention import attention_of

        self._wait()
        began = time.perf_counter()
        total = sum(batch.loss_tokens)
        losses = []
        for inputs, tokens in zip(batch.micro_batches, batch.loss_tokens, strict=True):
            loss = self._model(**self._on_device(inputs), use_cache=False).loss * (tokens / total)
            loss.backward()
            losses.append(loss.detach())
            self._add_gradients()
        if self._max_grad_norm:  # neither None nor 0
            torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._masters is not self._weights:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._masters)
        self._wait()
        return PlainStep(
            seconds=time.perf_counter() - began,
            loss=sum(float(loss) for loss in losses),
            peak_gpu_bytes=torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else 0,
            attention=attention_of(self._model),
        )

    def _on_device(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _add_gradients(self) -> None:
        """Move the weights' gradients over to the masters, in fp32. Where they are the same, they are there."""
        if self._masters is self._weights:
            return
        for weight, master in zip(self._weights, self._masters, strict=True):
            if master.grad is None:
                master.grad = weight.grad.float() if weight.grad is not None else None
            elif weight.grad is not None:
                master.grad.add_(weight.grad)
            weight.grad = None

    def _wait(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _where(flags: Sequence[bool], tensors: Sequence[torch.Tensor], *, wanted: bool) -> list[torch.Tensor]:
    return [tensor for flag, tensor in zip(flags, tensors, strict=True) if flag is wanted]


def _draw_masters(
    directory: Path, model: PreTrainedModel, seed: int, device: torch.device, dtype: torch.dtype
) -> list[tuple[ParameterSlot, torch.Tensor]]:
    """Draw the model's parameters, in fp32 and in its order, as a run in ``dtype`` with ``model.weights: random`` does.

    Each comes with its place in its block, which says whether it decays.
    """
    import torch

    from lohan_core.model.cut import cut_model
    from lohan_core.model.skeleton import build_skeleton, read_config
    from lohan_core.weights import RandomWeights

    skeleton = build_skeleton(read_config(directory), dtype)
    weights = RandomWeights(directory, skeleton, seed=seed, device=device)
    masters = {}
    for block in cut_model(skeleton).blocks:
        flat = torch.empty(block.elements, device=device)
        weights.read_block(block, flat)
        for slot in block.slots:
            masters[slot.name] = slot, torch.nn.Parameter(flat[slot.offset : slot.stop].view(slot.shape).clone())
    return [masters[name] for name, _ in model.named_parameters()]
