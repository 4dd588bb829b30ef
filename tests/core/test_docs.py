"""The documentation is true: its code runs, its signatures are the code's, its reference is what the classes say."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lohan_core import errors, hookspecs
from lohan_core.backend import Backend, Kind
from lohan_core.cli.compare import LOSSES_DIFFER, NOTHING_FITS
from lohan_core.cli.train import STOPPED
from lohan_core.config.load import SECTIONS
from lohan_core.config.reference import keys, meanings, render
from lohan_core.engine.updates import NonFiniteGradientError
from lohan_core.registry import load_registry
from lohan_core.testing import suite

ROOT = Path(__file__).parents[2]
PLUGIN_PAGE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")


def test_the_configuration_reference_is_current():
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == render(load_registry()), "run: python -m lohan_core.config.reference > docs/configuration.md"


def test_every_shipped_key_has_a_meaning():
    shipped = [offer.backend.config for offer in load_registry().offers if offer.provider.distribution == "lohan"]
    for cls in (*SECTIONS.values(), *shipped):
        assert not [key.name for key in keys(cls) if not key.meaning], cls


def test_meanings_are_read_from_a_class_and_its_bases():
    class Base:
        """Base.

        Attributes:
            a: Of the base.
            b: Of the base,
                on two lines.
        """

    class Derived(Base):
        """Derived.

        Attributes:
            a: Of the derived class.
        """

    assert meanings(Derived) == {"a": "Of the derived class.", "b": "Of the base, on two lines."}


@pytest.mark.parametrize("kind", Kind, ids=str)
def test_every_hook_is_documented_with_its_exact_signature(kind):
    hook = getattr(hookspecs, f"lohan_{kind}")
    signature = f"{hook.__name__}{inspect.signature(hook)}".replace("'", "")
    (row,) = [line for line in PLUGIN_PAGE.splitlines() if line.startswith(f"| `{hook.__name__}(")]
    cells = [cell.strip(" `") for cell in row.strip("|").split("|")]
    assert cells[0] == signature
    module, _, name = cells[3].rpartition(".")
    assert issubclass(getattr(__import__(module, fromlist=[name]), name), suite.ConformanceSuite)


def test_every_field_of_a_record_is_documented():
    section = PLUGIN_PAGE.partition("## The record")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(inspect.signature(Backend).parameters)


def test_every_error_is_a_lohan_error_with_an_exit_code():
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.LohanError)
        assert getattr(errors, name).exit_code in {1, 2}


def test_the_readme_tells_every_exit_code():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    made = {error.exit_code for error in map(errors.__dict__.get, errors.__all__)}
    made |= {0, NonFiniteGradientError.exit_code, STOPPED, LOSSES_DIFFER, NOTHING_FITS}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == made


def test_the_tour_says_of_all_of_the_core_where_it_is():
    tour = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = tour.partition("## Where things live")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w.]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))))
    core = {path.name for path in (ROOT / "lohan_core").iterdir() if not path.name.startswith("__")} - {"py.typed"}
    assert core - named == set()


def test_every_page_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert "docs/configuration.md" in named
    assert [page for page in named if not (ROOT / page).exists()] == []


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The page's complete plugin, installed by hand, and an environment that finds it."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", PLUGIN_PAGE, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")
    entry_points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["lohan"]
    info = folder / "lohan_heavy_ball-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lohan-heavy-ball\nVersion: 0.1.0\n")
    lines = [f"{name} = {module}" for name, module in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[lohan]", *lines, ""]))
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return folder, os.environ | {"PYTHONPATH": path}


def run(plugin, *arguments):
    folder, environment = plugin
    done = subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_documented_plugin_passes_its_suite(plugin):
    assert " passed" in run(plugin, "pytest", "-q", "-p", "no:cacheprovider", "test_heavy_ball.py")


def test_the_documented_plugin_is_listed(plugin):
    listed = json.loads(run(plugin, "lohan_core.cli", "plugins", "--json"))
    (theirs,) = [b for b in listed["backends"] if b["distribution"] == "lohan-heavy-ball"]
    assert (theirs["kind"], theirs["name"], theirs["usable"]) == ("optimizer", "heavy_ball", True)
