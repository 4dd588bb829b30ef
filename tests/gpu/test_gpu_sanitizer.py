"""Streams under compute-sanitizer: no lane uses memory that another has not been given yet, or has given back.

With torch's allocator on CUDA's own stream-ordered one, the tool knows in which stream each piece of memory is taken
and given back, and follows the events between streams.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

FOUND = 99


@pytest.mark.parametrize("workload", ["smoke", "smoke-ssd"])
def test_streams_race_for_no_memory(tmp_path, workload):
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    checks = ("--tool", "memcheck", "--track-stream-ordered-races", "all", "--report-api-errors", "no")
    step = ("bench", "step", workload, "--batch", "4", "--steps", "1", "--warm-up", "1", "--no-plain")
    program = (sys.executable, "-P", "-m", "lohan_core.cli", *step, "--directory", str(tmp_path), "--device", "cuda")
    result = subprocess.run(
        [tool, *checks, "--error-exitcode", str(FOUND), *program],
        env={**os.environ, "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    in_python = [line for line in result.stdout.splitlines() if "Host Frame" not in line or ".py:" in line]
    assert result.returncode == 0, "\n".join(in_python[:200]) + result.stderr[-2000:]
    assert "ERROR SUMMARY: 0 errors" in result.stdout
