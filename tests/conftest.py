from __future__ import annotations

import os
import tempfile

from hypothesis import settings

# Measured profiles are kept in the user's cache; tests have one of their own, in this process and in those they start.
_CACHE = tempfile.TemporaryDirectory(prefix="lohan-tests-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# A test that fails must fail again: examples are drawn from a fixed seed, and a busy machine is no failure.
settings.register_profile("lohan", deadline=None, derandomize=True)
settings.load_profile("lohan")
