"""The config of a measured step, section by section: every workload's, this one's, the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lohan_core.errors import ConfigError

__all__ = ["SEED", "lay_sections"]

SEED = 0
_OPTIMIZER = {"lr": 1e-5, "max_grad_norm": 1.0}
_NEVER = 1_000_000_000

_OURS: Mapping[str, frozenset[str] | None] = {
    "model": frozenset({"path", "weights", "trust_remote_code"}),
    "data": None,
    "run": frozenset(
        {
            *("dir", "device", "batch_size", "micro_batch_size", "seed", "steps"),
            *("checkpoint_every", "eval_every", "replan_after", "tensorboard"),
        }
    ),
    "optimizer": frozenset({"schedule", "warmup_steps"}),
}
"""Keys of a run's config that this command decides about, or that the steps it takes know nothing of: the trainer's.

None: the whole section. To accept them would be to report what was not measured.
"""


def lay_sections(
    workload: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Lay the sections of the run's config over each other: every workload's, this one's, the caller's.

    The workload's keys of a section are for the backend that it names there: if the caller chooses another, they go.

    Args:
        workload: this workload's.
        chosen: the caller's.

    Raises:
        ConfigError: the caller sets what the command itself decides about, or a section that is none.
    """
    for name, section in chosen.items():
        if not isinstance(section, Mapping):
            raise ConfigError(f"--set {name}: wants a key of this section, as in --set {name}.key=value")
        decided = _OURS.get(name, frozenset())
        for key in section:
            if decided is None or key in decided:
                raise ConfigError(
                    f"--set {name}.{key}: is decided by the workload and by this command's other options, or has no "
                    "part in the steps that it measures"
                )
    sections: dict[str, dict[str, Any]] = {
        "model": {"weights": "random"},
        "run": {"durability": "none", "checksums": False, "checkpoint_every": _NEVER, "steps": _NEVER, "seed": SEED},
        "optimizer": _OPTIMIZER,
    }
    own = {
        name: section
        for name, section in workload.items()
        if chosen.get(name, {}).get("backend", section.get("backend")) == section.get("backend")
    }
    for layer in (own, chosen):
        for name, section in layer.items():
            sections[name] = {**sections.get(name, {}), **section}
    return sections
