"""The tokenizer of a model directory: loading it, and telling it from another by a digest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeAlias

import xxhash

from lohan_core.errors import DataError

__all__ = ["Tokenizer", "load_tokenizer", "special_tokens_before", "tokenizer_digest"]

Tokenizer: TypeAlias = Any
"""A ``transformers`` tokenizer, which has no types of its own."""


def load_tokenizer(model_path: Path | str, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer that lies in a model directory. Nothing is downloaded.

    Raises:
        DataError: there is none, it cannot be loaded, or it would run code of the directory without permission.
    """
    from transformers import AutoTokenizer

    if not Path(model_path).is_dir():
        raise DataError(f"{model_path}: is not a directory, so it holds no tokenizer, which these data need")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model_path), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        reason = shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        if not any(Path(model_path).glob("*token*")) and not any(Path(model_path).glob("*vocab*")):
            reason = "there is no file of one"
        raise DataError(
            f"{model_path}: has no tokenizer that can be loaded ({reason}); copy the model's tokenizer files there, "
            'or give the data as "input_ids"'
        ) from error
    # Some classes load from a directory without any tokenizer file, with special tokens for a vocabulary.
    if set(_bare(tokenizer, "a 1 .")) <= set(tokenizer.all_special_ids):
        raise DataError(
            f"{model_path}: its tokenizer has an empty vocabulary; copy the model's tokenizer files there, or give the "
            'data as "input_ids"'
        )
    return tokenizer


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Digest of everything that a tokenizer would save: vocabulary, rules, special tokens and chat template."""
    digest = xxhash.xxh3_128()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()


def special_tokens_before(tokenizer: Tokenizer) -> list[int]:
    """Tokens that the tokenizer by itself puts before a text, such as BOS."""
    bare = _bare(tokenizer, "a")
    whole = list(tokenizer("a")["input_ids"])
    for before in range(len(whole) - len(bare) + 1):
        if whole[before : before + len(bare)] == bare:
            return whole[:before]
    raise DataError(
        f"{tokenizer.name_or_path}: its tokenizer encodes a text differently when it adds special tokens; give "
        'the data as "input_ids"'
    )


def _bare(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
