"""The native tests, built with sanitizers from the sources of this checkout."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[3] / "csrc"
MISSING = [tool for tool in ("cmake", "cc", "c++") if not shutil.which(tool)] + [
    module for module in ("pybind11", "cffi") if not importlib.util.find_spec(module)
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} to build native code"),
    pytest.mark.slow,
]


def _run(*command, **options):
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    import pybind11

    build = tmp_path_factory.mktemp("build")
    _run(
        *("cmake", "-S", CSRC, "-B", build, "-DCMAKE_BUILD_TYPE=RelWithDebInfo"),
        *("-DLOHAN_NATIVE_TESTS=ON", "-DLOHAN_SANITIZE=ON", "-DLOHAN_WERROR=ON"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    )
    _run("cmake", "--build", build, "--target", "lohan_aio_test", "lohan_aio_race_test")
    return build / "aio" / "tests"


def test_under_address_and_undefined_behaviour_sanitizers(programs, tmp_path):
    assert "tested threads" in _run(programs / "lohan_aio_test", cwd=tmp_path)


def test_under_thread_sanitizer(programs, tmp_path):
    program = programs / "lohan_aio_race_test"
    start = subprocess.run([program], capture_output=True, text=True, check=False, cwd=tmp_path)
    if "unexpected memory mapping" in start.stderr:
        pytest.skip("this thread sanitizer is too old for this kernel's address space layout")
    assert start.returncode == 0, start.stdout + start.stderr
    assert "tested threads" in start.stdout


def test_it_builds_without_liburing(programs, tmp_path):
    del programs  # the same tools
    import pybind11

    _run(
        *("cmake", "-S", CSRC, "-B", tmp_path, "-DLOHAN_NATIVE_TESTS=ON", "-DLOHAN_WERROR=ON"),
        *("-DLOHAN_LIBURING=OFF", f"-DPython_EXECUTABLE={sys.executable}"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )
    _run("cmake", "--build", tmp_path, "--target", "lohan_aio_test")
    told = _run(tmp_path / "aio" / "tests" / "lohan_aio_test", cwd=tmp_path)
    assert "tested threads" in told
    assert "no io_uring" in told
