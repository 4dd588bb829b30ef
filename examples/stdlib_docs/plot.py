"""Plot the losses of a run: reads ``metrics.jsonl`` of the run directory, writes ``loss.png`` beside it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


def read_losses(path: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps, and the values of ``key`` at those steps that have it."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    having = [record for record in records if key in record]
    return [record["step"] for record in having], [record[key] for record in having]


def plot(run_dir: Path) -> Path:
    """Draw the training loss of every step and the evaluation losses; return the picture's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    metrics = run_dir / "metrics.jsonl"
    axes.plot(*read_losses(metrics, "loss"), color="tab:blue", alpha=0.6, label="training")
    axes.plot(*read_losses(metrics, "eval_loss"), color="tab:orange", marker="o", label="evaluation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Docstrings of the standard library")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = run_dir / "loss.png"
    figure.savefig(picture, dpi=120)
    return picture


def main() -> None:
    """Plot the run given, or the example's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, nargs="?", default=HERE / "run", help="default: %(default)s")
    print(plot(parser.parse_args().run_dir))


if __name__ == "__main__":
    main()
