"""The same model trained by plain PyTorch with everything on the GPU: what LoHan is measured beside.

bf16 weights, fp32 master weights and moments, every layer checkpointed, ``AdamW(fused=True)``, the global norm clipped,
micro-batches summed in fp32: the arithmetic of LoHan's own step, without moving anything. It lives in a process of its
own, so that each side has its own memory to be counted and capped, and steps may alternate.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attrs import frozen

from lohan_core.bench.workloads import StepWorkload, find_workload, make_batch
from lohan_core.errors import LohanError

if TYPE_CHECKING:
    import torch

    from lohan_core.data.batches import Batch

__all__ = ["PlainProcess", "PlainStep", "PlainTrainer"]


@frozen(kw_only=True)
class PlainStep:
    """One step: its wall-clock time, mean loss, and the most GPU memory that this process has had so far."""

    seconds: float
    loss: float
    peak_gpu_bytes: int


class PlainTrainer:
    """Holds a model and its states on one device and trains it."""

    def __init__(self, *, model: Path, device: str, lr: float, max_grad_norm: float) -> None:
        """Load the model directory; bf16."""
        import torch
        from torch.utils.checkpoint import checkpoint
        from transformers import AutoModelForCausalLM

        from lohan_core.model.skeleton import find_layers

        self._device = torch.device(device)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(self._device).train()
        for layer in find_layers(self._model)[1]:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self._weights: list[torch.Tensor] = list(self._model.parameters())
        self._masters: list[torch.Tensor] = [torch.nn.Parameter(weight.detach().float()) for weight in self._weights]
        self._optimizer = torch.optim.AdamW(self._masters, lr=lr, weight_decay=0.0, fused=True)
        self._max_grad_norm = max_grad_norm

    def step(self, batch: Batch) -> PlainStep:
        """Train on one batch."""
        import torch

        self._wait()
        began = time.perf_counter()
        total = sum(batch.loss_tokens)
        losses = []
        for inputs, tokens in zip(batch.micro_batches, batch.loss_tokens, strict=True):
            loss = self._model(**self._on_device(inputs), use_cache=False).loss * (tokens / total)
            loss.backward()
            losses.append(loss.detach())
            self._add_gradients()
        torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._masters)
        self._wait()
        return PlainStep(
            seconds=time.perf_counter() - began,
            loss=sum(float(loss) for loss in losses),
            peak_gpu_bytes=torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else 0,
        )

    def _on_device(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _add_gradients(self) -> None:
        """Move the weights' gradients over to the masters, in fp32."""
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


class PlainProcess:
    """A :class:`PlainTrainer` in a process of its own, which idles while it is not asked for a step."""

    def __init__(self, workload: StepWorkload, batch_size: int, **trainer_arguments: Any) -> None:
        """Start it; it makes the workload's batches itself. The rest is what :class:`PlainTrainer` takes.

        Raises:
            LohanError: it could not be set up, for lack of memory for example.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, workload.name, batch_size, trainer_arguments)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def step(self, number: int) -> PlainStep:
        """Train on the batch of step ``number``.

        Raises:
            LohanError: it failed.
        """
        self._connection.send(number)
        step = self._receive()
        assert isinstance(step, PlainStep)  # noqa: S101 - the other end is below
        return step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    def _receive(self) -> object:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise LohanError(f"plain PyTorch's process ended with code {self._process.exitcode}") from None
        if isinstance(answer, str):
            self._process.join()
            raise LohanError(f"plain PyTorch failed: {answer}")
        return answer


def _serve(connection: Connection[Any, Any], name: str, batch_size: int, trainer_arguments: Mapping[str, Any]) -> None:
    """Answer each number with a step, or with the text of an error, until the other end closes."""
    workload = find_workload(name)
    try:
        trainer = PlainTrainer(**trainer_arguments)
        connection.send(None)
        while True:
            connection.send(trainer.step(make_batch(workload, batch_size, connection.recv())))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        connection.send(f"{type(error).__name__}: {error}")
