"""The same model trained by plain PyTorch with everything on the GPU: what LoHan is measured beside.

Weights in the run's dtype, fp32 master weights and moments, every layer checkpointed, ``AdamW(fused=True)``, the global
norm clipped, micro-batches summed in fp32: the arithmetic of LoHan's own step, without moving anything, by the settings
and with the kernels of attention that LoHan's side has. Where LoHan's layers are compiled, its own are too, by
``torch.compile``. Head and loss are the model's own, whole. It lives in a process of its own, so that each side has its
own memory to be counted and capped, and steps may alternate.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attrs import frozen

from lohan_core.bench.workloads import StepWorkload, make_batch
from lohan_core.errors import LohanError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lohan_core.data.batches import Batch
    from lohan_core.layout import ParameterSlot
    from lohan_core.model.choices import Attention
    from lohan_core.reference.torch_adamw import AdamWConfig

__all__ = ["PlainContender", "PlainOutOfMemoryError", "PlainProcess", "PlainStep", "PlainTrainer"]


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


class PlainOutOfMemoryError(LohanError):
    """The device has not enough memory for plain PyTorch."""


class PlainContender:
    """Plain PyTorch beside another, as long as it has memory.

    Attributes:
        steps: what it did; empty where it is absent.
        absence: why it is, or None.
    """

    def __init__(self, process: PlainProcess | None, absence: str | None) -> None:
        """Made by :meth:`start` and :meth:`absent`."""
        self.steps: list[PlainStep] = []
        self.absence = absence
        self._process = process

    @classmethod
    def absent(cls, reason: str) -> PlainContender:
        """Make one that does nothing."""
        return cls(None, reason)

    @classmethod
    def start(cls, workload: StepWorkload, batch_size: int, **trainer_arguments: Any) -> PlainContender:
        """Start it; what it takes is as for :class:`PlainProcess`.

        Raises:
            LohanError: it failed, for another reason than lack of memory.
        """
        try:
            return cls(PlainProcess(workload, batch_size, **trainer_arguments), None)
        except PlainOutOfMemoryError as error:
            return cls.absent(str(error))

    def step(self, number: int) -> None:
        """Train on the batch of step ``number``, if it is there. Raises LohanError as :meth:`start`."""
        if self._process is None:
            return
        try:
            self.steps.append(self._process.step(number))
        except PlainOutOfMemoryError as error:
            self.close()
            self.steps.clear()
            self.absence = str(error)

    def close(self) -> None:
        """End its process. May be called twice."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PlainProcess:
    """A :class:`PlainTrainer` in a process of its own, which idles while it is not asked for a step."""

    def __init__(self, workload: StepWorkload, batch_size: int, **trainer_arguments: Any) -> None:
        """Start it; it makes the workload's batches itself. The rest is what :class:`PlainTrainer` takes.

        Raises:
            PlainOutOfMemoryError: the device has not enough memory.
            LohanError: it could not be set up for another reason.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, workload, batch_size, trainer_arguments)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def step(self, number: int) -> PlainStep:
        """Train on the batch of step ``number``.

        Raises:
            PlainOutOfMemoryError: the device has not enough memory.
            LohanError: it failed for another reason.
        """
        with suppress(ConnectionError):  # what became of the process is found out when its answer is waited for
            self._connection.send(number)
        step = self._receive()
        assert isinstance(step, PlainStep)  # noqa: S101 - the other end is below
        return step

    def close(self) -> None:
        """End it, once it is done with what it was asked for."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> object:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise LohanError(f"plain PyTorch's process ended with code {self._process.exitcode}") from None
        if isinstance(answer, _Failure):
            self._process.join()
            if answer.out_of_memory:
                raise PlainOutOfMemoryError(f"ran out of memory: {answer.text}")
            raise LohanError(f"plain PyTorch failed: {answer.text}")
        return answer


@frozen
class _Failure:
    """What the process sends instead of a step."""

    text: str
    out_of_memory: bool


def _serve(
    connection: Connection[Any, Any], workload: StepWorkload, batch_size: int, trainer_arguments: Mapping[str, Any]
) -> None:
    """Answer each number with a step, or with a failure, until the other end closes."""
    import torch

    try:
        trainer = PlainTrainer(**trainer_arguments)
        connection.send(None)
        while True:
            connection.send(trainer.step(make_batch(workload, batch_size, connection.recv())))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        line = str(error).partition("\n")[0]
        connection.send(_Failure(f"{type(error).__name__}: {line}", isinstance(error, torch.OutOfMemoryError)))
