from __future__ import annotations

import os
import tempfile

from hypothesis import settings

# As the command line does, before torch is imported: threads that spin take the cores from others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Measured profiles are kept in the user's cache; tests have one of their own, in this process and in those they start.
_CACHE = tempfile.TemporaryDirectory(prefix="lohan-tests-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# A test that fails must fail again: examples are drawn from a fixed seed, and a busy machine is no failure.
settings.register_profile("lohan", deadline=None, derandomize=True)
settings.load_profile("lohan")
