"""Main memory traffic of the passes that an update on the processor makes over the parameters, in bytes per parameter.

What is written to new places is read into the cache before (twice the bytes); what is updated in place was read anyway.
"""

from __future__ import annotations

__all__ = ["RATEL_BYTES", "ZERO_INFINITY_BYTES", "ZERO_OFFLOAD_BYTES"]

CAST_GRADIENT_BYTES = 2 + 2 * 4
UPDATE_BYTES = 2 * (4 + 4 + 4) + 4
CAST_WEIGHT_BYTES = 4 + 2 * 2
UNSCALE_BYTES = 4 + 4
CHECK_BYTES = (2 + 2 * 2) + 2 * ((2 + 2 * 1) + 1)
"""|x| to a copy; that copy compared with infinity, and x with itself; any() of both results, which are bytes."""

RATEL_BYTES = CAST_GRADIENT_BYTES + UPDATE_BYTES + CAST_WEIGHT_BYTES
ZERO_INFINITY_BYTES = CHECK_BYTES + UNSCALE_BYTES + UPDATE_BYTES + CAST_WEIGHT_BYTES
ZERO_OFFLOAD_BYTES = ZERO_INFINITY_BYTES + CAST_GRADIENT_BYTES
