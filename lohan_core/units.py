"""Sizes and numbers as people write them in a config file, and bytes and seconds as people read them.

PyYAML follows YAML 1.1 and reads ``1e-4`` as text, so numbers are parsed here, not left to it.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import NewType

__all__ = [
    "Bytes",
    "exact_bytes",
    "format_bytes",
    "format_seconds",
    "parse_bytes",
    "parse_number",
    "parse_whole_number",
]

Bytes = NewType("Bytes", int)
"""A number of bytes. A config class that annotates a key with it lets the file say ``24GiB``."""

_DECIMAL = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_UNITS = {unit.lower(): factor for unit, factor in (_DECIMAL | _BINARY).items()}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)


def parse_bytes(value: object) -> Bytes:
    """Read a size: a whole number of bytes, or text such as ``24GiB``, ``60GB`` or ``1.5 MiB``.

    Units with an ``i`` are powers of 1024, the others powers of 1000; their case does not matter. A fraction of a byte
    that is left over (``1.3KiB``) is dropped.

    Raises:
        ValueError: not a size; the message says what to write.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Bytes(value)
    if not isinstance(value, str) or not (match := _SIZE.fullmatch(value.strip())):
        raise ValueError(f"wants a size such as 24GiB, 60GB or a number of bytes, got {value!r}")
    number, unit = Decimal(match["number"]), match["unit"].lower()
    if f"{unit}ib" in _UNITS and unit:
        raise ValueError(f"got {value!r}: write {unit.upper()}iB (powers of 1024) or {unit.upper()}B (powers of 1000)")
    if not unit and number == int(number):
        unit = "b"
    if unit not in _UNITS:
        raise ValueError(f"got {value!r}: the unit must be one of {', '.join(_DECIMAL | _BINARY)}")
    return Bytes(int(number * _UNITS[unit]))


def parse_number(value: object) -> float:
    """Read a finite number: YAML's own, or text such as ``1e-4``.

    Raises:
        ValueError: not a finite number.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"wants a number, got {value!r}")
    return number


def parse_whole_number(value: object) -> int:
    """Read a whole number: YAML's own, or one that is written with an exponent, such as ``1e3``.

    Raises:
        ValueError: not a number, or not whole.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = parse_number(value)
    except ValueError:
        number = math.nan
    if number != number // 1:
        raise ValueError(f"wants a whole number, got {value!r}")
    return int(number)


def format_bytes(size_bytes: int) -> str:
    """Write a size for people, to three digits or so: ``1.43 GiB``. See :func:`exact_bytes` for machines."""
    if abs(size_bytes) < 2**10:
        return f"{size_bytes} B"
    unit, factor = max(((u, f) for u, f in _BINARY.items() if abs(size_bytes) >= f), key=lambda pair: pair[1])
    scaled = size_bytes / factor
    return f"{scaled:.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0}f} {unit}"


def exact_bytes(size_bytes: int) -> str:
    """Write a size so that :func:`parse_bytes` reads back the very same one: ``24GiB``, ``1500MB``, ``1001B``."""
    by_factor = sorted((_DECIMAL | _BINARY).items(), key=lambda pair: pair[1], reverse=True)
    unit, factor = next((u, f) for u, f in by_factor if size_bytes % f == 0 and (size_bytes or f == 1))
    return f"{size_bytes // factor}{unit}"


def format_seconds(seconds: float) -> str:
    """Write a time for people, to three digits or so."""
    if seconds >= 1:
        return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f} s"
    return f"{1000 * seconds:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f} ms"
