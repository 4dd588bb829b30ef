"""The page about hardware files names the keys, the machines and the options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import typer

from lohan_core.cli.app import app
from lohan_core.hardware import DriveSection, GpuSection, Hardware, HostSection, load_hardware, shipped_names

PAGE = (Path(__file__).parents[3] / "docs" / "profiles.md").read_text(encoding="utf-8")


def first_cells(heading):
    section = PAGE.partition(heading)[2].partition("\n\n")[2]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_key_is_documented():
    sections = {"gpu": GpuSection, "host": HostSection, "drives": DriveSection}
    keys = {"name", "source", "gpu"}
    keys |= {f"{name}.{field.name}" for name, cls in sections.items() for field in attrs.fields(cls)}
    assert {f.name for f in attrs.fields(Hardware)} == {"name", "source", *sections}
    documented = first_cells("Rates are bytes per second.")
    assert set(documented) - set(shipped_names()) == keys


def test_every_shipped_machine_is_documented():
    assert set(first_cells("Shipped, each with its sources")) == set(shipped_names())


def test_the_options_are_those_of_the_command():
    documented = {name.split(" ")[0] for name in first_cells("## `lohan plan CONFIG`") if name.startswith("--")}
    command = typer.main.get_command(app).commands["plan"]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert documented == options - {"--help"}


def test_the_example_is_a_hardware_file(tmp_path):
    (example,) = re.findall(r"```yaml\n(name: .*?)```", PAGE, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(example)
    assert load_hardware(path).name == "my workstation"
