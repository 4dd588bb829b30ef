"""Exit codes: a comparison in which a plan changed what was computed must not pass for a good one."""

from __future__ import annotations

import pytest
from attrs import evolve
from comparisons import comparison
from typer.testing import CliRunner

from lohan_core import config
from lohan_core.cli.app import app
from lohan_core.compare import here

SAME = {"keeper": (3.5, 2.5), "</script>&": (3.5, 2.5)}
FOUND = comparison(SAME)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (FOUND, 0),
        (comparison({**SAME, "keeper": (3.5, 2.25)}), 1),
        (evolve(FOUND, contenders=FOUND.contenders[:1]), 0),
        (evolve(FOUND, contenders=FOUND.contenders[2:]), 2),
    ],
)
def test_exit_codes(monkeypatch, found, code):
    monkeypatch.setattr(config, "load_config", lambda *_: None)
    monkeypatch.setattr(here, "compare_here", lambda *_, **__: found)
    ended = CliRunner().invoke(app, ["compare", "config.yaml", "--planners", "keeper"])
    assert ended.exit_code == code, ended.output
    assert ("LOSSES DIFFER" in ended.output) == (code == 1)
