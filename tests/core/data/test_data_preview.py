import json

from tiny_tokenizers import byte_tokenizer
from typer import Typer
from typer.testing import CliRunner

from lohan_core.cli.preview import preview as command
from lohan_core.data import open_dataset
from lohan_core.data.preview import mark, preview, token_texts


def show(path, model_dir, tmp_path, n=2, **options):
    defaults = {"model_path": model_dir, "cache_dir": tmp_path / "cache", "sequence_length": 16, "packing": True}
    return preview(open_dataset([path], **{**defaults, **options}), n).plain


def test_learned_tokens_stand_in_brackets():
    marked = mark(["a", "b", "c", "d"], [False, True, True, False])
    assert marked.plain == "a│⟦b│c⟧│d│"
    assert [marked.plain[span.start : span.end] for span in marked.spans if "green" in str(span.style)] == ["⟦b│c⟧"]


def test_a_packed_row(write_lines, model_dir, tmp_path):
    path = write_lines(
        {"prompt": "a", "completion": "b\n"},
        {"prompt": "é", "completion": ""},
        {"prompt": "x" * 12, "completion": "y"},
    )
    assert show(path, model_dir, tmp_path, n=1).splitlines() == [
        "3 samples in 2 rows of 16 tokens (75% filled); 24 tokens, 6 of them learned",
        "Tokens are separated by │; those between ⟦ and ⟧ are learned.",
        "",
        "row 1: 9 tokens, 4 of them learned",
        "document 1 of 2",
        "<|begin|>│a│⟦b│⏎",
        "│<|end|>⟧",
        "document 2 of 2",
        "<|begin|>│Ã│©│⟦<|end|>⟧",
    ]


def test_tokens_without_a_tokenizer_are_numbers(write_lines, model_dir, tmp_path):
    path = write_lines({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]})
    assert show(path, model_dir, tmp_path, packing=False).endswith("row 1: 3 tokens, 1 of them learned\n5│6│⟦7⟧\n")


def test_spaces_that_a_decoder_strips_are_shown():
    tokenizer = byte_tokenizer()
    assert token_texts(tokenizer, tokenizer("a b")["input_ids"]) == ["a", " ", "b"]


def test_the_command(write_lines, model_dir, tmp_path):
    (model_dir / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 259}))
    write_lines({"prompt": "a", "completion": "b"}, name="train.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {path: model}\ndata: {train: train.jsonl}\nrun: {dir: run, steps: 1}\n"
        "storage: {backend: memory}\noptimizer: {backend: torch_adamw}\n"
    )
    app = Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(config), "--samples", "1", "--set", "data.sequence_length=32"])
    assert result.exit_code == 0, result.output
    assert "1 samples in 1 rows of 32 tokens" in result.output
    assert "<|begin|>│a│⟦b│<|end|>⟧" in result.output
