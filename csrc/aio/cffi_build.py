"""Describe the binding to cffi: `python -m cffi.gen_src exec-python cffi_build.py _native.c` writes its C source."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).with_name("lohan_aio.h")

# cffi reads declarations, not directives; those of the header itself are dropped, so that it is the one source.
declarations = "".join(line for line in HEADER.read_text().splitlines(keepends=True) if not line.startswith("#"))

ffibuilder = FFI()
ffibuilder.cdef(declarations)
ffibuilder.set_source("lohan_storage_aio._native", '#include "lohan_aio.h"')
