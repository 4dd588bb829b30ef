"""The template, installed and run as a stranger would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "examples" / "plugin_template"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A copy of the template's source and an environment in which it is installed."""
    base = tmp_path_factory.mktemp("stranger")
    # A copy, because setuptools builds inside the source tree.
    source = shutil.copytree(
        TEMPLATE, base / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    site = base / "site"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return source, os.environ | {"PYTHONPATH": path}


def test_its_own_tests_pass(installed):
    source, environment = installed
    shutil.rmtree(source / "lohan_plugin_template")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "tests"],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_lohan_plugins_lists_it(installed):
    _, environment = installed
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "lohan_core.cli", "plugins", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [b for b in json.loads(listed.stdout)["backends"] if b["distribution"] == "lohan-plugin-template"]
    assert [(b["kind"], b["name"], b["version"], b["usable"]) for b in theirs] == [
        ("storage", "plain_files", "0.1.0", True),
        ("planner", "keep_costly", "0.1.0", True),
    ]
