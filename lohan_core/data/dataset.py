"""A data set: rows of tokens and labels, laid out over tokenised files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from attrs import frozen
from numpy.typing import NDArray

from lohan_core.data.cache import Tokens, open_or_build
from lohan_core.data.encode import Document, Encoder
from lohan_core.data.files import check_files, digest_files, first_sample, read_samples
from lohan_core.data.report import DatasetReport
from lohan_core.data.rows import Layout, lay_out
from lohan_core.data.samples import NO_LOSS, Sample
from lohan_core.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_digest
from lohan_core.errors import DataError

__all__ = ["Dataset", "Row", "open_dataset"]

ENCODING_VERSION = 1
"""Part of a cache's name; raise it whenever the same file would be encoded differently than before."""

ROW_LENGTH_MULTIPLE = 64
"""Rows shorter than the sequence length are padded to a multiple of this, which suits matrix units."""

_SAMPLES_AT_ONCE = 512


@frozen(eq=False)
class Row:
    """One row, not yet padded. Shapes (tokens,), int64."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The token itself where it is learned, else -100; a document's first token is never learned."""
    position_ids: NDArray[np.int64]
    """Beginning again from 0 at each document."""


@frozen(eq=False, kw_only=True)
class Dataset:
    """Rows by number. All become batches of one shape, ``row_length`` wide, so that buffers can be planned once."""

    row_length: int
    packing: bool
    pad_id: int
    digest: str
    """Differs whenever any row would: a run must not be resumed on other data."""
    report: DatasetReport
    tokenizer: Tokenizer | None
    """The one that made the tokens; None where the files hold tokens."""
    _tokens: Tokens
    _layout: Layout

    def __len__(self) -> int:
        return len(self._layout)

    def __getitem__(self, row: int) -> Row:
        layout = self._layout
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        ids, labels, positions = [], [], []
        for piece in range(layout.row_offsets[row], layout.row_offsets[row + 1]):
            begin = self._tokens.offsets[layout.document[piece]]
            span = slice(begin + layout.start[piece], begin + layout.stop[piece])
            ids.append(self._tokens.input_ids[span])
            # Models shift labels by one over the whole row: without this, the end of one document would be taught to
            # predict the beginning of the next.
            labels.append(np.concatenate([[NO_LOSS], self._tokens.labels[span][1:]]))
            positions.append(np.arange(span.stop - span.start))
        return Row(*(np.concatenate(parts).astype(np.int64) for parts in (ids, labels, positions)))

    @property
    def longest_document(self) -> int:
        """Tokens in the longest of the documents, or of their parts, that rows are made of."""
        return int((np.asarray(self._layout.stop) - np.asarray(self._layout.start)).max())

    def masked_row(self) -> int:
        """Return a row that needs an attention mask, if any does: of several documents, or else the least filled."""
        layout = self._layout
        documents = np.diff(layout.row_offsets)
        if documents.max() > 1:
            return int(documents.argmax())
        return int((np.asarray(layout.stop) - np.asarray(layout.start)).argmin())  # one piece to each row


def open_dataset(
    paths: Sequence[Path | str],
    *,
    model_path: Path | str,
    cache_dir: Path | str,
    sequence_length: int,
    packing: bool,
    vocabulary_size: int | None = None,
    trust_remote_code: bool = False,
) -> Dataset:
    """Read JSON-lines files into a data set; every sample is checked and tokenised before this returns.

    Args:
        paths: the files, in order.
        model_path: directory of the model, whose tokenizer is loaded if the samples need one.
        cache_dir: where the tokenised files are kept; made if missing. Opening the same data again takes a moment.
        sequence_length: most tokens in a row, at least 2.
        packing: whether a row takes several documents.
        vocabulary_size: rows of the model's embedding, where known; higher token ids are refused.
        trust_remote_code: whether a tokenizer may run code that lies in the model's directory.

    Raises:
        DataError: one line that names the file, the line if there is one, and the reason.
    """
    files = [Path(path) for path in paths]
    check_files(files)
    tokenizer = None
    if any(first_sample(path).needs_tokenizer for path in files):
        tokenizer = load_tokenizer(model_path, trust_remote_code=trust_remote_code)
    encoder = Encoder(tokenizer, vocabulary_size)
    encoded_by = None if tokenizer is None else tokenizer_digest(tokenizer)
    encoded_from = _digest(ENCODING_VERSION, digest_files(files), encoded_by, vocabulary_size)
    tokens = open_or_build(Path(cache_dir), encoded_from, _documents(files, encoder))
    layout = lay_out(
        tokens.lengths,
        tokens.first_learned,
        tokens.splittable,
        sequence_length=sequence_length,
        packing=packing,
    )
    if len(layout) == 0:
        raise DataError(
            f"{', '.join(map(str, files))}: none of the {len(tokens.lengths):,} samples has a token to learn within "
            f"{sequence_length} tokens (data.sequence_length)"
        )
    row_length = min(sequence_length, -(-layout.longest_row // ROW_LENGTH_MULTIPLE) * ROW_LENGTH_MULTIPLE)
    return Dataset(
        row_length=row_length,
        packing=packing,
        pad_id=_pad_id(tokenizer, vocabulary_size),
        digest=_digest(encoded_from, sequence_length, packing),
        report=_report(tokens, layout, row_length, sequence_length),
        tokenizer=tokenizer,
        tokens=tokens,
        layout=layout,
    )


def _documents(files: Sequence[Path], encoder: Encoder) -> Iterator[Document]:
    for path in files:
        for samples in _batched(read_samples(path)):
            yield from encoder.encode(samples)


def _batched(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    try:
        for sample in samples:
            batch.append(sample)
            if len(batch) == _SAMPLES_AT_ONCE:
                yield batch
                batch = []
    except DataError:
        # Those read before come first: what is wrong with one of them is on an earlier line.
        yield batch
        raise
    yield batch


def _report(tokens: Tokens, layout: Layout, row_length: int, sequence_length: int) -> DatasetReport:
    loss_tokens = int(tokens.learned[~layout.dropped & ~layout.truncated].sum())
    for document in np.flatnonzero(layout.truncated):
        begin = tokens.offsets[document]
        loss_tokens += int(np.count_nonzero(tokens.labels[begin + 1 : begin + sequence_length] != NO_LOSS))
    return DatasetReport(
        samples=len(tokens.lengths),
        rows=len(layout),
        tokens=int((layout.stop - layout.start).sum()),
        loss_tokens=loss_tokens,
        row_length=row_length,
        truncated=int(layout.truncated.sum()),
        split=int(layout.split.sum()),
        dropped=int(layout.dropped.sum()),
    )


def _pad_id(tokenizer: Tokenizer | None, vocabulary_size: int | None) -> int:
    # Any id that the embedding has will do, for pads are neither attended to nor learned; some tokenizers have a pad
    # token that was added after the model was trained.
    for name in ("pad_token_id", "eos_token_id"):
        token: int | None = getattr(tokenizer, name, None)
        if token is not None and (vocabulary_size is None or token < vocabulary_size):
            return token
    return 0


def _digest(*parts: object) -> str:
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())
