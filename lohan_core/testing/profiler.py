"""Conformance suite for profilers.

A plugin's whole test file::

    from lohan_core.testing.profiler import ProfilerSuite
    from my_plugin import BACKEND


    class TestMyProfiler(ProfilerSuite):
        backend = BACKEND

The subject is a tiny model on the CPU, with storage in memory. Override the fixture ``config`` if the backend needs
more than its default config.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from attrs import asdict

from lohan_core.data.batches import Batch
from lohan_core.evaluate import evaluate
from lohan_core.interfaces.profiler import ProfilerBackend, Subject
from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.model.cut import cut_model
from lohan_core.model.skeleton import build_skeleton
from lohan_core.plan import Budget, Update, Workload
from lohan_core.profile import Profile, Role
from lohan_core.reference.memory_storage import MEMORY
from lohan_core.reference.planners import KEEP_NOTHING
from lohan_core.reference.torch_adamw import TORCH_ADAMW
from lohan_core.testing.suite import ConformanceSuite, default_config

__all__ = ["ProfilerSuite", "example_subject"]

_WIDTH, _VOCABULARY, _ROWS, _TOKENS = 48, 96, 2, 32

_PLAUSIBLE = {
    "gpu_flops_per_second": (1e6, 1e17),
    "h2d_bytes_per_second": (1e6, 1e13),
    "d2h_bytes_per_second": (1e6, 1e13),
    "ssd_read_bytes_per_second": (1e6, 1e13),
    "ssd_write_bytes_per_second": (1e6, 1e13),
    "ssd_mixed_bytes_per_second": (1e6, 1e13),
    "cpu_parameters_per_second": (1e4, 1e12),
    "gpu_parameters_per_second": (1e6, 1e14),
    "gpu_bytes": (2**20, 2**50),
    "host_bytes": (2**20, 2**50),
    "ssd_bytes": (2**20, 2**60),
}
"""So wide that only a wrong unit falls outside."""


def example_subject() -> Subject:
    """Make a tiny model of two decoder layers with a tied head, in fp32, and one batch for it."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_TOKENS,
        tie_word_embeddings=True,
    )
    inputs = torch.randint(_VOCABULARY, (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    return Subject(
        model=cut_model(build_skeleton(config, torch.float32)),
        storage=MEMORY.open(MEMORY.config(), namespace="suite", default_directory="."),
        optimizer=TORCH_ADAMW.open(TORCH_ADAMW.config(), threads=1),
        batch=Batch(
            micro_batches=({"input_ids": inputs, "labels": inputs},),
            tokens=inputs.numel(),
            loss_tokens=(inputs[:, 1:].numel(),),
        ),
        chunk_elements=1 << 20,
    )


class ProfilerSuite(ConformanceSuite):
    """What every profile is: of the model at hand, in the units of its fields, and plain data."""

    backend: ClassVar[ProfilerBackend]

    @pytest.fixture
    def subject(self) -> Subject:
        """Give what is to be profiled."""
        return example_subject()

    @pytest.fixture
    def config(self) -> Any:
        """Give the config to open the backend with."""
        return default_config(self.backend)

    @pytest.fixture
    def profile(self, config: Any, subject: Subject) -> Profile:
        """Give the profile of the subject."""
        return self.backend.open(config).profile(subject)

    def test_is_usable_here(self) -> None:
        """The suite runs where the backend works."""
        assert self.backend.probe() is None

    def test_is_of_the_model_at_hand(self, profile: Profile, subject: Subject) -> None:
        """Blocks, their sizes and what they borrow are the model's; so are the micro-batch and the states."""
        model = subject.model
        roles = [Role.PRELUDE, *[Role.LAYER] * len(model.layers), Role.POSTLUDE]
        assert [block.role for block in profile.blocks] == roles
        assert [(b.name, b.elements) for b in profile.blocks] == [(b.name, b.elements) for b in model.blocks]
        assert [block.borrows for block in profile.blocks] == [
            tuple(sorted({borrowed.owner for borrowed in block.borrowed})) for block in model.blocks
        ]
        assert (profile.micro_batch_size, profile.sequence_length) == (_ROWS, _TOKENS)
        assert profile.weight_bytes == model.dtype.itemsize
        kept = {field.name for field in subject.optimizer.fields}
        assert kept < {state.name for state in profile.states}, "a state of the optimizer is missing, or the master"

    def test_machine_is_in_the_units_of_its_fields(self, profile: Profile) -> None:
        """Bytes are not gigabytes, and nothing is negative or infinite."""
        for name, (low, high) in _PLAUSIBLE.items():
            value = getattr(profile.machine, name)
            assert value is None or low <= value <= high, f"machine.{name} is {value}"

    def test_blocks_are_in_the_units_of_their_fields(self, profile: Profile, subject: Subject) -> None:
        """Activations count in bytes of one micro-batch, FLOPs as 2 for each multiply-add, time in seconds."""
        activation_bytes = _ROWS * _TOKENS * _WIDTH * subject.model.dtype.itemsize
        for block in profile.blocks[1:]:
            assert block.input_bytes == activation_bytes, f"input_bytes of {block.name}"
        for number in subject.model.layers:
            block = profile.blocks[number]
            matrices = sum(math.prod(s.shape) for s in subject.model.blocks[number].slots if len(s.shape) == 2)
            products = 2 * matrices * _ROWS * _TOKENS
            assert products <= block.flops <= 2 * products, f"flops of {block.name}"
        for block in profile.blocks:
            assert 0 <= block.seconds < 60, f"seconds of {block.name}"
            assert 0 <= block.recomputed_seconds <= block.seconds * (1 + 1e-9), f"recomputed_seconds of {block.name}"
            assert 0 <= block.recomputed_flops <= block.flops, f"recomputed_flops of {block.name}"
            assert block.transient_bytes >= 0

    def test_candidates_are_parts_of_their_block(self, profile: Profile) -> None:
        """Each operator once, in order; together they do not do more than is recomputed."""
        assert any(block.candidates for block in profile.blocks), "no block has anything to keep"
        for block in profile.blocks:
            indices = [candidate.index for candidate in block.candidates]
            assert indices == sorted(set(indices)), f"indices in {block.name}"
            found_by = {candidate.occurs_as for candidate in block.candidates}
            assert len(found_by) == len(indices), f"two candidates in {block.name} cannot be told apart"
            assert sum(c.flops for c in block.candidates) <= block.recomputed_flops * (1 + 1e-9), (
                f"flops in {block.name}"
            )
            for candidate in block.candidates:
                assert 0 <= candidate.seconds < 60, f"{candidate.operator} in {block.name}"

    def test_survives_json(self, profile: Profile) -> None:
        """What is written is read back, to the last digit."""
        assert Profile.from_json(profile.to_json()) == profile
        numbers = [value for value in asdict(profile.machine).values() if isinstance(value, int | float)]
        assert all(math.isfinite(number) for number in numbers)

    def test_can_be_planned_with(self, profile: Profile) -> None:
        """The reference planner's plan has a step of positive, finite length."""
        plenty = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)
        workload = Workload(
            micro_batches=1, update=Update.OPTIMIZED, clips=True, chunk_elements=16 * BLOCK_ALIGNMENT, versions=2
        )
        plan = KEEP_NOTHING.open(KEEP_NOTHING.config()).plan(profile, plenty, workload)
        assert 0 < evaluate(plan, profile, workload, plenty).seconds < math.inf
