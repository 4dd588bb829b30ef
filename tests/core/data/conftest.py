import json

import pytest
from tiny_tokenizers import byte_tokenizer


@pytest.fixture
def model_dir(tmp_path):
    """A directory with a tokenizer and no weights."""
    byte_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def write_lines(tmp_path):
    """Write records, or raw lines, as a data file."""

    def write(*lines, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return path

    return write
