"""The errors a person can mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ConfigError",
    "DataError",
    "InvalidPlanError",
    "LohanError",
    "ModelError",
    "PlanError",
    "StorageError",
    "StoreError",
]


class LohanError(Exception):
    """Base of every error that LoHan raises on purpose.

    The command line prints ``str(error)`` on one line, without a traceback, and exits with ``exit_code``.
    """

    exit_code = 2


class ConfigError(LohanError):
    """A configuration file or ``--set`` holds an unknown key, a wrong type or an impossible value."""


class BackendError(LohanError):
    """A backend is unknown, broken, or not usable on this machine."""


class ModelError(LohanError):
    """A model directory is missing, is not a causal LM, or cannot be cut into blocks."""


class DataError(LohanError):
    """A data file is missing, empty or malformed."""


class PlanError(LohanError):
    """No plan fits the budget."""


class InvalidPlanError(LohanError):
    """A plan is none for the model and the workload: its planner's fault, which more memory would not mend."""


class StoreError(LohanError):
    """A store is in use, belongs to another model or config, or is damaged."""


class StorageError(LohanError, OSError):
    """An I/O failed. Names file, offset and errno.

    Exit code 1: the drive is at fault, not the user.
    """

    exit_code = 1

    def __init__(self, errno: int, message: str, path: str = "", offset: int = 0) -> None:
        """Describe a failed transfer of ``path`` at byte ``offset``; ``message`` is the whole line that is shown."""
        OSError.__init__(self, errno, message, path)
        self.offset = offset

    def __str__(self) -> str:
        return str(self.strerror)
