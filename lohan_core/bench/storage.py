"""``lohan bench storage``: sequential throughput of a storage backend beside fio, on the same files.

[Note: how it is made fair]
The backend allocates one extent, and fio reads and writes the very files that came of it: same blocks of the same
drives, same block size, depth and kernel interface. Both are measured in every round, one after the other and in
alternating order, and the ratio is the median of the rounds' ratios: what else runs on the machine slows both alike.
CPU seconds are those of the process, all its threads included, from the operating system on either side.
"""

from __future__ import annotations

import resource
import shlex
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, gt, in_, min_len

from lohan_core.backend import Kind
from lohan_core.bench.fio import FioJob, Sample, fio_version
from lohan_core.errors import ConfigError
from lohan_core.interfaces.storage import Storage, Transfer
from lohan_core.registry import Registry, load_registry
from lohan_core.units import Bytes, format_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["StorageBench", "StorageBenchOptions", "StorageBenchRow", "render", "run", "summarise"]

_BACKEND = "aio"
_EXTENT = "bench"
# Each request holds half of the blocks that may be in flight, and so many are started ahead: the queue does not run dry
# while one is waited for.
_REQUESTS = 4
_OPTION_OF = {"'stripe_bytes'": "--block", "'queue_depth'": "--depth"}
"""What is given to the backend under another name: its bounds are its own, and told in the user's words."""


@frozen(kw_only=True)
class StorageBenchOptions:
    """What to measure.

    Attributes:
        directories: One on each drive; a temporary directory is made in each, and removed.
        size_bytes: Size of the file set in all; past the drives' caches, if their sustained speed is asked for.
        block_bytes: Largest single transfer, and the stripe.
        depth: Transfers in flight.
        engine: `auto`, `io_uring`, `libaio` or `threads`.
        rounds: Measurements of each kind.
        seconds: Length of a measurement.
    """

    directories: tuple[Path, ...] = field(validator=min_len(1))
    size_bytes: Bytes = field(default=Bytes(2 << 30), validator=gt(Bytes(0)))
    block_bytes: Bytes = field(default=Bytes(1 << 20), validator=gt(Bytes(0)))
    depth: int = field(default=32, validator=ge(1))
    engine: str = field(default="auto", validator=in_(["auto", "io_uring", "libaio", "threads"]))
    rounds: int = field(default=9, validator=ge(1))
    seconds: float = field(default=1.0, validator=gt(0))


@frozen(kw_only=True)
class StorageBenchRow:
    """One operation. Single figures are medians over the rounds; those of fio are None where it is missing."""

    operation: str
    bytes_per_second: float
    cpu_seconds_per_gb: float
    rounds_bytes_per_second: tuple[float, ...]
    fio_bytes_per_second: float | None
    fio_cpu_seconds_per_gb: float | None
    fio_rounds_bytes_per_second: tuple[float, ...]
    ratio_to_fio: float | None


@frozen(kw_only=True)
class StorageBench:
    """What was measured, and on what."""

    engine: str
    storage: str
    size_bytes: int
    block_bytes: int
    depth: int
    fio_version: str | None
    fio_command: str | None
    rows: tuple[StorageBenchRow, ...]


def run(options: StorageBenchOptions, registry: Registry | None = None) -> StorageBench:
    """Measure ``aio`` as ``registry`` (default: what is installed) offers it, beside fio if there is one.

    Raises:
        ConfigError: a directory cannot be used, sizes do not divide, or there is too little space.
        BackendError: the engine does not work here, or fio failed.
        StorageError: the drive failed.
    """
    file_bytes = options.size_bytes // len(options.directories)
    if file_bytes % options.block_bytes or file_bytes * len(options.directories) != options.size_bytes:
        raise ConfigError(
            f"size {options.size_bytes}: want a whole number of blocks of {options.block_bytes} bytes in each of "
            f"{len(options.directories)} directories"
        )
    version = fio_version()
    with ExitStack() as stack:
        places = [stack.enter_context(_temporary_place(directory)) for directory in options.directories]
        storage = _open(registry or load_registry(), options, places)
        stack.callback(storage.close)
        free_bytes = storage.capacity().free_bytes
        if options.size_bytes > free_bytes:
            raise ConfigError(
                f"--size: {format_bytes(options.size_bytes)} are more than the {format_bytes(free_bytes)} that are "
                f"free in {', '.join(map(str, options.directories))}; ask for less"
            )
        storage.allocate(_EXTENT, options.size_bytes)
        ours = _Stream(storage, options)
        ours.fill()
        job = FioJob(
            files=[path for place in places for path in _files_of(place, file_bytes)],
            block_bytes=options.block_bytes,
            depth=options.depth,
            engine=str(getattr(storage, "engine", "io_uring")),
            seconds=options.seconds,
            file_bytes=file_bytes,
        )
        rows = tuple(
            _alternate(operation, ours, job if version else None, options.rounds) for operation in ("write", "read")
        )
        return StorageBench(
            engine=job.engine,
            storage=storage.describe(),
            size_bytes=options.size_bytes,
            block_bytes=options.block_bytes,
            depth=options.depth,
            fio_version=version,
            fio_command=shlex.join(job.command("OPERATION")) if version else None,
            rows=rows,
        )


