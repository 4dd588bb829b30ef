"""The example of a loop of one's own runs, and what it saved is durable at its end."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_loop" / "own_loop.py"


def test_it_trains_and_has_nothing_to_do_the_second_time(tmp_path, models, capsys):
    main = runpy.run_path(str(EXAMPLE))["main"]
    steps = []
    for name in ("first", "second"):
        main(models["llama"], tmp_path / "run")
        steps.append([line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")])
        (tmp_path / "run" / "model").rename(tmp_path / name)
    assert steps == [["step 1", "step 2", "step 3", "step 4"], []]
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("first", "second")
    )
    assert first
    assert first == second
    main(models["llama"], tmp_path / "run")
    main(models["llama"], tmp_path / "run")  # nothing is left to do, and its model is there


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "usage: own_loop.py [-h] model_dir run_dir"), (["none", "run"], "error: model.path: ")],
    ids=["no arguments", "no model"],
)
def test_mistakes_are_told_without_a_traceback(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *(str(tmp_path / argument) for argument in arguments)])
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith(says)
