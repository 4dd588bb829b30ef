"""What an installed LoHan does to other people's pytest: nothing, except that a failed suite explains itself."""

from __future__ import annotations

import subprocess
import sys

FAILING = """\
from attrs import frozen

from lohan_core.backend import Backend
from lohan_core.testing.planner import PlannerSuite


@frozen
class Nothing:
    pass


class TestBroken(PlannerSuite):
    backend = Backend(name="broken", summary="", config=Nothing, open=Nothing, probe=lambda: "no such chip")
"""


def test_it_imports_nothing_heavy():
    script = (
        "import sys\n"
        "import lohan_core.testing.pytest_plugin\n"
        "heavy = {'torch', 'transformers', 'numpy', 'hypothesis'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_a_failed_assertion_of_a_suite_is_explained(tmp_path):
    (tmp_path / "test_broken.py").write_text(FAILING)
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"),
            # By name, in case that LoHan runs from its checkout and has no entry points.
            *("-p", "no:lohan_testing", "-p", "lohan_core.testing.pytest_plugin"),
            "test_broken.py::TestBroken::test_is_usable_here",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "assert 'no such chip' is None" in done.stdout
