import hashlib
import importlib.util
import json
import sysconfig
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from lohan_core.config import load_config
from lohan_core.data.run import open_run_dataset
from lohan_core.registry import load_registry

FOLDER = Path(__file__).parents[3] / "examples" / "stdlib_docs"
SMALL_PART = Path(sysconfig.get_paths()["stdlib"]) / "asyncio"
SOURCE = '''
class Box(dict, metaclass=type):
    """A box.

       With a lid.
    """

    async def open(self, *, wide: bool = False) -> "Box":
        """Open it. """

    def shut(self):
        return None

def empty():
    """   """
'''


def load(name):
    spec = importlib.util.spec_from_file_location(f"stdlib_docs_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare, plot = load("prepare"), load("plot")


def test_examples_of_a_file():
    assert list(prepare.examples_in(SOURCE.encode(), "m")) == [
        ("# m\nclass Box(dict):\n", '    """A box.\n\nWith a lid."""'),
        ("# m\nasync def open(self, *, wide: bool=False) -> 'Box':\n", '    """Open it."""'),
    ]
    assert list(prepare.examples_in(b"def f(:\n", "m")) == []
    assert list(prepare.examples_in(b"\xff", "m")) == []


def test_a_folder_is_read_in_order_without_tests(tmp_path):
    for name in ("b/__init__.py", "a.py", "test/c.py", "b/tests/d.py", "b/copy.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('def f():\n    """F."""\n' * 2)
    assert [example.prompt for example in prepare.collect(tmp_path)] == [
        "# a\ndef f():\n",
        "# b\ndef f():\n",
        "# b.copy\ndef f():\n",
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What prepare.py makes of a small part of the standard library, beside the example's own config."""
    out = tmp_path_factory.mktemp("example")
    _prepare(out)
    (out / "config.yaml").write_bytes((FOLDER / "config.yaml").read_bytes())
    return out


def _prepare(out, source=SMALL_PART):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["prepare.py", "--out", str(out), "--source", str(source)])
        prepare.main()


def _digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".yaml")
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_preparing_again_makes_the_same_bytes(prepared, tmp_path):
    _prepare(tmp_path)
    first = _digests(prepared)
    assert _digests(tmp_path) == first
    assert {Path("data/train.jsonl"), Path("data/eval.jsonl"), Path("model/model.safetensors")} <= set(first)


def test_the_model_and_its_tokenizer_fit_together(prepared):
    config = AutoConfig.from_pretrained(prepared / "model")
    tokenizer = AutoTokenizer.from_pretrained(prepared / "model")
    assert len(tokenizer) == config.vocab_size == prepare.VOCABULARY
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (config.eos_token_id, config.pad_token_id)


def test_the_config_fits_what_was_prepared(prepared):
    # The native plugins may not be installed where this runs; their references take the same keys.
    overrides = ["storage={backend: memory}", "optimizer.backend=torch_adamw"]
    config = load_config(prepared / "config.yaml", overrides, load_registry())
    for path in (config.data.train, config.data.eval):
        dataset = open_run_dataset(config, path)
        assert dataset.row_length == config.data.sequence_length == prepare.LONGEST
        assert dataset.report.dropped == 0


def test_too_little_to_learn_from_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        _prepare(tmp_path / "out", source=tmp_path)
    assert stopped.value.code == 2
    assert "too few definitions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plot_is_written_beside_the_metrics(tmp_path):
    lines = [{"step": 1, "loss": 6.9}, {"step": 2, "loss": 5.0}, {"step": 2, "eval_loss": 5.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot.read_losses(tmp_path / "metrics.jsonl", "loss") == ([1, 2], [6.9, 5.0])
    assert plot.read_losses(tmp_path / "metrics.jsonl", "eval_loss") == ([2], [5.5])
    assert plot.plot(tmp_path).read_bytes().startswith(b"\x89PNG")
