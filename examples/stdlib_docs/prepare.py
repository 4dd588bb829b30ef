"""Make everything that the example needs: data, a tokenizer, and a small model with random weights.

    python prepare.py --out build

Writes ``OUT/train.jsonl``, ``OUT/eval.jsonl`` and ``OUT/model/``. The same Python makes the same bytes again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from collect import Example, collect, standard_library

VOCABULARY = 2048
END = "<|end|>"
PAD = "<|pad|>"


def main() -> None:
    """Run the three steps, and say what each made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if missing")
    parser.add_argument("--source", type=Path, default=standard_library(), help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    examples = collect(options.source)
    train = [example for example in examples if not example.is_for_evaluation]
    held_out = [example for example in examples if example.is_for_evaluation]
    if not train or not held_out:
        parser.exit(2, f"error: {options.source}: has too few functions with docstrings\n")
    for name, part in (("train", train), ("eval", held_out)):
        path = options.out / f"{name}.jsonl"
        write_lines(path, part)
        print(f"{path}: {len(part):,} docstrings")

    model = options.out / "model"
    make_tokenizer(train, model)
    print(f"{model}: a tokenizer of {VOCABULARY:,} tokens")
    print(f"{model}: a Llama of {make_model(model):,} parameters, random")


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
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


if __name__ == "__main__":
    main()
