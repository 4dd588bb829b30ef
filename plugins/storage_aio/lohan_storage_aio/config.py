"""What a config file may say to the backend `aio`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from attrs import Attribute, field, frozen
from attrs.validators import and_, ge, le

from lohan_core.units import Bytes

__all__ = ["AioConfig", "EngineName"]

PAGE_BYTES = 4096


class EngineName(StrEnum):
    """How transfers reach the kernel."""

    AUTO = "auto"
    IO_URING = "io_uring"
    LIBAIO = "libaio"
    THREADS = "threads"


def _whole_pages(_config: object, attribute: Attribute[Bytes], value: Bytes) -> None:
    if value <= 0 or value % PAGE_BYTES or value > 1 << 30:
        raise ValueError(f"{attribute.name!r} must be a multiple of {PAGE_BYTES} bytes, at most 1 GiB: {value}")


def _positive(_config: object, attribute: Attribute[tuple[float, ...]], value: tuple[float, ...]) -> None:
    if not all(weight > 0 for weight in value):
        raise ValueError(f"{attribute.name!r} must all be positive: {value}")


@frozen(kw_only=True)
class AioConfig:
    """Where extents are kept and how they are read and written.

    Attributes:
        directories: Existing directories that extents are striped over, one on each drive; empty: one inside the run
            directory.
        engine: `io_uring`, `libaio`, `threads`, or `auto`: the best of them that works on this machine.
        stripe_bytes: Bytes that go to one directory before the next one's turn; also the largest single transfer that
            the kernel is asked for.
        queue_depth: Transfers of up to `stripe_bytes` that are with the kernel at a time, over all directories.
        direct: Whether to go past the page cache (O_DIRECT) where the file system can.
        register_buffers: Whether to register host buffers with io_uring, which saves the kernel pinning them for every
            transfer, and counts against the memlock limit of an ordinary user.
        weights: Relative bandwidths of the directories, where the drives are not equal; empty: equal.
    """

    directories: tuple[Path, ...] = ()
    engine: EngineName = field(default=EngineName.AUTO, converter=EngineName)
    stripe_bytes: Bytes = field(default=Bytes(1 << 20), validator=_whole_pages)
    queue_depth: int = field(default=32, validator=and_(ge(1), le(1024)))
    direct: bool = True
    register_buffers: bool = True
    weights: tuple[float, ...] = field(default=(), validator=_positive)