class _Stream:
    """Sequential requests through a storage, always several in flight."""

    def __init__(self, storage: Storage, options: StorageBenchOptions) -> None:
        self._storage = storage
        self._size_bytes = options.size_bytes
        self._seconds = options.seconds
        from lohan_core.memory import allocate_host

        request_bytes = min(options.block_bytes * max(1, options.depth // 2), options.size_bytes)
        self._buffers = [allocate_host(request_bytes, pin=False).random_(0, 256) for _ in range(_REQUESTS)]
        storage.register(self._buffers)

    def fill(self) -> None:
        """Write the extent once: a first write also converts the blocks that were only reserved."""
        for offset in self._offsets():
            self._start("write", offset, self._buffers[0]).wait()
        self._storage.sync()

    def measure(self, operation: str) -> Sample:
        """Go through the extent, again and again, until the time is up."""
        in_flight: deque[Transfer] = deque()
        moved_bytes = 0
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        for offset, buffer in zip(cycle(self._offsets()), cycle(self._buffers), strict=False):
            if len(in_flight) == len(self._buffers):
                in_flight.popleft().wait()
            if time.perf_counter() - start > self._seconds:
                break
            in_flight.append(self._start(operation, offset, buffer))
            moved_bytes += min(buffer.nbytes, self._size_bytes - offset)
        for transfer in in_flight:
            transfer.wait()
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Sample(
            bytes_per_second=moved_bytes / seconds,
            cpu_seconds_per_gb=cpu_seconds / (moved_bytes / 1e9),
        )

    def _offsets(self) -> range:
        return range(0, self._size_bytes, self._buffers[0].nbytes)

    def _start(self, operation: str, offset: int, buffer: torch.Tensor) -> Transfer:
        part = buffer[: self._size_bytes - offset]
        start = self._storage.write if operation == "write" else self._storage.read
        return start(_EXTENT, offset, part)


@contextmanager
def _temporary_place(directory: Path) -> Iterator[Path]:
    try:
        place = Path(tempfile.mkdtemp(prefix="lohan-bench-", dir=directory))
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _open(registry: Registry, options: StorageBenchOptions, places: Sequence[Path]) -> Storage:
    try:
        config = registry.find(Kind.STORAGE, _BACKEND).config(
            directories=tuple(places),
            engine=options.engine,
            stripe_bytes=options.block_bytes,
            queue_depth=options.depth,
        )
    except ValueError as error:
        message = str(error.args[0])
        for key, option in _OPTION_OF.items():
            message = message.replace(key, option)
        raise ConfigError(message) from None
    return registry.open_backend(Kind.STORAGE, _BACKEND, config, namespace="bench", default_directory=places[0])


def _files_of(place: Path, size_bytes: int) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and path.stat().st_size == size_bytes]


def _alternate(operation: str, ours: _Stream, job: FioJob | None, rounds: int) -> StorageBenchRow:
    own: list[Sample] = []
    fio: list[Sample] = []
    for turn in range(rounds):
        contenders: list[tuple[list[Sample], Callable[[str], Sample]]] = [(own, ours.measure)]
        if job:
            contenders.append((fio, job.run))
        for samples, measure in contenders if turn % 2 == 0 else reversed(contenders):
            samples.append(measure(operation))
    return summarise(operation, own, fio)


def summarise(operation: str, own: Sequence[Sample], fio: Sequence[Sample]) -> StorageBenchRow:
    """Reduce the rounds to medians; the ratio is taken within each round. ``fio`` may be empty."""
    return StorageBenchRow(
        operation=operation,
        bytes_per_second=median(sample.bytes_per_second for sample in own),
        cpu_seconds_per_gb=median(sample.cpu_seconds_per_gb for sample in own),
        rounds_bytes_per_second=tuple(sample.bytes_per_second for sample in own),
        fio_bytes_per_second=median(sample.bytes_per_second for sample in fio) if fio else None,
        fio_cpu_seconds_per_gb=median(sample.cpu_seconds_per_gb for sample in fio) if fio else None,
        fio_rounds_bytes_per_second=tuple(sample.bytes_per_second for sample in fio),
        ratio_to_fio=median(a.bytes_per_second / b.bytes_per_second for a, b in zip(own, fio, strict=True))
        if fio
        else None,
    )


def render(result: StorageBench) -> str:
    """Lay the result out for people."""
    geometry = f"{format_bytes(result.size_bytes)}, blocks of {format_bytes(result.block_bytes)}, depth {result.depth}"
    lines = [
        result.storage,
        f"{geometry}; medians of {len(result.rows[0].rounds_bytes_per_second)} rounds",
        f"{'':8}{'lohan GB/s':>12}{'fio GB/s':>12}{'ratio':>8}{'lohan CPU s/GB':>16}{'fio CPU s/GB':>16}",
    ]
    for row in result.rows:
        gigabytes, fio_gigabytes = row.bytes_per_second, row.fio_bytes_per_second
        lines.append(
            f"{row.operation:8}{_figure(gigabytes, 1e9, 12, 3)}{_figure(fio_gigabytes, 1e9, 12, 3)}"
            f"{_figure(row.ratio_to_fio, 1, 8, 3)}{_figure(row.cpu_seconds_per_gb, 1, 16, 4)}"
            f"{_figure(row.fio_cpu_seconds_per_gb, 1, 16, 4)}"
        )
    lines.append(
        f"{result.fio_version}: {result.fio_command}"
        if result.fio_version
        else "fio is not installed, so there is nothing to compare with: apt install fio"
    )
    return "\n".join(lines)


def _figure(value: float | None, unit: float, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value / unit:>{width}.{digits}f}"
