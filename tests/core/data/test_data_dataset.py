import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_tokenizer

from lohan_core.data import Batches, evaluation_batches, load_tokenizer, open_dataset
from lohan_core.data.cache import open_or_build
from lohan_core.data.encode import Document, Encoder
from lohan_core.errors import DataError


@pytest.fixture
def open_data(tmp_path, model_dir):
    def open_data(*paths, **options):
        defaults = {"model_path": model_dir, "cache_dir": tmp_path / "cache", "sequence_length": 8, "packing": True}
        return open_dataset(paths, **{**defaults, **options})

    return open_data


def ids(*lists):
    return [{"input_ids": list(one)} for one in lists]


def rows_of(dataset):
    return [dataset[row].input_ids.tolist() for row in range(len(dataset))]


def test_packed_rows_restart_positions_and_learn_no_first_token(open_data, write_lines):
    dataset = open_data(write_lines(*ids([5, 6, 7], [8, 9, 10, 11], [12, 13])))
    assert rows_of(dataset) == [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
    row = dataset[0]
    assert row.labels.tolist() == [-100, 6, 7, -100, 9, 10, 11]
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    (batch,) = evaluation_batches(dataset, batch_size=2, micro_batch_size=2)
    (micro_batch,) = batch.micro_batches
    assert set(micro_batch) == {"input_ids", "labels", "position_ids"}
    assert micro_batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11, 0], [12, 13, 0, 0, 0, 0, 0, 0]]
    assert micro_batch["labels"].tolist()[1] == [-100, 13] + [-100] * 6
    assert micro_batch["position_ids"].tolist()[1] == [0, 1, 0, 1, 2, 3, 0, 1]
    assert (batch.tokens, batch.loss_tokens) == (9, (6,))


@pytest.mark.parametrize(
    ("packing", "lists", "expected"),
    [
        (True, ([5] * 8, [6] * 8, [7] * 3, [8] * 2), [7, 7, 7, 8, 8]),  # documents that share a row
        (True, ([5] * 8, [6] * 6, [7] * 8), [6] * 6),  # none do; padding is a document of its own
        (False, ([5] * 8, [6] * 8, [7] * 3, [8] * 4), [7] * 3),
    ],
)
def test_memory_is_planned_by_a_batch_that_needs_a_mask_if_any_does(open_data, write_lines, packing, lists, expected):
    dataset = open_data(write_lines(*ids(*lists)), packing=packing)
    assert dataset[dataset.masked_row()].input_ids.tolist() == expected
    batches = Batches(dataset=dataset, batch_size=2, micro_batch_size=1, shuffle=False)
    first, second = batches.sample().micro_batches
    assert first["input_ids"][0, : len(expected)].tolist() == expected
    assert second["input_ids"].equal(batches[0].micro_batches[1]["input_ids"])


