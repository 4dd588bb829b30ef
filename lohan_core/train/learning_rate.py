"""The learning rate of every step. Pure arithmetic."""

from __future__ import annotations

import math

from lohan_core.config import Config
from lohan_core.interfaces.optimizer import LearningRateSchedule
from lohan_core.planning_inputs import optimizer_settings

__all__ = ["learning_rate", "learning_rate_of"]


def learning_rate_of(config: Config, step: int) -> float:
    """Return the learning rate of a run's ``step``, counted from 1; past the run's end, that of its last."""
    settings = optimizer_settings(config)
    return learning_rate(
        min(step, config.run.steps),
        steps=config.run.steps,
        peak=settings.lr,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
    )


def learning_rate(step: int, *, steps: int, peak: float, warmup_steps: int, schedule: LearningRateSchedule) -> float:
    """Return the learning rate of ``step``, counted from 1.

    It rises linearly to ``peak``, reached at step ``warmup_steps``; from there to the end of the run it stays, or falls
    to zero along a line or half a cosine. No step of the run has a rate of zero.

    Args:
        step: from 1 to ``steps``.
        steps: length of the run.
        peak: the highest rate.
        warmup_steps: steps of rising; 0 begins at the peak.
        schedule: how it falls.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    passed = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
    if schedule is LearningRateSchedule.LINEAR:
        return peak * (1.0 - passed)
    if schedule is LearningRateSchedule.COSINE:
        return peak * 0.5 * (1.0 + math.cos(math.pi * passed))
    return peak
