"""Failing drives on demand, for tests.

The environment variable ``LOHAN_AIO_FAULT`` holds faults, separated by commas, that are armed when the storage opens::

    LOHAN_AIO_FAULT=write:EIO:after=200
    LOHAN_AIO_FAULT=read:short=4096:times=3,write:EAGAIN:times=10

Each names what fails (``read``, ``write`` or ``register``), how (an errno's name, or ``short=BYTES`` for a transfer of
no more than that, in whole pages), how many operations pass before (``after``, 0) and how many then fail (``times``,
1). An operation is what the kernel is asked for at once: at most ``storage.stripe_bytes``. One fault of each kind can
be armed.
"""

from __future__ import annotations

import errno
import re

from attrs import frozen

from lohan_core.errors import ConfigError

__all__ = ["FAULT_VARIABLE", "Fault", "parse_faults"]

FAULT_VARIABLE = "LOHAN_AIO_FAULT"

_FAULT = re.compile(
    r"(?P<direction>read|write|register):(?:(?P<error>E[A-Z0-9]+)|short=(?P<short>\d+))"
    r"(?::after=(?P<after>\d+))?(?::times=(?P<times>\d+))?"
)


@frozen(kw_only=True)
class Fault:
    """``error`` is an errno, or 0 for a transfer of at most ``short_bytes``."""

    direction: str
    error: int
    short_bytes: int
    after: int
    times: int


def parse_faults(text: str) -> list[Fault]:
    """Read the variable's text; empty text holds no faults. Raises ConfigError."""
    return [_parse(part) for part in text.split(",") if part]


def _parse(text: str) -> Fault:
    match = _FAULT.fullmatch(text)
    error = getattr(errno, match["error"], None) if match and match["error"] else 0
    if not match or error is None:
        raise ConfigError(
            f"{FAULT_VARIABLE}: {text!r} is not a fault such as write:EIO:after=200 or read:short=4096:times=3"
        )
    return Fault(
        direction=match["direction"],
        error=error,
        short_bytes=int(match["short"] or 0),
        after=int(match["after"] or 0),
        times=int(match["times"] or 1),
    )
