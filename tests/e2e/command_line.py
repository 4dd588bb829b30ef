"""The command line in processes of its own, forked from one that has imported everything: a start takes a moment.

Importing torch and transformers is most of what a start takes, and dozens of runs are started here. Each child is a
process like any other, with its own exit code, signals, locks, open files, stdout and stderr.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from attrs import frozen

PATIENCE_SECONDS = 300.0
"""For what takes a second or two, or half a minute where layers are compiled: a machine may be busy."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pytest",
        "lohan_core.cli.app",
        "lohan_core.train",
        "lohan_core.engine.export",
        "lohan_core.engine.measure",
        "transformers.models.gpt2.modeling_gpt2",
        "accelerate",
        "safetensors.torch",
    ]
)


@frozen(kw_only=True)
class Death:
    """An instant at which a process kills itself: just before the ``nth`` system call of some kind on some path.

    ``event`` is a pattern for the names of Python's audit events (``os.rename``, ``open``, ...), ``path`` one that is
    searched for in their arguments.
    """

    event: str
    path: str
    nth: int


@frozen(kw_only=True)
class Ended:
    """How a command ended. ``code`` is negative for a signal."""

    code: int
    out: str
    err: str


@frozen(kw_only=True)
class Running:
    """A command that has been started."""

    process: multiprocessing.process.BaseProcess
    folder: Path

    def wait(self) -> Ended:
        """Wait for the end."""
        self.process.join(PATIENCE_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(
                f"still running after {PATIENCE_SECONDS:.0f} s\n{self._text('out')}\n{self._text('err')}"
            )
        return Ended(code=self.process.exitcode, out=self._text("out"), err=self._text("err"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def stop_when(self, condition: Callable[[], object], number: signal.Signals) -> Ended:
        """Send a signal at an instant at which ``condition`` holds, and wait for the end."""
        self.freeze_when(condition)
        self.signal(number)
        self.signal(signal.SIGCONT)
        return self.wait()

    def freeze_when(self, condition: Callable[[], object]) -> None:
        """Halt the process (SIGSTOP) at an instant at which ``condition`` holds, which it must come to."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert self.process.is_alive(), f"ended too soon\n{self._text('out')}\n{self._text('err')}"
            assert time.monotonic() < deadline, f"never came to it\n{self._text('out')}\n{self._text('err')}"
            if condition():
                self.signal(signal.SIGSTOP)
                if condition():
                    return
                self.signal(signal.SIGCONT)
            time.sleep(0.001)

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")


_numbers = count()


def start(
    arguments: Sequence[object],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    dies: Death | None = None,
    without: Sequence[str] = (),
) -> Running:
    """Start ``lohan ARGUMENTS``; what it prints is kept under ``folder``.

    Args:
        arguments: the command's.
        folder: where output goes.
        environment: variables to set beside those of this process.
        dies: when the process kills itself.
        without: modules that it shall not find.
    """
    own = folder / f"command.{next(_numbers)}"
    own.mkdir(parents=True)
    # Like this interpreter's -P: the server must not import the checkout that the tests happen to be started in.
    with mock.patch.dict(os.environ, PYTHONSAFEPATH="1", HF_HUB_OFFLINE="1"):
        forkserver.ensure_running()
    process = _context.Process(
        target=_carry_out,
        args=([str(argument) for argument in arguments], own, dict(environment or {}), dies, without),
        daemon=True,
    )
    process.start()
    return Running(process=process, folder=own)


def run(
    arguments: Sequence[object],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    dies: Death | None = None,
    without: Sequence[str] = (),
) -> Ended:
    """Start ``lohan ARGUMENTS`` as :func:`start` and wait for its end."""
    return start(arguments, folder, environment=environment, dies=dies, without=without).wait()


def _carry_out(
    arguments: list[str], folder: Path, environment: Mapping[str, str], dies: Death | None, without: Sequence[str]
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.update(environment)
    sys.modules.update(dict.fromkeys(without))  # to an import, None means that there is no such module
    import torch

    from lohan_core.cli import main

    torch.set_num_threads(1)  # models are tiny, and several runs may be at it
    os.nice(10)  # whoever waits for an instant of this process must not be the one who is kept waiting
    sys.argv = ["lohan", *arguments]
    if dies is not None:
        sys.addaudithook(_Reaper(dies))
    main()


class _Reaper:
    """An audit hook that kills its process."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self._seen = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        death = self._death
        if re.fullmatch(death.event, event) and any(
            isinstance(argument, str | Path) and re.search(death.path, str(argument)) for argument in arguments
        ):
            self._seen += 1
            if self._seen == death.nth:
                os.kill(os.getpid(), signal.SIGKILL)