def test_positions_of_padding_are_no_higher_than_those_of_documents(open_data, write_lines):
    dataset = open_data(write_lines(*ids([5, 6, 7], [8, 9, 10], [11, 12, 13])), sequence_length=8)
    assert dataset.longest_document == 3
    (batch,) = evaluation_batches(dataset, batch_size=2, micro_batch_size=2)
    assert batch.micro_batches[0]["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2, 0, 1]]


def test_padded_rows_have_a_mask(open_data, write_lines):
    dataset = open_data(write_lines(*ids([5, 6, 7], [8, 9])), packing=False)
    (batch,) = evaluation_batches(dataset, batch_size=2, micro_batch_size=1)
    first, second = batch.micro_batches
    assert set(first) == {"input_ids", "labels", "attention_mask"}
    assert first["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert second["input_ids"].tolist() == [[8, 9, 0, 0, 0, 0, 0, 0]]
    assert second["labels"].tolist() == [[-100, 9] + [-100] * 6]
    assert (batch.tokens, batch.loss_tokens) == (5, (2, 1))


def test_padding_uses_the_tokenizers_pad_if_the_model_has_it(open_data, write_lines, tmp_path):
    tokenizer = byte_tokenizer(pad_token="<|new|>")  # noqa: S106 - not that kind of token
    tokenizer.save_pretrained(tmp_path / "model")
    path = write_lines({"text": "ab"})
    assert open_data(path).pad_id == tokenizer.pad_token_id == 259
    assert open_data(path, vocabulary_size=260).pad_id == 259
    assert open_data(path, vocabulary_size=259).pad_id == tokenizer.eos_token_id == 0


@pytest.mark.parametrize(("longest", "sequence_length", "row_length"), [(3, 8, 8), (3, 100, 64), (65, 200, 128)])
def test_rows_are_as_wide_as_the_longest_needs(open_data, write_lines, longest, sequence_length, row_length):
    path = write_lines(*ids(range(longest)))
    assert open_data(path, sequence_length=sequence_length).row_length == row_length
    assert open_data(path, sequence_length=sequence_length, packing=False).row_length == row_length


def test_what_is_too_long_is_counted(open_data, write_lines):
    lines = [
        {"prompt": "abcdefghij", "completion": "k"},  # with BOS before, nothing is left to learn within 8 tokens
        {"prompt": "a", "completion": "bcdefghij"},
        {"prompt": "a", "completion": "b"},
    ]
    dataset = open_data(write_lines(*lines), packing=False)
    report = dataset.report
    assert (report.samples, report.rows, report.truncated, report.split, report.dropped) == (3, 2, 1, 0, 1)
    assert (report.tokens, report.loss_tokens) == (8 + 4, 6 + 2)
    assert "1 longer than a row and cut off" in str(report)
    assert "1 dropped, nothing to learn in them" in str(report)
    assert "divided" not in str(report)


def test_a_long_text_is_divided_when_packing_and_cut_off_when_padding(open_data, write_lines):
    path = write_lines({"text": "abcdefghij"})  # 12 tokens, with BOS and EOS
    packed, padded = open_data(path), open_data(path, packing=False)
    assert [len(row) for row in rows_of(packed)] == [8, 5]
    assert rows_of(packed)[1][0] == rows_of(packed)[0][-1]
    assert (packed.report.split, packed.report.truncated, packed.report.loss_tokens) == (1, 0, 11)
    assert [len(row) for row in rows_of(padded)] == [8]
    assert (padded.report.split, padded.report.truncated, padded.report.loss_tokens) == (0, 1, 7)


def test_nothing_left_is_an_error(open_data, write_lines):
    with pytest.raises(DataError, match=r"none of the 2 samples has a token to learn within 8 tokens"):
        open_data(write_lines(*ids([5], [])))


def test_several_files_in_order(open_data, write_lines):
    first = write_lines(*ids([5, 6]), name="a.jsonl")
    second = write_lines({"text": "a"}, name="b.jsonl")
    dataset = open_data(second, first, packing=False)
    assert [len(row) for row in rows_of(dataset)] == [3, 2]
    assert rows_of(dataset)[1] == [5, 6]


def test_blank_lines_are_skipped_and_counted(open_data, write_lines):
    assert len(open_data(write_lines("", '{"input_ids": [1, 2]}', "  "))) == 1
    with pytest.raises(DataError, match=r"data.jsonl:3: is not JSON"):
        open_data(write_lines('{"input_ids": [1, 2]}', "", "{"))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], r"data.jsonl: is empty"),
        (["", " "], r"data.jsonl: holds only blank lines"),
        (['{"text": "a"}', '{"input_ids": [1]}'], r"data.jsonl:2: holds input_ids, but .*:1 holds text;"),
        (['{"text": "a"}'] * 600 + ['{"text": 1}'], r"data.jsonl:601: "),
        # The template refuses line 1, which is encoded only after line 2 has been read.
        (['{"messages": [{"role": "user", "content": null}]}', "{"], r"data.jsonl:1: .*chat template"),
    ],
)
def test_the_first_mistake_is_named(open_data, write_lines, lines, reason):
    with pytest.raises(DataError, match=reason):
        open_data(write_lines(*lines))


def test_files_that_cannot_be_read(open_data, tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: there is no such file"):
        open_data(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"is not a file"):
        open_data(tmp_path)


def test_tokens_need_no_tokenizer_but_texts_do(open_data, write_lines, tmp_path):
    assert open_data(write_lines(*ids([1, 2])), model_path=tmp_path / "none").pad_id == 0
    path = write_lines({"text": "a"})
    with pytest.raises(DataError, match=r"none: is not a directory"):
        open_data(path, model_path=tmp_path / "none")
    for model_type in ("llama", "gpt2", "gemma"):  # the latter two make tokenizers from nothing
        folder = tmp_path / model_type
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(DataError, match=rf"{model_type}: .*tokenizer"):
            open_data(path, model_path=folder)
    with pytest.raises(DataError, match=r"llama: has no tokenizer .* \(there is no file of one\); copy"):
        open_data(path, model_path=tmp_path / "llama")


def test_code_of_a_tokenizer_is_not_run(open_data, write_lines, tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "strange"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}))
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Tokenizer: pass\n")
    with pytest.raises(DataError, match=r"remote: has no tokenizer that can be loaded"):
        open_data(write_lines({"text": "a"}), model_path=folder)
    assert not ran.exists()


def test_a_cache_is_used_again_and_follows_its_sources(open_data, write_lines, tmp_path, model_dir, monkeypatch):
    path = write_lines({"text": "ab"})
    first = open_data(path)
    assert not list((tmp_path / "cache").glob("*.partial"))
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "encode", lambda *_: pytest.fail("was encoded again"))
        again = open_data(path)
    assert rows_of(again) == rows_of(first)
    assert again.digest == first.digest

    other_data = open_data(write_lines({"text": "ac"}))
    other_length = open_data(write_lines({"text": "ab"}), sequence_length=9)
    tokenizer = load_tokenizer(model_dir)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(model_dir)
    other_tokenizer = open_data(path)
    assert len({data.digest for data in (first, other_data, other_length, other_tokenizer)}) == 4
    assert rows_of(other_data) != rows_of(first)


