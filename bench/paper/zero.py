"""One step of the ZeRO systems: DeepSpeed's stage 3 as its releases 0.9.5, 0.12.3 and 0.14.5 have it.

Files are below ``deepspeed/runtime/``; what is said without one is in ``zero/stage3.py``.

- They recompute everything but the inputs of blocks, keep a gradient in fp32 beside the states (16 bytes per parameter:
  ZeRO-Infinity, arXiv 2104.07857, section 3) and update when backward is through.
- ZeRO-Infinity keeps states on the drives and checkpoints in main memory. ZeRO-Offload keeps states in main memory and
  checkpoints on the GPU: it is ZeRO-Infinity's paper that adds offloading them, and in 24 GB it is why 32 rows are
  published for ZeRO-Infinity and not for ZeRO-Offload.
- A step is the sum of its tasks, since the host waits for every transfer before it goes on: for a weight's upload
  (``NoGatherHandle`` in ``zero/partition_parameters.py``), for a checkpoint's copy
  (``activation_checkpointing/checkpointing.py``), and in an update for its reads and for its writes
  (``swap_tensor/partitioned_optimizer_swapper.py``, which is used as long as ``pipeline_read`` and ``pipeline_write``
  are off: the default). What the GPU has left in its queue while the host waits is neglected.
- The weights of the last three layers stay on the GPU between forward and backward, about what the default of 10^9 live
  parameters (``zero/config.py``) lets stay at the 13B's 3.1 10^8 a layer.
- A gradient crosses PCIe three times (``partition_grads``): down in 16 bit into the buffer of all gradients, up again
  since what follows is faster on the GPU, and down once more to where the update will find it. ZeRO-Infinity has made
  it fp32 by then; ZeRO-Offload's copy converts, and a blocking copy that converts does so on the processor (PyTorch,
  ``aten/src/ATen/native/cuda/Copy.cu``).
- Their update makes two passes more than Ratel's over gradients in main memory: looking for infinities and NaN
  (``has_overflow``; DeepSpeed issue 4561), and dividing by the loss scale (``unscale_and_clip_grads``).

Memory that is not pinned: a checkpoint goes down into a tensor made for it, and up from there; a copy that converts on
the processor goes down into a tensor made for it too. All other copies are pinned, if ``pin_memory`` is set. How fast
the testbed copies to and from pageable memory is not known, and no one rate suits both systems, so that the predictions
have all copies at PCIe's rate; ``PageableRates`` is for asking what difference it makes.
"""

from __future__ import annotations

from attrs import frozen
from passes import ZERO_INFINITY_BYTES, ZERO_OFFLOAD_BYTES

from lohan_core.lane_amounts import Amounts, Phase, Resource, add_amounts, plan_amounts
from lohan_core.lane_model import unit_seconds
from lohan_core.plan import BlockPlan, Plan, Tier, Update, Workload
from lohan_core.profile import Profile
from lohan_core.states import StateVector

__all__ = [
    "PUBLISHED_PAGEABLE",
    "ZERO_INFINITY",
    "ZERO_OFFLOAD",
    "ZERO_STATES",
    "PageableRates",
    "ZeroSystem",
    "pageable_amounts",
    "zero_amounts",
    "zero_seconds",
]

CHUNK_ELEMENTS = 16 * 2**20
ZERO_STATES = tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq", "gradient"))


@frozen(kw_only=True)
class ZeroSystem:
    """What tells the systems apart.

    ``states`` and ``checkpoints``: where these live. ``memory_bytes``: main memory traffic of an update, per parameter.
    ``last_gradient_bytes``: bytes per parameter of a gradient's last way down; ``converts``: whether that copy goes by
    way of pageable memory, to be made fp32 by the processor.
    """

    states: Tier
    checkpoints: Tier
    memory_bytes: int
    last_gradient_bytes: int
    converts: bool


ZERO_INFINITY = ZeroSystem(
    states=Tier.SSD,
    checkpoints=Tier.HOST,
    memory_bytes=ZERO_INFINITY_BYTES,
    last_gradient_bytes=4,
    converts=False,
)
ZERO_OFFLOAD = ZeroSystem(
    states=Tier.HOST,
    checkpoints=Tier.GPU,
    memory_bytes=ZERO_OFFLOAD_BYTES,
    last_gradient_bytes=2,
    converts=True,
)


@frozen(kw_only=True)
class PageableRates:
    """Bytes a second between the GPU and pageable memory: down into fresh pages, and up from pages in use."""

    down_bytes_per_second: float
    up_bytes_per_second: float

    def times(self, factor: float) -> PageableRates:
        """Scale both."""
        return PageableRates(
            down_bytes_per_second=self.down_bytes_per_second * factor,
            up_bytes_per_second=self.up_bytes_per_second * factor,
        )


PUBLISHED_PAGEABLE = PageableRates(down_bytes_per_second=2e9, up_bytes_per_second=8e9)
"""About the middle of what is published for other machines; the results name the publications."""


def zero_amounts(system: ZeroSystem, profile: Profile) -> Amounts:
    """How much of each resource a step takes, the whole batch at once."""
    # The gradient that waits is one of the states here: on the drives as well, it would be counted twice.
    block = BlockPlan(states=system.states, inputs=system.checkpoints, gradients=Tier.HOST)
    plan = Plan(planner="zero", blocks=(block,) * len(profile.blocks))
    workload = Workload(
        micro_batches=1, update=Update.SERIAL, clips=True, chunk_elements=CHUNK_ELEMENTS, versions=1, layer_slots=3
    )
    parameters = _parameters(profile)
    detour: Amounts = {
        (Phase.BACKWARD, Resource.H2D): parameters * profile.weight_bytes,
        (Phase.BACKWARD, Resource.D2H): parameters * system.last_gradient_bytes,
    }
    return add_amounts([plan_amounts(plan, profile, workload), detour])


def pageable_amounts(system: ZeroSystem, profile: Profile) -> Amounts:
    """How many of the bytes of :func:`zero_amounts` cross PCIe to or from pageable memory."""
    # In forward, checkpoints are all that goes down.
    checkpoints = zero_amounts(system, profile).get((Phase.FORWARD, Resource.D2H), 0.0)
    gradients = _parameters(profile) * system.last_gradient_bytes * system.converts
    return {
        (Phase.FORWARD, Resource.D2H): checkpoints,
        (Phase.BACKWARD, Resource.D2H): gradients,
        (Phase.BACKWARD, Resource.H2D): checkpoints,
    }


def zero_seconds(system: ZeroSystem, profile: Profile, pageable: PageableRates | None = None) -> float:
    """Length of a step: every task after the other.

    Args:
        system: which one.
        profile: of the whole batch as one micro-batch, with ``ZERO_STATES``, and with the rate of an update that moves
            the system's ``memory_bytes``.
        pageable: rates of copies to and from pageable memory; None: PCIe's, as of all other copies.
    """
    seconds = unit_seconds(profile.machine)
    length = sum(seconds[resource] * float(amount) for (_, resource), amount in zero_amounts(system, profile).items())
    if pageable is None:
        return length
    slower = {
        Resource.D2H: 1 / pageable.down_bytes_per_second - seconds[Resource.D2H],
        Resource.H2D: 1 / pageable.up_bytes_per_second - seconds[Resource.H2D],
    }
    moved = pageable_amounts(system, profile)
    return length + sum(slower[resource] * float(amount) for (_, resource), amount in moved.items())


def _parameters(profile: Profile) -> int:
    return sum(block.elements for block in profile.blocks)
