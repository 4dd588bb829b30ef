"""Optimizer backend ``cpuadam``: AdamW in one fused pass of C++ over a chunk of flat states."""
