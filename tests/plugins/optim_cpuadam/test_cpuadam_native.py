from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[3] / "csrc"
MISSING = [tool for tool in ("cmake", "c++") if not shutil.which(tool)] + [
    module for module in ("pybind11", "cffi") if not importlib.util.find_spec(module)
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} to build native code"),
    pytest.mark.slow,
]


def _run(*command: str | Path) -> str:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The native tests, with sanitizers."""
    import pybind11

    build = tmp_path_factory.mktemp("build")
    _run(
        *("cmake", "-S", CSRC, "-B", build, "-DCMAKE_BUILD_TYPE=RelWithDebInfo"),
        *("-DLOHAN_NATIVE_TESTS=ON", "-DLOHAN_SANITIZE=ON", "-DLOHAN_WERROR=ON"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    )
    _run("cmake", "--build", build, "--target", "lohan_adam_test")
    return build


def test_native_tests_pass_under_sanitizers(build):
    assert "tested scalar" in _run(build / "adam" / "tests" / "lohan_adam_test")


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
def test_wide_instructions_stay_in_their_own_translation_unit(build):
    wide_anywhere = False
    for path in sorted((build / "adam").rglob("*.cpp.o")):
        instructions = _run("objdump", "-d", "--no-show-raw-insn", path)
        wide = re.search(r"%[yz]mm\d", instructions) is not None
        wide_anywhere |= wide
        assert not wide or path.name in {"avx2.cpp.o", "avx512.cpp.o"}, f"{path.name} has AVX instructions"
        if wide:
            symbols = _run("nm", "--defined-only", "--extern-only", path).split()[2::3]
            assert all("update_avx" in symbol for symbol in symbols), f"{path.name} exports {symbols}"
    assert wide_anywhere or not list((build / "adam").rglob("avx*.cpp.o"))
