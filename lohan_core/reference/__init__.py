"""Plain backends of every kind: the oracles for tests, and what runs where no hardware is.

They are offered as a stranger's would be. Their records import without torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.optimizer import OptimizerBackend
from lohan_core.interfaces.storage import StorageBackend
from lohan_core.reference.memory_storage import MEMORY
from lohan_core.reference.torch_adamw import TORCH_ADAMW

__all__ = ["lohan_optimizer", "lohan_storage"]


@hookimpl
def lohan_storage() -> Iterable[StorageBackend]:
    """Offer ``memory``."""
    yield MEMORY


@hookimpl
def lohan_optimizer() -> Iterable[OptimizerBackend]:
    """Offer ``torch_adamw``."""
    yield TORCH_ADAMW
