"""docs/planners.md is true: its code runs, and its table names every planner that is shipped."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from lohan_core.backend import Kind
from lohan_core.registry import load_registry

PAGE = (Path(__file__).parents[3] / "docs" / "planners.md").read_text(encoding="utf-8")


def test_its_code_runs(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/planners.md", "exec"), {})  # noqa: S102  # the page's own example
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["simulation", "lanes", "paper"]


def test_its_table_names_every_planner_that_is_shipped():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    shipped = {
        offer.backend.name
        for offer in load_registry().offers
        if offer.kind is Kind.PLANNER and offer.provider.distribution == "lohan"
    }
    assert named == shipped


def test_its_configs_name_planners_and_their_keys():
    registry = load_registry()
    for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        section = yaml.safe_load(text)["planner"]
        registry.find(Kind.PLANNER, section.pop("backend")).config(**section)
