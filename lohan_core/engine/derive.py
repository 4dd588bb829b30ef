"""A profile from a model's config and a machine's published rates: no weights, no memory, no measurement.

The model is built, cut and traced with torch's fake tensors, which have shapes and no bytes, so that a model of any
size takes seconds. An operator takes as long as its products at the machine's FLOP rate, or as its bytes at the
bandwidth of the memory that it works in, whichever is longer (the roofline model: Williams et al., CACM 52(4), 2009);
and no shorter than the host takes to launch it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from attrs import define, field
from torch._subclasses.fake_tensor import FakeTensorMode

from lohan_core.config.sections import Config
from lohan_core.engine.fake_compiled import fake_compiled
from lohan_core.engine.profile_blocks import arguments_bytes, profile_blocks
from lohan_core.hardware.machine import compute_bandwidth, compute_rate, make_machine
from lohan_core.hardware.sections import Hardware
from lohan_core.model.attention import ATTENTION_DROPOUTS
from lohan_core.model.choices import Attention, Loss
from lohan_core.model.cut import CutModel, cut_model
from lohan_core.model.skeleton import build_skeleton, read_config
from lohan_core.profile import Profile
from lohan_core.states import StateVector

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["Outline", "derive_profile"]

_CPU = torch.device("cpu")

LAUNCH_SECONDS = 1e-5
"""What one thread of PyTorch takes for an operator: a GPU whose operators are shorter waits for them."""


def derive_profile(
    model_config: PreTrainedConfig,
    hardware: Hardware,
    *,
    micro_batch_size: int,
    sequence_length: int,
    dtype: torch.dtype,
    states: Sequence[StateVector],
    gpu_updates: bool = False,
    attention: Attention = Attention.AUTO,
    loss: Loss = Loss.WHOLE,
    compiles: bool = False,
    trust_remote_code: bool = False,
) -> Profile:
    """Derive the profile of one model on one machine; see :class:`Outline` for several.

    Args:
        model_config: of any causal LM; it is not changed.
        hardware: the machine's published rates.
        micro_batch_size: rows of a micro-batch.
        sequence_length: tokens of a row.
        dtype: compute type of weights and activations.
        states: what the optimizer keeps, master weights included.
        gpu_updates: whether the optimizer can update states that live on the GPU.
        attention: the kernels of attention.
        loss: how head and loss are computed.
        compiles: whether layers are compiled.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ModelError: the config is not one of a causal LM, or the model cannot be cut into blocks.
    """
    outline = Outline(
        model_config, dtype, attention=attention, loss=loss, compiles=compiles, trust_remote_code=trust_remote_code
    )
    return outline.profile(
        hardware,
        micro_batch_size=micro_batch_size,
        sequence_length=sequence_length,
        states=states,
        gpu_updates=gpu_updates,
    )


@define(eq=False)
class Outline:
    """A model of fake tensors, cut into blocks, to be profiled for as many machines and batches as wanted.

    Attention is taken to run without dropout, in one fused kernel, as it does on a GPU: on the CPU, where this looks,
    torch would fall back to separate products as soon as there is dropout. flash-attn's kernels count as torch's fused
    ones, and Liger's loss as the chunked one: the same products, over the same bytes.
    """

    model_config: PreTrainedConfig
    dtype: torch.dtype
    attention: Attention = field(default=Attention.AUTO, kw_only=True)
    loss: Loss = field(default=Loss.WHOLE, kw_only=True)
    compiles: bool = field(default=False, kw_only=True)
    trust_remote_code: bool = field(default=False, kw_only=True)
    _mode: FakeTensorMode = field(init=False, factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    _model: CutModel = field(init=False)

    def __attrs_post_init__(self) -> None:
        config = copy.deepcopy(self.model_config)
        for name in ATTENTION_DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        skeleton = build_skeleton(
            config,
            self.dtype,
            eager_attention=self.attention is Attention.EAGER,
            trust_remote_code=self.trust_remote_code,
        )
        loss = Loss.WHOLE if self.loss is Loss.WHOLE else Loss.CHUNKED
        with self._mode:
            self._model = cut_model(skeleton, loss, compile_by=fake_compiled if self.compiles else None)
            self._model.to(_CPU)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Outline the model of a run, as that would compute it.

        Raises:
            LohanError: the model is not usable, or cannot be compiled as the config wants.
        """
        trust = config.model.trust_remote_code
        return cls(
            read_config(config.model.path, trust_remote_code=trust),
            getattr(torch, config.run.dtype),
            attention=config.model.attention,
            loss=config.model.loss,
            compiles=config.model.compile,
            trust_remote_code=trust,
        )

    @property
    def parameters(self) -> int:
        """Number of parameters that are trained, each counted once."""
        return sum(block.parameters for block in self._model.blocks)

    def profile(
        self,
        hardware: Hardware,
        *,
        micro_batch_size: int,
        sequence_length: int,
        states: Sequence[StateVector],
        gpu_updates: bool = False,
    ) -> Profile:
        """Profile the model on ``hardware``; arguments as for :func:`derive_profile`."""
        flop_rate, bandwidth = compute_rate(hardware, self.dtype.itemsize), compute_bandwidth(hardware)
        with self._mode:
            tokens = torch.zeros((micro_batch_size, sequence_length), dtype=torch.long)
            inputs = {"input_ids": tokens, "labels": tokens}
            with self._masks():
                arguments = arguments_bytes(self._model, [inputs], _CPU)
            blocks = profile_blocks(
                self._model,
                inputs,
                _CPU,
                # An operator that moves nothing is a view: no kernel.
                estimate=lambda flops, moved: max(flops / flop_rate, moved / bandwidth, LAUNCH_SECONDS * (moved > 0)),
            )
        return Profile(
            machine=make_machine(hardware, states, self.dtype.itemsize, gpu_updates=gpu_updates),
            micro_batch_size=micro_batch_size,
            sequence_length=sequence_length,
            weight_bytes=self.dtype.itemsize,
            states=tuple(states),
            blocks=blocks,
            arguments_bytes=arguments,
        )

    @contextmanager
    def _masks(self) -> Iterator[None]:
        """Have the model make the masks that its attention takes: none for flash-attn, whose part torch's has here."""
        config = self._model.model.config
        before = config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
        if self.attention is Attention.FLASH:
            config._attn_implementation = "flash_attention_2"  # noqa: SLF001
        try:
            yield
        finally:
            config._attn_implementation = before  # noqa: SLF001
