"""Rows as the model will see them, with what is learned set apart: for a person's eyes, before a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
from rich.text import Text

from lohan_core.data.dataset import Dataset
from lohan_core.data.samples import NO_LOSS
from lohan_core.data.tokenizer import Tokenizer

__all__ = ["mark", "preview", "token_texts"]

SEPARATOR = "│"
OPEN, CLOSE = "⟦", "⟧"
"""Around learned tokens: colours do not survive a pipe."""

_UNDECODABLE = "\ufffd"


def preview(dataset: Dataset, n: int) -> Text:
    """Show the first ``n`` rows in the order of the files: each token, and which of them are learned."""
    shown = Text(f"{dataset.report}\n")
    shown.append(f"Tokens are separated by {SEPARATOR}; those between {OPEN} and {CLOSE} are learned.\n", style="dim")
    for number in range(min(n, len(dataset))):
        row = dataset[number]
        starts = np.flatnonzero(row.position_ids == 0).tolist()
        learned = row.labels != NO_LOSS
        shown.append(
            f"\nrow {number + 1}: {len(row.input_ids):,} tokens, {np.count_nonzero(learned):,} of them learned\n",
            style="bold",
        )
        for document, (begin, end) in enumerate(pairwise([*starts, len(row.input_ids)]), start=1):
            if len(starts) > 1:
                shown.append(f"document {document} of {len(starts)}\n", style="dim")
            texts = token_texts(dataset.tokenizer, row.input_ids[begin:end].tolist())
            shown.append_text(mark(texts, learned[begin:end].tolist()))
            shown.append("\n")
    return shown


def mark(texts: Sequence[str], learned: Sequence[bool]) -> Text:
    """Join the texts of tokens, learned ones in brackets and in another style."""
    marked = Text()
    runs = groupby(zip(texts, learned, strict=True), key=lambda pair: pair[1])
    for number, (is_learned, run) in enumerate(runs):
        joined = SEPARATOR.join(text for text, _ in run)
        if is_learned:
            marked.append(f"{OPEN}{joined}{CLOSE}", style="bold green")
        else:
            marked.append(f"{SEPARATOR if number else ''}{joined}{SEPARATOR}", style="dim")
    return marked


def token_texts(tokenizer: Tokenizer | None, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text before it; without a tokenizer, its number."""
    if tokenizer is None:
        return [str(token) for token in ids]
    texts = []
    for before, token in pairwise([None, *ids]):
        # Some tokenizers drop the space before a first token, so it is decoded behind the one before it.
        context = [] if before is None else [before]
        known, whole = tokenizer.decode(context), tokenizer.decode([*context, token])
        text = whole.removeprefix(known)
        is_part_of_character = not whole.startswith(known) or not text or _UNDECODABLE in text
        if is_part_of_character:
            text = str(tokenizer.convert_ids_to_tokens(token))
        texts.append(text.replace("\n", "⏎\n"))
    return texts
