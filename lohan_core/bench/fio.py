"""One measurement by fio, the yardstick of ``lohan bench storage``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from lohan_core.errors import BackendError

__all__ = ["FioJob", "Sample", "fio_version", "parse_fio"]

# Our buffers lie in huge pages; this lets fio's do so too (glibc 2.35), without privileges.
_ENVIRONMENT = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"

# fio at its best: what the kernel can know ahead of time it is told, as our engine does; and data are not scrambled
# for every transfer, which costs fio processor time that is not about I/O.
_ENGINES = {
    "io_uring": ("--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1"),
    "libaio": ("--ioengine=libaio",),
    "threads": ("--ioengine=psync", "--thread=1", "--group_reporting=1"),
}


@frozen(kw_only=True)
class Sample:
    """One measurement. CPU seconds are of all threads, per 10**9 bytes moved."""

    bytes_per_second: float
    cpu_seconds_per_gb: float


@frozen(kw_only=True)
class FioJob:
    """Sequential I/O in turn over ``files``, which exist and have one size."""

    files: Sequence[Path]
    file_bytes: int
    block_bytes: int
    depth: int
    engine: str
    seconds: float

    def command(self, operation: str) -> list[str]:
        """Spell the command for ``operation``, ``read`` or ``write``."""
        names = ":".join(str(path).replace(":", r"\:") for path in self.files)
        jobs = self.depth if self.engine == "threads" else 1
        share_bytes = self.file_bytes // jobs // self.block_bytes * self.block_bytes
        return [
            "env",
            _ENVIRONMENT,
            "fio",
            "--name=lohan",
            f"--filename={names}",
            f"--rw={operation}",
            f"--size={share_bytes * len(self.files)}",
            f"--offset_increment={share_bytes}",
            f"--numjobs={jobs}",
            f"--bs={self.block_bytes}",
            f"--iodepth={1 if self.engine == 'threads' else self.depth}",
            "--direct=1",
            f"--runtime={self.seconds}s",
            "--time_based=1",
            "--scramble_buffers=0",
            "--fallocate=none",
            "--output-format=json",
            *_ENGINES[self.engine],
        ]

    def run(self, operation: str) -> Sample:
        """Run it. Raises BackendError with fio's own words if it fails."""
        done = subprocess.run(self.command(operation), check=False, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
            raise BackendError(f"fio failed: {lines[-1]}")
        return parse_fio(done.stdout, operation)


def fio_version() -> str | None:
    """Name the version of fio on this machine; None if there is none."""
    if shutil.which("fio") is None:
        return None
    return subprocess.run(["fio", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def parse_fio(text: str, operation: str) -> Sample:
    """Read fio's JSON, before which it may have printed notes. Its CPU figures are percent of a job's run time."""
    report: Any = json.loads(text[text.index("{") :])
    (job,) = report["jobs"]
    moved = job[operation]["io_bytes"]
    seconds = job["job_runtime"] / 1000
    return Sample(
        bytes_per_second=float(job[operation]["bw_bytes"]),
        cpu_seconds_per_gb=(job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds / (moved / 1e9),
    )
