"""The paper's equations (Ratel section IV-D): a step's length from the totals P, A, M, FLOPs and five rates.

They leave out CPU update time, states in host memory, operators that are bound by memory and not by FLOPs, and the
order of tasks: :mod:`lohan_core.lane_model` and the simulation of the schedule have them.
"""

from __future__ import annotations

from attrs import frozen

from lohan_core.plan import Plan, Workload
from lohan_core.profile import Machine, Profile, Role
from lohan_core.schedule.sizes import kept_bytes
from lohan_core.schedule.task import Lane
from lohan_core.states import chunk_record_bytes

__all__ = ["PaperTotals", "paper_busy_seconds", "paper_seconds", "paper_step_seconds", "paper_totals"]


@frozen(kw_only=True)
class PaperTotals:
    """What one step computes and moves, in the paper's terms.

    ``weight_bytes`` is 2P (P16, as large as G16), ``state_bytes`` 12P (P32 and OS32), ``activation_bytes`` A (what
    leaves the GPU), ``host_bytes`` M (host memory that is free for them), ``forward_flops`` FLOP_f and
    ``recomputed_flops`` FLOP_r.
    """

    weight_bytes: float
    state_bytes: float
    activation_bytes: float
    host_bytes: float
    forward_flops: float
    recomputed_flops: float


def paper_seconds(totals: PaperTotals, machine: Machine) -> float:
    """T_iter = T_f + T_b, equations of section IV-D.

    PCIe is duplex: where the paper writes BW_G, the direction that the bytes take. The drives are simplex: reads and
    writes add up. THP_G is ``gpu_flops_per_second``, BW_S2M the rate of reads, BW_M2S that of writes.
    """
    spilled = max(0.0, totals.activation_bytes - totals.host_bytes)
    rewritten = totals.weight_bytes + totals.state_bytes
    read, write = machine.ssd_read_bytes_per_second, machine.ssd_write_bytes_per_second
    forward = max(
        totals.forward_flops / machine.gpu_flops_per_second,
        totals.activation_bytes / machine.d2h_bytes_per_second,
        totals.weight_bytes / machine.h2d_bytes_per_second,
        totals.weight_bytes / read + spilled / write,
    )
    backward = max(
        (2 * totals.forward_flops + totals.recomputed_flops) / machine.gpu_flops_per_second,
        totals.weight_bytes / machine.d2h_bytes_per_second,
        (totals.weight_bytes + totals.activation_bytes) / machine.h2d_bytes_per_second,
        (rewritten + spilled) / read + rewritten / write,
    )
    return forward + backward


def paper_totals(plan: Plan, profile: Profile, workload: Workload, host_bytes: int) -> PaperTotals:
    """Add up what a plan computes and moves.

    The paper knows no choice of tier: all states are on the drives, and of what leaves the GPU the drives take what
    ``host_bytes`` cannot hold, whatever the plan says.
    """
    pairs = list(zip(profile.blocks, plan.blocks, strict=True))
    recomputed = sum(
        max(0.0, block.recomputed_flops - sum(c.flops for c in block.candidates if c.index in decisions.keep))
        for block, decisions in pairs
    )
    parameters = sum(block.elements for block in profile.blocks)
    return PaperTotals(
        weight_bytes=parameters * profile.weight_bytes,
        state_bytes=sum(chunk_record_bytes(profile.states, block.elements) for block in profile.blocks),
        activation_bytes=workload.micro_batches
        * sum(kept_bytes(*pair).moved for pair in pairs if pair[0].role is Role.LAYER),
        host_bytes=host_bytes,
        forward_flops=workload.micro_batches * sum(block.flops for block in profile.blocks),
        recomputed_flops=workload.micro_batches * recomputed,
    )


def paper_busy_seconds(plan: Plan, profile: Profile, workload: Workload, host_bytes: int) -> dict[Lane, float]:
    """How long each lane works in the paper's equations; they leave the CPU out."""
    totals = paper_totals(plan, profile, workload, host_bytes)
    machine = profile.machine
    flops = 3 * totals.forward_flops + totals.recomputed_flops
    spilled = max(0.0, totals.activation_bytes - totals.host_bytes)
    rewritten = totals.weight_bytes + totals.state_bytes
    return {
        Lane.GPU: flops / machine.gpu_flops_per_second,
        Lane.H2D: (2 * totals.weight_bytes + totals.activation_bytes) / machine.h2d_bytes_per_second,
        Lane.D2H: (totals.weight_bytes + totals.activation_bytes) / machine.d2h_bytes_per_second,
        Lane.SSD_READ: (totals.weight_bytes + rewritten + spilled) / machine.ssd_read_bytes_per_second,
        Lane.SSD_WRITE: (rewritten + spilled) / machine.ssd_write_bytes_per_second,
        Lane.CPU: 0.0,
    }


def paper_step_seconds(plan: Plan, profile: Profile, workload: Workload, host_bytes: int) -> float:
    """T_iter of a plan by the paper's equations; ``host_bytes`` is MEM_avail."""
    return paper_seconds(paper_totals(plan, profile, workload, host_bytes), profile.machine)