def test_a_failed_build_leaves_nothing(open_data, write_lines, tmp_path):
    with pytest.raises(DataError):
        open_data(write_lines(*ids([1, 2]), "{"))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(open_data(write_lines(*ids([1, 2])))) == 1


def test_a_killed_build_is_swept_away(tmp_path):
    (tmp_path / "old.partial").mkdir()
    (tmp_path / "old.partial" / "input_ids.i32").write_bytes(b"1234")
    one = np.array([1, 2], dtype=np.int32)
    assert open_or_build(tmp_path, "new", [Document(one, one, False)]).lengths.tolist() == [2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "new"]


@pytest.mark.parametrize("name", ["labels.i32", "offsets.npy"])
def test_a_damaged_cache_is_refused(open_data, write_lines, tmp_path, name):
    path = write_lines(*ids([1, 2]))
    open_data(path)
    (cached,) = (tmp_path / "cache").glob(f"*/{name}")
    cached.write_bytes(b"1234")
    with pytest.raises(DataError, match=r"is damaged \(.*\); delete this folder"):
        open_data(path)


def test_a_cache_that_cannot_be_written(open_data, write_lines, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*: Not a directory; tokenised data are kept in .*file/cache"):
        open_data(write_lines(*ids([1, 2])), cache_dir=tmp_path / "file" / "cache")


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=12),
    micro_batch_size=st.integers(1, 3),
    micro_batches=st.integers(1, 3),
    packing=st.booleans(),
)
def test_batches(tmp_path_factory, lengths, micro_batch_size, micro_batches, packing):
    folder = tmp_path_factory.mktemp("data")
    path = folder / "data.jsonl"
    starts = np.cumsum([0, *lengths])
    path.write_text(
        "".join(
            json.dumps({"input_ids": list(range(a, a + n))}) + "\n"
            for a, n in zip(starts.tolist(), lengths, strict=False)
        )
    )
    dataset = open_dataset([path], model_path=folder, cache_dir=folder, sequence_length=8, packing=packing)
    batches = Batches(
        dataset=dataset, batch_size=micro_batch_size * micro_batches, micro_batch_size=micro_batch_size, seed=3
    )
    for step in (0, 5, 0):
        batch = batches[step]
        assert len(batch.micro_batches) == len(batch.loss_tokens) == micro_batches
        for micro_batch, loss_tokens in zip(batch.micro_batches, batch.loss_tokens, strict=True):
            assert {tensor.shape for tensor in micro_batch.values()} == {(micro_batch_size, dataset.row_length)}
            learned = micro_batch["labels"] != -100
            assert loss_tokens == learned[:, 1:].sum()
            assert learned.any(dim=1).all()
            assert (micro_batch["labels"][learned] == micro_batch["input_ids"][learned]).all()
    everything = list(evaluation_batches(dataset, batch_size=4, micro_batch_size=3))
    assert sum(batch.tokens for batch in everything) == dataset.report.tokens
    assert sum(sum(batch.loss_tokens) for batch in everything) == dataset.report.loss_tokens
    assert [len(m["labels"]) for b in everything for m in b.micro_batches] == _sizes(len(dataset))


def _sizes(rows):
    batches = [min(4, rows - begin) for begin in range(0, rows, 4)]
    return [size for batch in batches for size in ([3, batch - 3] if batch > 3 else [batch])]


def test_micro_batches_must_divide_a_batch(open_data, write_lines):
    with pytest.raises(ValueError, match="no multiple"):
        Batches(dataset=open_data(write_lines(*ids([1, 2]))), batch_size=3, micro_batch_size=2)


def test_another_process_sees_the_same_batches(open_data, write_lines, tmp_path, model_dir):
    path = write_lines(*({"text": text} for text in ("abc", "de", "fghij", "klmnopqrstuvw", "x")))
    script = """
import sys
from lohan_core.data import Batches, open_dataset
dataset = open_dataset(sys.argv[1:2], model_path=sys.argv[2], cache_dir=sys.argv[3], sequence_length=8, packing=True)
batches = Batches(dataset=dataset, batch_size=2, micro_batch_size=1, seed=5)
print([[m["input_ids"].tolist() for m in batches[step].micro_batches] for step in range(4)])
"""
    command = [sys.executable, "-c", script, path, model_dir, tmp_path / "other"]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    batches = Batches(dataset=open_data(path), batch_size=2, micro_batch_size=1, seed=5)
    assert output.strip() == str([[m["input_ids"].tolist() for m in batches[s].micro_batches] for s in range(4)])
