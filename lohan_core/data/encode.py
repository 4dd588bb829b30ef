"""Samples to tokens and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lohan_core.data.chat import encode_chat
from lohan_core.data.samples import NO_LOSS, ChatSample, CompletionSample, Sample, TextSample, TokenSample
from lohan_core.data.tokenizer import Tokenizer, special_tokens_before
from lohan_core.errors import DataError

__all__ = ["Document", "Encoder"]


@frozen(eq=False)
class Document:
    """A sample as tokens: whole, before any truncation."""

    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    labels: NDArray[np.int32]
    """Shape (tokens,); the token itself where it is learned, else -100. Not shifted: Hugging Face models do that."""
    splittable: bool
    """Whether its parts make sense without each other."""


class Encoder:
    """Turns samples into documents. Without a tokenizer it takes token samples only."""

    def __init__(self, tokenizer: Tokenizer | None, vocabulary_size: int | None) -> None:
        """Prepare.

        Args:
            tokenizer: the model's, or None if no sample needs one.
            vocabulary_size: rows of the model's embedding, where known. An id beyond it would otherwise be found by
                the embedding, in mid-run.
        """
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._before = [] if tokenizer is None else special_tokens_before(tokenizer)

    def encode(self, samples: Sequence[Sample]) -> list[Document]:
        """Encode samples; many at once, because tokenizers use all cores on a list of texts.

        Raises:
            DataError: names the file and line of the first sample that cannot be encoded.
        """
        texts = self._tokenize([text for sample in samples for text in _texts(sample)])
        return [self._check(sample, self._encode(sample, texts)) for sample in samples]

    def _tokenize(self, texts: list[str]) -> Iterator[list[int]]:
        if not texts:
            return iter(())
        if self._tokenizer is None:
            raise ValueError("these samples need a tokenizer")
        return iter(self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])

    def _encode(self, sample: Sample, texts: Iterator[list[int]]) -> Document:
        match sample:
            case TextSample():
                ids = [*self._before, *next(texts), self._eos()]
                return _document(ids, ids, splittable=True)
            case CompletionSample():
                prompt, whole, completion = (next(texts) for _ in _texts(sample))
                # The prompt must be the very tokens that the model will be given, whatever follows; so the two are
                # encoded together only if that leaves the prompt's tokens as they are. Together is better then:
                # some tokenizers put a space before every text.
                together = whole[: len(prompt)] == prompt
                learned = [*(whole[len(prompt) :] if together else completion), self._eos()]
                given = [*self._before, *prompt]
                return _document([*given, *learned], [*[NO_LOSS] * len(given), *learned])
            case ChatSample():
                ids, said = encode_chat(self._tokenizer, sample)
                return _document(ids, [token if by else NO_LOSS for token, by in zip(ids, said, strict=True)])
            case TokenSample():
                return _document(sample.input_ids, sample.labels)

    def _eos(self) -> int:
        eos: int | None = getattr(self._tokenizer, "eos_token_id", None)
        if eos is None:
            raise DataError(
                f"{getattr(self._tokenizer, 'name_or_path', 'model')}: its tokenizer has no EOS token, which ends "
                'every text and completion; set "eos_token" in tokenizer_config.json'
            )
        return eos

    def _check(self, sample: Sample, document: Document) -> Document:
        highest = max(int(document.input_ids.max(initial=-1)), int(document.labels.max(initial=-1)))
        if self._vocabulary_size is not None and highest >= self._vocabulary_size:
            raise DataError(
                f"{sample.where}: has token {highest}, but the model's vocabulary ends at {self._vocabulary_size - 1}"
            )
        return document


def _texts(sample: Sample) -> tuple[str, ...]:
    """Texts of a sample that are tokenised as they stand, in the order in which ``_encode`` takes them."""
    match sample:
        case TextSample():
            return (sample.text,)
        case CompletionSample():
            return sample.prompt, sample.prompt + sample.completion, sample.completion
        case _:
            return ()


def _document(ids: Sequence[int], labels: Sequence[int], *, splittable: bool = False) -> Document:
    return Document(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32), splittable)
