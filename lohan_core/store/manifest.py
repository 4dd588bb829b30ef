"""The one file that says what is true: which version of each extent is the committed one, and of which step.

Text: a JSON object ``{"format": 1, "checksum": ..., "body": {...}}``, the checksum being XXH3-64 over the body's
canonical JSON. Pure: :mod:`lohan_core.store.directory` reads and replaces the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import cattrs
import xxhash
from attrs import field, frozen

from lohan_core.errors import StoreError
from lohan_core.store.versions import ExtentRecord

__all__ = ["JSON", "Commit", "Manifest", "decode", "encode"]

FORMAT = 1

# Recursive aliases cannot be structured by cattrs; what json gives back is JSON by construction.
JSON: TypeAlias = Any

_converter = cattrs.Converter(forbid_extra_keys=True)


@frozen(kw_only=True)
class Commit:
    """What was committed last: the step, the caller's progress, and every extent."""

    step: int
    progress: Mapping[str, JSON]
    extents: Mapping[str, ExtentRecord]


@frozen(kw_only=True)
class Manifest:
    """A store's identity card.

    ``commit`` is None while the store is being created. ``overwriting`` is set while nobody could go on from here if
    the process ended now: the only version of an extent is being overwritten (``versions`` is 1), so that the states
    would be of two steps, or some states are in no store at all (then ``commit`` stays None).
    """

    store_id: str
    versions: int = 2
    checksums: bool = True
    identity: Mapping[str, str] = field(factory=dict)
    commit: Commit | None = None
    overwriting: bool = False


def encode(manifest: Manifest) -> bytes:
    """Return the file's bytes.

    Raises:
        ValueError: ``progress`` holds something that JSON cannot say, NaN and infinities included.
    """
    try:
        body = _canonical(_converter.unstructure(manifest))
    except TypeError as error:
        raise ValueError(f"progress: {error}") from error
    return f'{{"format": {FORMAT}, "checksum": "{_checksum(body)}", "body": {body}}}\n'.encode()


def decode(data: bytes, path: object) -> Manifest:
    """Read a manifest; ``path`` is for messages.

    Raises:
        StoreError: damaged, or written by a newer version.
    """
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise StoreError(f"{path}: format {document['format']}, this version reads {FORMAT}; update lohan")
        if document["checksum"] == _checksum(_canonical(document["body"])):
            return _converter.structure(document["body"], Manifest)
    except (ValueError, KeyError, TypeError, cattrs.BaseValidationError):
        pass
    raise StoreError(
        f"{path}: damaged, its checksum does not match; restore the store from a copy or use another run.dir"
    )


def _canonical(body: JSON) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(body: str) -> str:
    return xxhash.xxh3_64_hexdigest(body.encode())
