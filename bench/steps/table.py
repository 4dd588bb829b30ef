"""Results of ``lohan bench step NAME --json``, one file each, as one table: ``python bench/steps/table.py *.json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LANES = ("gpu", "h2d", "d2h", "ssd", "cpu")
COLUMNS = (
    "workload",
    "batch",
    "tokens/s",
    "plain",
    "ratio",
    "step, s",
    "predicted",
    "departs",
    "busiest",
    "step over it",
    "over its bound",
    *(f"{lane}, s" for lane in LANES),
    "GPU, GB",
    "host, GB (planned)",
    "drives, bytes/parameter",
    "GB/s (alone)",
)


def main() -> None:
    """Print the table, and what was measured on what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="what lohan bench step --json printed")
    print(render([json.loads(path.read_text()) for path in parser.parse_args().results]))


def render(results: list[Mapping[str, Any]]) -> str:
    """Lay results out in Markdown."""
    machines = sorted({f"{r['device']}, {r['cores']} cores, torch {r['torch']}" for r in results})
    lines = [*machines, "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(cells) for result in results for cells in _rows(result)]
    return "\n".join(lines)


def _rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in result["rows"]:
        plain, drives, busy = row["plain"], row["drives"], row["busy_seconds"]
        yield [
            result["workload"] + (", compiled" if result["settings"]["model"].get("compile") else ""),
            str(row["batch_size"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{plain['tokens_per_second']:,.0f}" if plain else "-",
            f"{plain['ratio']:.3f}" if plain else "-",
            f"{row['seconds']:.3f}",
            f"{row['predicted_seconds']:.3f}",
            f"{row['departure']:+.1%}",
            row["busiest"],
            f"{row['step_per_busiest']:.3f}",
            f"{row['step_per_bound']:.3f}",
            *(f"{busy[lane]:.3f}" for lane in LANES),
            f"{row['step_gpu_bytes'] / 1e9:.1f}",
            f"{row['peak_host_bytes'] / 1e9:.1f} ({row['planned_host_bytes'] / 1e9:.1f})",
            f"{drives['bytes_per_parameter']:.1f}" if drives else "-",
            f"{drives['bytes_per_second'] / 1e9:.2f} ({drives['own_bytes_per_second'] / 1e9:.2f})" if drives else "-",
        ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
