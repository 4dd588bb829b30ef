"""Plain PyTorch in a process of its own, beside LoHan as long as it has memory.

So each side has its own memory to be counted and capped, and steps may alternate.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from attrs import frozen

from lohan_core.bench.plain_trainer import PlainStep, PlainTrainer
from lohan_core.bench.workloads import StepWorkload, make_batch
from lohan_core.errors import LohanError

__all__ = ["PlainContender", "PlainOutOfMemoryError", "PlainProcess"]


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
    """Answer each number with a step, or with a failure, until the other end closes, or is no more."""
    import torch

    try:
        trainer = PlainTrainer(**trainer_arguments)
        connection.send(None)
        while True:
            connection.send(trainer.step(make_batch(workload, batch_size, connection.recv())))
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        line = str(error).partition("\n")[0]
        connection.send(_Failure(f"{type(error).__name__}: {line}", isinstance(error, torch.OutOfMemoryError)))
