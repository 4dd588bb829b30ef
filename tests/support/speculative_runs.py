"""Runs whose plans have speculative updates wherever there can be some, whether they pay or not."""

from __future__ import annotations

from attrs import evolve
from tiny_runs import open_run

from lohan_core.plan import VERSIONS_TO_SPECULATE, Tier


def sections_for(states, max_norm, **run):
    return {
        "run": {"dtype": "bfloat16", "update": "speculative", **run},
        "optimizer": {
            "backend": "cpuadam",
            "lr": 1e-3,
            "weight_decay": 0.1,
            "max_grad_norm": max_norm,
            "threads": 1,
        },
        "planner": {"backend": "keep_nothing", "states": states},
        "storage": {"backend": "aio"},
    }


def decided(directory, model, batch, *, gradients=Tier.HOST, share=1.0, **sections):
    """A plan all of whose updates are speculative, or those of the last blocks, and its workload."""
    with open_run(directory, model, batch, **sections) as engine:
        plan, workload = engine.plan, engine.workload
    first = len(plan.blocks) - round(share * len(plan.blocks))
    blocks = [
        evolve(
            each,
            deferred=True,
            speculative=index >= first and each.states is not Tier.GPU,
            gradients=gradients if each.states is Tier.SSD else Tier.HOST,
        )
        for index, each in enumerate(plan.blocks)
    ]
    return {"plan": evolve(plan, blocks=tuple(blocks)), "workload": evolve(workload, versions=VERSIONS_TO_SPECULATE)}
