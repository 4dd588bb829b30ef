"""What a config file may say to these planners."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs.validators import ge, gt, in_

__all__ = ["CheckmateConfig", "IlpConfig"]


@frozen(kw_only=True)
class IlpConfig:
    """How long `ilp` may search, and for what.

    Attributes:
        gap: How far from the optimum, as a part of the step, a plan may be to be taken; 0: it is the optimum, which for
            a large model can take minutes to prove.
        time_limit: Seconds that a plan may take, all questions to the solver together; the best so far is then taken.
            Where it cuts a search short, the plan depends on the computer's speed.
    """

    gap: float = field(default=1e-4, validator=ge(0.0))
    time_limit: float = field(default=60.0, validator=gt(0.0))


@frozen(kw_only=True)
class CheckmateConfig(IlpConfig):
    """How long `checkmate` may search, and where it puts the states, about which it does not decide.

    Attributes:
        states: Where weights and optimizer states live.
    """

    states: Literal["ssd", "host"] = field(default="ssd", validator=in_(("ssd", "host")))
