"""Fine-tune with a loop of your own: the engine from a config, one call per step, save, export.

python examples/own_loop/own_loop.py MODEL_DIR RUN_DIR
"""

import argparse
import sys
from pathlib import Path

import torch

from lohan_core.config import config_from_mapping
from lohan_core.data import Batch
from lohan_core.engine import open_engine
from lohan_core.errors import LohanError
from lohan_core.registry import load_registry

STEPS = 4
ROWS, TOKENS, VOCABULARY = 2, 32, 64


def make_batch(step: int) -> Batch:
    """Draw the rows of one step; a real loop reads them. Two micro-batches, so gradients are accumulated over both."""
    draw = torch.Generator().manual_seed(step)
    micro_batches = []
    for _ in range(2):
        ids = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=draw)
        micro_batches.append({"input_ids": ids, "labels": ids})
    return Batch.of(micro_batches, tokens=2 * ROWS * TOKENS)


def main(model_dir: Path, run_dir: Path) -> None:
    """Train for a few steps, or go on where an earlier call was stopped."""
    registry = load_registry()
    config = config_from_mapping(
        {
            "model": {"path": str(model_dir.absolute())},
            "data": {"train": "unused", "sequence_length": TOKENS},
            "run": {"dir": str(run_dir.absolute()), "steps": STEPS, "dtype": "float32", "device": "auto"},
            "optimizer": {"lr": 1e-3, "max_grad_norm": 1.0},
        },
        registry,
    )
    with open_engine(config, make_batch(1), registry=registry) as engine:
        print(*engine.description, sep="\n")
        while engine.finished_step < STEPS:
            result = engine.step(make_batch(engine.finished_step + 1), lr=1e-3)
            engine.save_soon({"note": "any JSON values, given back as engine.progress"})
            print(f"step {result.step}: loss {result.loss:.4f}, gradient norm {result.gradient_norm:.4f}")
        print(f"evaluation loss {engine.evaluate([make_batch(0)]):.4f}")
        if not (run_dir / "model").exists():
            engine.export(run_dir / "model", torch.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune with a loop of your own.")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("run_dir", type=Path)
    try:
        main(**vars(parser.parse_args()))
    except LohanError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
