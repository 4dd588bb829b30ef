"""Whether a store belongs to the run that wants to take it up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lohan_core.errors import StoreError

__all__ = ["check_identity"]

_DIGEST = re.compile(r"[0-9a-f]{16,}")
"""A value that tells nobody anything."""


def check_identity(path: Path, stored: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Refuse to take up what belongs to another run. Digests are named only where no setting differs: they follow.

    Raises:
        StoreError: something differs; says what.
    """
    unlike = [key for key in sorted({*stored, *given}) if stored.get(key) != given.get(key)]
    if not unlike:
        return
    pairs = {key: (stored.get(key, "not set"), given.get(key, "not set")) for key in unlike}
    told = [
        f"{key} is {before!r} in the store and {now!r} now"
        for key, (before, now) in pairs.items()
        if not (_DIGEST.fullmatch(before) and _DIGEST.fullmatch(now))
    ]
    if told:
        raise StoreError(
            f"{path}: belongs to another run: {'; '.join(told)}; restore these settings or use another run.dir"
        )
    raise StoreError(
        f"{path}: belongs to another run: {' and '.join(unlike)} changed since it began; bring back what it "
        "began with or use another run.dir"
    )
