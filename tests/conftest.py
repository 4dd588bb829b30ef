from __future__ import annotations

from hypothesis import settings

# A test that fails must fail again: examples are drawn from a fixed seed, and a busy machine is no failure.
settings.register_profile("lohan", deadline=None, derandomize=True)
settings.load_profile("lohan")
