"""Whether a store belongs to the run that wants to take it up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lohan_core.errors import StoreError

__all__ = ["check_identity"]

_DIGEST = re.compile(r"[0-9a-f]{16,}")
"""A value that tells nobody anything; it may depend on settings beside it, as that of data on their length."""


def check_identity(path: Path, stored: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Refuse to take up what belongs to another run. Settings are told with both values, digests by name.

    Raises:
        StoreError: something differs; says what.
    """
    told, digests = [], []
    for key in sorted({*stored, *given}):
        before, now = stored.get(key, "not set"), given.get(key, "not set")
        if before == now:
            continue
        if _DIGEST.fullmatch(before) and _DIGEST.fullmatch(now):
            digests.append(key)
        else:
            told.append(f"{key} is {before!r} in the store and {now!r} now")
    if digests:
        told.append(f"{' and '.join(digests)} changed{', which may follow from that' if told else ''}")
    if told:
        raise StoreError(
            f"{path}: belongs to another run: {'; '.join(told)}; restore what it began with or use another run.dir"
        )
