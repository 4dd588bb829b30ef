"""What the conformance suite asks planners: small problems about made-up transformers on made-up machines."""

from __future__ import annotations

import random

from attrs import frozen

from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.plan import Update, Workload
from lohan_core.profile import BlockProfile, Candidate, Machine, Profile, Role
from lohan_core.states import StateVector

__all__ = ["PROBLEMS", "TINY_PROBLEMS", "Problem", "example_profile"]


def example_profile(*, layers: int, width: int, tokens: int, seed: int, candidates: int = 3) -> Profile:
    """Make a profile such as a transformer's on a workstation.

    It has ``layers`` layers of ``width``, each with as many random ``candidates``, and a micro-batch of ``tokens``. The
    seed also decides how fast the drives are, from slower than the GPU needs to faster; an odd one ties the head to the
    embedding.
    """
    dice = random.Random(seed)  # noqa: S311  # reproducible dice, not secrets
    flops_per_second = 50e12

    def block(name: str, role: Role, elements: int, candidates: int) -> BlockProfile:
        elements = -(-elements // BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT
        flops = 2.0 * elements * tokens
        shares = sorted(dice.random() for _ in range(candidates))
        return BlockProfile(
            name=name,
            role=role,
            elements=elements,
            input_bytes=2 * width * tokens,
            flops=flops,
            seconds=flops / flops_per_second,
            transient_bytes=40 * width * tokens,
            borrows=(0,) if role is Role.POSTLUDE and seed % 2 else (),
            candidates=tuple(
                Candidate(
                    index=3 * number,
                    operator="mm",
                    occurrence=number,
                    bytes=2 * width * tokens * dice.randint(1, 4),
                    flops=flops * share / candidates,
                    seconds=flops * share / candidates / flops_per_second,
                )
                for number, share in enumerate(shares)
            ),
        )

    drives = dice.uniform(1e9, 20e9)
    return Profile(
        machine=Machine(
            name="example",
            gpu_flops_per_second=flops_per_second,
            h2d_bytes_per_second=20e9,
            d2h_bytes_per_second=20e9,
            ssd_read_bytes_per_second=drives,
            ssd_write_bytes_per_second=0.7 * drives,
            ssd_mixed_bytes_per_second=1.1 * drives,
            cpu_parameters_per_second=1e9,
            gpu_parameters_per_second=None if seed % 2 else 2e10,
            gpu_bytes=24 * 2**30,
            host_bytes=128 * 2**30,
            ssd_bytes=2**40,
        ),
        micro_batch_size=1,
        sequence_length=tokens,
        weight_bytes=2,
        states=tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq")),
        blocks=(
            block("prelude", Role.PRELUDE, 1000 * width, 0),
            *(block(f"layers.{number}", Role.LAYER, 12 * width * width, candidates) for number in range(layers)),
            block("postlude", Role.POSTLUDE, 1000 * width, 1),
        ),
        arguments_bytes=64 * tokens,
    )


@frozen(kw_only=True)
class Problem:
    """What a planner is asked, without the budget."""

    name: str
    profile: Profile
    workload: Workload


def _problem(
    *,
    layers: int,
    tokens: int,
    micro_batches: int,
    update: Update,
    clips: bool,
    versions: int,
    seed: int,
    candidates: int = 3,
) -> Problem:
    return Problem(
        name=f"{layers} layers, {micro_batches} x {tokens} tokens, {update}{', clipped' if clips else ''}",
        profile=example_profile(layers=layers, width=512, tokens=tokens, seed=seed, candidates=candidates),
        workload=Workload(
            micro_batches=micro_batches,
            update=update,
            clips=clips,
            chunk_elements=256 * BLOCK_ALIGNMENT,
            versions=versions,
        ),
    )


PROBLEMS = tuple(
    _problem(
        layers=layers, tokens=tokens, micro_batches=micro, update=update, clips=clips, versions=versions, seed=seed
    )
    for seed, (layers, tokens, micro, update, clips, versions) in enumerate(
        [
            (1, 2**10, 1, Update.OPTIMIZED, False, 1),
            (2, 2**14, 1, Update.SERIAL, True, 2),
            (4, 2**15, 3, Update.OPTIMIZED, True, 2),
            (5, 2**15, 2, Update.NAIVE, False, 2),
            (8, 2**10, 1, Update.OPTIMIZED, False, 2),
            (3, 2**15, 2, Update.DEFERRED, True, 2),
            (4, 2**11, 3, Update.DEFERRED, False, 1),
        ]
    )
)
"""Small problems in which tiers, drives and updates weigh differently."""

TINY_PROBLEMS = tuple(
    _problem(layers=1, tokens=tokens, micro_batches=2, update=update, clips=clips, versions=2, seed=seed, candidates=2)
    for tokens, update, clips, seed in (
        (2**15, Update.OPTIMIZED, False, 0),
        (2**15, Update.DEFERRED, True, 0),
        (2**13, Update.DEFERRED, False, 3),
    )
)
"""So small that every choice can be tried."""
