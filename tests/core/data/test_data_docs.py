"""That docs/data.md tells the truth."""

import json
import re
from itertools import groupby
from pathlib import Path

import pytest
from tiny_tokenizers import byte_tokenizer

from lohan_core.data.encode import Encoder
from lohan_core.data.samples import parse_line

DOCS = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
(TEMPLATE,) = re.findall(r"```jinja\n(.*?)\n```", DOCS)
EXAMPLES = re.findall(r"```json\n(.*?)\n```\n+```text\n(.*?)\n```", DOCS)
(PYTHON,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)


def test_every_kind_has_an_example():
    kinds = {parse_line(line.encode(), "docs").kind for line, _ in EXAMPLES}
    assert kinds == {"text", "prompt/completion", "messages", "input_ids"}
    assert len(EXAMPLES) == DOCS.count("```json")


@pytest.mark.parametrize(("line", "expected"), EXAMPLES)
def test_examples_become_what_is_shown(line, expected):
    tokenizer = byte_tokenizer(bos=True, chat_template=TEMPLATE)
    sample = parse_line(line.encode(), "docs")
    (document,) = Encoder(tokenizer if sample.needs_tokenizer else None, None).encode([sample])
    shown = ""
    # The first token is never learned, whatever its label: the model has nothing to predict it from.
    learned = [False, *(document.labels[1:] != -100).tolist()]
    for is_learned, run in groupby(zip(document.input_ids.tolist(), learned, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        text = tokenizer.decode(ids) if sample.needs_tokenizer else " ".join(map(str, ids))
        shown += f"⟦{text}⟧" if is_learned else text
    assert shown.replace("<|begin|>", "<bos>").replace("<|end|>", "<eos>") == expected


def test_the_python_example_runs(model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert model_dir == tmp_path / "model"
    Path("train.jsonl").write_text(json.dumps({"text": "abc"}) + "\n", encoding="utf-8")
    exec(PYTHON, {})  # noqa: S102 - it is the documentation's own code
    report, *shapes = capsys.readouterr().out.splitlines()
    assert report.startswith("1 samples in 1 rows of 64 tokens")
    assert shapes == ["torch.Size([2, 64])"] * 4
