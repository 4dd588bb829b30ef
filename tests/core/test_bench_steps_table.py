from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner

from lohan_core.cli.bench import bench

TABLE = Path(__file__).parents[2] / "bench" / "steps" / "table.py"


def test_what_the_command_prints_becomes_a_table(tmp_path):
    arguments = ["step", "--directory", str(tmp_path), "--device", "cpu", "--steps", "1", "--warm-up", "1", "--json"]
    files = []
    for workload, also in (("smoke", ()), ("smoke-ssd", ("--no-plain",))):
        quick = ("--batch", "2", "--set", "profiler.seconds=0.001")
        ended = CliRunner().invoke(bench, [*arguments, *quick, *also, workload])
        assert ended.exit_code == 0, ended.output
        files.append(tmp_path / f"{workload}.json")
        files[-1].write_text(ended.stdout)
    printed = subprocess.run([sys.executable, TABLE, *files], check=True, capture_output=True, text=True).stdout
    machine, empty, head, rule, *rows = printed.splitlines()
    assert machine.endswith(f"torch {torch.__version__}")
    assert empty == ""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, rule, *rows)]
    assert {len(line) for line in cells} == {len(cells[0])}
    by_name = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    assert [(row["workload"], row["batch"]) for row in by_name] == [("smoke", "2"), ("smoke-ssd", "2")]
    assert float(by_name[0]["ratio"]) > 0
    assert by_name[1]["ratio"] == "-"
    assert by_name[0]["drives, bytes/parameter"] == "-"
    assert 20 < float(by_name[1]["drives, bytes/parameter"]) < 40
