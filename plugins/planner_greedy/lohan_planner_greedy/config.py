"""What a config file may say to these planners."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from attrs import field, frozen
from attrs.validators import ge, in_

__all__ = ["GreedyConfig", "GreedyModel", "Ranking", "StrategyConfig"]


class Ranking(StrEnum):
    """What a byte that waits instead of being recomputed is worth."""

    SECONDS = "seconds"
    """The measured time of the operator: right for operators that are bound by memory too."""
    FLOPS = "flops"
    """The operator's FLOPs, as in the paper."""


class GreedyModel(StrEnum):
    """By which of the core's closed forms a step is predicted in the search."""

    LANES = "lanes"
    PAPER = "paper"


@frozen(kw_only=True)
class GreedyConfig:
    """How `greedy` searches.

    Attributes:
        ranking: What candidates are ranked by, per byte: `seconds` as measured, or `flops` as in the paper.
        model: What the search minimizes: `lanes`, or `paper` for the published equations, which know neither the CPU's
            time nor states in host memory.
        finalists: How many plans are simulated in the end: the search's best, its best without activations on the
            drives, and others that keep less and more; beside them, where no update need wait, the best that defers
            some, and where they say that a shorter step lies between them, what does. With 1 the search decides alone.
        states: Where weights and optimizer states live: `auto` decides block by block, and may put those of layers on
            the GPU, where the optimizer can update them there; `ssd` and `host` put all of them there.
    """

    ranking: Ranking = Ranking.SECONDS
    model: GreedyModel = GreedyModel.LANES
    finalists: int = field(default=4, validator=ge(1))
    states: Literal["auto", "ssd", "host"] = field(default="auto", validator=in_(("auto", "ssd", "host")))


@frozen(kw_only=True)
class StrategyConfig:
    """Where a strategy that decides about activations only puts the states.

    Attributes:
        states: Where weights and optimizer states live.
    """

    states: Literal["ssd", "host"] = field(default="ssd", validator=in_(("ssd", "host")))
