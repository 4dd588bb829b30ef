"""The native engine: which one, why, and a thin Python face of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

from attrs import frozen

from lohan_core.errors import BackendError, StorageError
from lohan_storage_aio.config import EngineName
from lohan_storage_aio.faults import Fault

__all__ = ["Choice", "Engine", "choose_engine", "probe", "summary", "why_unusable"]

# Best first: one thread feeds io_uring and libaio; the pool pays a thread and a system call for every operation.
_PREFERENCE = (EngineName.IO_URING, EngineName.LIBAIO, EngineName.THREADS)


def _native() -> Any:
    from lohan_storage_aio import _native

    return _native


@frozen(kw_only=True)
class Choice:
    """The engine that is used, and why."""

    name: EngineName
    reason: str


def probe() -> str | None:
    """Tell why the backend cannot be used here, or None. The thread pool works wherever the native module does."""
    try:
        _native()
    except ImportError as error:
        return f"its native module does not load ({error}); reinstall with: pip install --force-reinstall lohan"
    return None


def summary() -> str:
    """Describe the backend in a line, with the engines that work here and what would make the others work."""
    text = "files striped over several drives"
    if probe():
        return text
    reasons = {name: why_unusable(name) for name in _PREFERENCE}
    working = ", ".join(name for name, reason in reasons.items() if reason is None)
    missing = "".join(f"; no {name}: {reason}" for name, reason in reasons.items() if reason)
    return f"{text}, through {working}{missing}"


def why_unusable(name: EngineName) -> str | None:
    """Tell why an engine does not work on this machine, with the remedy; None if it does."""
    native = _native()
    kind = _kind(native, name)
    if not native.lib.lohan_aio_built(kind):
        return "built without liburing (install liburing-dev 2.2 or newer, then reinstall lohan)"
    error = -native.lib.lohan_aio_probe(kind)
    return _explain_probe(name, error) if error else None


def choose_engine(wanted: EngineName) -> Choice:
    """Take the engine that is asked for, or for `auto` the best that works.

    Raises:
        BackendError: the one that is asked for does not work here.
    """
    if wanted is not EngineName.AUTO:
        if reason := why_unusable(wanted):
            raise BackendError(f"storage.engine: {wanted} does not work on this machine: {reason}")
        return Choice(name=wanted, reason="as configured")
    passed_over: list[str] = []
    for name in _PREFERENCE[:-1]:
        reason = why_unusable(name)
        if reason is None:
            return Choice(name=name, reason="; ".join(passed_over) or "the best, and it works here")
        passed_over.append(f"not {name}: {reason}")
    return Choice(name=EngineName.THREADS, reason="; ".join(passed_over))


class Engine:
    """Owns a native engine. Methods may be called from any thread; each is one call without the GIL."""

    def __init__(self, name: EngineName, *, depth: int, block_bytes: int, alignment: int) -> None:
        """Open it. Raises BackendError if the kernel refuses."""
        native = _native()
        self._ffi, self._lib = native.ffi, native.lib
        self._directions = {
            "read": self._lib.LOHAN_AIO_READ,
            "write": self._lib.LOHAN_AIO_WRITE,
            "register": self._lib.LOHAN_AIO_REGISTER,
        }
        error = self._ffi.new("int *")
        self._engine = self._lib.lohan_aio_open(_kind(native, name), depth, block_bytes, alignment, error)
        if not self._engine:
            raise BackendError(f"storage.engine: {name} does not open: {_explain_probe(name, -error[0])}")

    def add_file(self, descriptor: int) -> int:
        """Register an open file; 0, or the errno with which that was refused (it works unregistered too)."""
        return -int(self._lib.lohan_aio_add_file(self._engine, descriptor))

    def remove_file(self, descriptor: int) -> None:
        """Let go of a file; must happen before it is closed, and with none of its transfers in flight."""
        self._lib.lohan_aio_remove_file(self._engine, descriptor)

    def add_memory(self, address: int, size_bytes: int) -> int:
        """Register memory, which must stay mapped until :meth:`remove_memories`; returns as :meth:`add_file`."""
        return -int(self._lib.lohan_aio_add_memory(self._engine, address, size_bytes))

    def remove_memories(self) -> int:
        """Let go of all registered memory, none of whose transfers may be in flight.

        Returns 0, or the errno with which the kernel refused: then it must stay mapped until the engine is closed.
        """
        return -int(self._lib.lohan_aio_remove_memories(self._engine))

    def submit(self, *, writes: bool, segments: list[tuple[int, int, int, int]]) -> Request:
        """Queue segments (descriptor, file offset, length, address); the memory must live until they are done.

        Raises StorageError if there is no memory to queue them.
        """
        error = self._ffi.new("int *")
        direction = self._directions["write" if writes else "read"]
        vector = self._ffi.new("lohan_aio_segment[]", segments)
        request = self._lib.lohan_aio_submit(self._engine, direction, vector, len(segments), error)
        if not request:
            raise StorageError(-error[0], f"a transfer cannot be queued: {os.strerror(-error[0])}")
        return Request(self._ffi, self._lib, request)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes (read, written) by requests that are done and did not fail."""
        read, write = (self._lib.lohan_aio_bytes(self._engine, self._directions[way]) for way in ("read", "write"))
        return int(read), int(write)

    def inject(self, faults: Iterable[Fault]) -> None:
        """Arm faults, for tests."""
        for fault in faults:
            direction = self._directions[fault.direction]
            self._lib.lohan_aio_inject(
                self._engine, direction, fault.after, fault.times, fault.error, fault.short_bytes
            )

    def close(self) -> None:
        """Wait for all requests and let go of the kernel's resources. Call it once, last."""
        self._lib.lohan_aio_close(self._engine)


class Request:
    """Segments in flight; may outlive the engine."""

    __slots__ = ("_ffi", "_lib", "_request")

    def __init__(self, ffi: Any, lib: Any, request: Any) -> None:
        """Own a native request; dropping it does not disturb what is in flight."""
        self._ffi, self._lib = ffi, lib
        self._request = ffi.gc(request, lib.lohan_aio_release)

    def wait(self) -> tuple[int, int, int] | None:
        """Wait until the kernel has let go of the memory; None, or (errno, descriptor, offset) of the first failure."""
        failure = self._ffi.new("lohan_aio_failure *")
        if self._lib.lohan_aio_wait(self._request, failure):
            return failure.error, failure.fd, failure.offset
        return None

    def done(self) -> bool:
        """Tell whether :meth:`wait` would return at once."""
        return bool(self._lib.lohan_aio_done(self._request))


def _kind(native: Any, name: EngineName) -> int:
    kinds = {
        EngineName.IO_URING: native.lib.LOHAN_AIO_IO_URING,
        EngineName.LIBAIO: native.lib.LOHAN_AIO_LIBAIO,
        EngineName.THREADS: native.lib.LOHAN_AIO_THREADS,
    }
    return int(kinds[name])


def _explain_probe(name: EngineName, error: int) -> str:
    """Say what an errno of opening an engine means (io_uring_setup(2), io_setup(2)), and the remedy."""
    remedies = {
        errno.EPERM: "not permitted here: see sysctl kernel.io_uring_disabled, or the container's seccomp profile",
        errno.ENOSYS: "this kernel lacks it: Linux 5.6 or newer is needed for io_uring",
        errno.ENOMEM: "too little memory may be locked: raise the memlock limit (ulimit -l)",
        errno.EAGAIN: "the kernel's limit is reached: raise sysctl fs.aio-max-nr"
        if name is EngineName.LIBAIO
        else "no more threads may be started: see ulimit -u",
    }
    return remedies.get(error, os.strerror(error))
