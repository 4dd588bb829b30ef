"""Make everything that the example needs: data, a tokenizer, and a small model with random weights.

Collects the docstrings of the Python standard library that runs this script, and writes
``data/train.jsonl``, ``data/eval.jsonl`` and ``model/``. The same Python makes the same bytes again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent

LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "lib2to3", "pydoc_data"}
"""Folders of the standard library with other people's code, or with code that documents nothing."""

ONE_IN = 40
"""One in so many examples is kept for evaluation."""

VOCABULARY = 1024
LONGEST = 256
"""Tokens that the model can take at once."""
END, PAD = "<|end|>", "<|pad|>"


class Example(NamedTuple):
    """``prompt`` is the first line of a definition below the name of its module, ``completion`` its docstring."""

    prompt: str
    completion: str

    @property
    def is_for_evaluation(self) -> bool:
        """Decided by the example alone, so that adding others moves none from one side to the other."""
        digest = hashlib.sha256(f"{self.prompt}{self.completion}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % ONE_IN == 0


def collect(folder: Path) -> list[Example]:
    """All examples below ``folder``, always in the same order, each once."""
    examples: dict[Example, None] = {}
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if LEFT_OUT.isdisjoint(relative.parts):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            examples.update(dict.fromkeys(examples_in(path.read_bytes(), module)))
    return list(examples)


def examples_in(source: bytes, module: str) -> Iterator[Example]:
    """Examples of one file; none if it is not valid Python, as some files that tests are made of."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = (ast.get_docstring(node) or "").strip()
            if docstring:
                yield Example(f"# {module}\n{header(node)}\n", f'    """{docstring}"""')


def header(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """The first line of a definition, without decorators."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}:"


def write_lines(path: Path, examples: Iterable[Example]) -> None:
    """Write one JSON object per example."""
    path.write_text("".join(json.dumps(example._asdict()) + "\n" for example in examples), encoding="utf-8")


def make_tokenizer(examples: Iterable[Example], folder: Path) -> None:
    """Train a byte-level BPE tokenizer, and save it as Transformers loads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((example.prompt + example.completion for example in examples), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD).save_pretrained(folder)


def make_model(folder: Path) -> int:
    """Save a Llama with seeded random weights; return the number of its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=LONGEST,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def main() -> None:
    """Run the steps, and say what each made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = Path(sysconfig.get_paths()["stdlib"])
    parser.add_argument("--out", type=Path, default=HERE, help="default: %(default)s")
    parser.add_argument("--source", type=Path, default=source, help="folder of Python files; default: %(default)s")
    options = parser.parse_args()

    examples = collect(options.source)
    train = [example for example in examples if not example.is_for_evaluation]
    held_out = [example for example in examples if example.is_for_evaluation]
    if not train or not held_out:
        parser.exit(2, f"error: {options.source}: has too few definitions with docstrings\n")
    data, model = options.out / "data", options.out / "model"
    data.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("eval", held_out)):
        path = data / f"{name}.jsonl"
        write_lines(path, part)
        print(f"{path}: {len(part):,} docstrings")
    make_tokenizer(train, model)
    print(f"{model}: a tokenizer of {VOCABULARY:,} tokens, and a Llama of {make_model(model):,} random parameters")


if __name__ == "__main__":
    main()
