"""What a planner is told beside the profile, from a run's config. Pure arithmetic, for runs and forecasts alike."""

from __future__ import annotations

from collections.abc import Iterable

from lohan_core.config.sections import Config
from lohan_core.interfaces.optimizer import OptimizerConfig
from lohan_core.layout import round_up
from lohan_core.plan import Tier, Workload
from lohan_core.states import StateVector, chunk_alignment

__all__ = ["chunk_elements", "limits_of", "optimizer_settings", "workload_of"]


def optimizer_settings(config: Config) -> OptimizerConfig:
    """Return the optimizer's settings, of which the core reads those that all optimizers have."""
    settings = config.optimizer.settings
    assert isinstance(settings, OptimizerConfig)  # noqa: S101 - the registry takes in no optimizer with others
    return settings


def chunk_elements(config: Config, vectors: Iterable[StateVector]) -> int:
    """Return how many parameters the config's chunk is, rounded up to what all of a block's vectors allow."""
    return round_up(config.memory.chunk // 4, chunk_alignment(vectors))


def workload_of(
    config: Config, vectors: Iterable[StateVector], *, micro_batches: int | None = None, versions: int | None = None
) -> Workload:
    """Return what one step of the run does.

    Args:
        config: the run's config.
        vectors: all that a block has: its states and its compute weights.
        micro_batches: of a step; by default as many as the config's batch has.
        versions: of each state, where a store is there; by default the most that the config allows.
    """
    return Workload(
        micro_batches=micro_batches or config.run.batch_size // config.run.micro_batch_size,
        update=config.run.update,
        clips=bool(optimizer_settings(config).max_grad_norm),
        chunk_elements=chunk_elements(config, vectors),
        versions=versions or config.run.most_versions,
    )


def limits_of(config: Config) -> dict[Tier, int | None]:
    """Return the user's own limits in bytes; None: all that there is. See :func:`lohan_core.budget.make_budget`."""
    return {Tier.GPU: config.memory.gpu, Tier.HOST: config.memory.host, Tier.SSD: config.memory.ssd}
