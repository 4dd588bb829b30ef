"""The sections of a config file that belong to the core; the other four belong to the backends they choose."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, optional

from lohan_core.backend import Kind
from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.model.choices import Attention, Loss
from lohan_core.plan import VERSIONS_TO_SPECULATE, Update
from lohan_core.units import Bytes

__all__ = [
    "BackendChoice",
    "ComputeDtype",
    "Config",
    "DataConfig",
    "Durability",
    "FirstWeights",
    "MemoryConfig",
    "ModelConfig",
    "RunConfig",
    "is_device",
]

CHUNK_UNIT_BYTES = 4 * BLOCK_ALIGNMENT
"""Chunks begin and end on whole alignment units of a block's flat fp32 vector."""


def is_device(_options: object, attribute: Attribute[str], value: str) -> None:
    """Validate an attrs field that names a device. Raises ValueError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{attribute.name!r} must be auto, cpu, cuda or cuda:N: {value!r}")


class ComputeDtype(StrEnum):
    """The dtype of compute weights, activations and gradients; masters and optimizer states are always fp32."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class FirstWeights(StrEnum):
    """Which weights a run begins with."""

    PRETRAINED = "pretrained"
    """Those in the model's directory."""
    RANDOM = "random"
    """Drawn as the architecture itself draws them."""


class Durability(StrEnum):
    """What a crash may cost."""

    STEP = "step"
    """At most the steps since the last durable one; states take twice their space."""
    NONE = "none"
    """The whole run: states are overwritten in place, or in no store at all."""


@frozen(kw_only=True)
class ModelConfig:
    """The model that is fine-tuned.

    Attributes:
        path: Directory of a Hugging Face causal LM: `config.json`, safetensors weights and, where the data need one,
            a tokenizer. It is only read.
        weights: What a new run begins with. `pretrained`: the weights in that directory; `random`: such as the
            architecture draws from `run.seed`, to train from scratch, or to see how a model runs before its weights are
            fetched: `config.json` alone will do.
        attention: Kernels of attention. `flash`: those of flash-attn (`pip install 'lohan[flash-attn]'`), in bfloat16
            on a GPU of compute capability 8.0 or higher; `sdpa`: torch's own fused ones; `eager`: one operator after
            the other, with all scores in memory; `auto`: the first of these that model and machine can do. A run's
            first lines say which.
        loss: Head and loss. `whole`: as the model defines them, with the logits of all tokens at once, and gradients
            that are to the bit those of plain PyTorch; `chunked`: one slice of tokens at a time, equal to rounding,
            so that long sequences and large vocabularies take little memory; `liger`: likewise by Liger's kernels, on a
            GPU (`pip install 'lohan[liger]'`).
        compile: Whether what lies between a layer's matrix products and attention (norms, rotary embeddings,
            activations, sums) is compiled into fused kernels by torch's Inductor, once for each kind of layer, which
            takes seconds at the start. The results are those of the compiled layers, to the bit and whatever the plan;
            they equal the others to rounding. Evaluations run the layers as they are.
        trust_remote_code: Whether Python code in that directory may run.
    """

    path: Path
    weights: FirstWeights = FirstWeights.PRETRAINED
    attention: Attention = Attention.AUTO
    loss: Loss = Loss.WHOLE
    compile: bool = False
    trust_remote_code: bool = False


@frozen(kw_only=True)
class DataConfig:
    """What the model is fine-tuned on.

    Attributes:
        train: JSON-lines file of training samples: `text`, `prompt` and `completion`, `messages`, or `input_ids`.
        eval: JSON-lines file of evaluation samples; `null`: no evaluation.
        sequence_length: Tokens per sequence.
        packing: `true`: several samples share a sequence; `false`: one sample per sequence, padded.
        shuffle: Whether every epoch sees the samples in another order, which `run.seed` determines.
    """

    train: Path
    eval: Path | None = None
    sequence_length: int = field(default=1024, validator=ge(2))
    packing: bool = True
    shuffle: bool = True


@frozen(kw_only=True)
class RunConfig:
    """One run: where it is kept, how long it lasts, and how a step is carried out.

    Attributes:
        dir: Run directory: resolved config, metrics, store, and the model at the end. A run that is started again in
            its directory resumes.
        steps: Optimizer steps in all.
        batch_size: Sequences per optimizer step.
        micro_batch_size: Sequences that pass through a block at once; divides `batch_size`.
        seed: Seed of shuffling, of dropout, and of the first weights where `model.weights` is `random`.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: the first CUDA device if there is one, else the CPU.
        dtype: Dtype of compute weights, activations and gradients: `bfloat16` or `float32`. Master weights and
            optimizer states are float32 either way.
        eval_every: Evaluate before the first step, each time so many steps are done, and after the last; `null`: only
            after the last. Needs `data.eval`.
        tensorboard: Whether to write TensorBoard events too, into `tensorboard/` of the run directory (needs
            `lohan[tensorboard]`).
        update: When states are updated. `serial`: after backward. `naive`: during backward, one chunk after the other.
            `optimized`: during backward, with reading, updating and writing overlapped. (Where gradients are clipped,
            these three update after backward, when the norm is known.) `deferred`: as `optimized`, or in the next
            step's forward just ahead of their use, as the planner decides block by block. `speculative`: as `deferred`;
            and once four steps in a row were not clipped, updates run during backward in copies of the states, and are
            made again if the step turns out to be clipped. The copies take host memory, as far as there is room, and
            half as much space again on the drives. The results are the same with all.
        replan_after: Steps after which the profile is corrected by what a step was measured to take and the planner is
            asked again, once in each process; `null`: never. The results do not depend on it.
        durability: `step`: a crash loses at most the steps since the last durable one, for twice the space;
            `none`: a crash loses the run. Where the drives have too little space to save the states that are in host
            memory, `none` goes without: such a run cannot be resumed after a stop either, and says so at its start.
        checkpoint_every: Steps between durable states. `null`: every step where that costs nothing, because all states
            live on the drives and all updates or none are deferred; otherwise as many as keep saving below a twentieth
            of the time, as predicted. A step whose updates are deferred becomes durable in the course of the next.
        checksums: Whether everything that is read back from storage is verified.
    """

    dir: Path
    steps: int = field(validator=ge(1))
    batch_size: int = field(default=1, validator=ge(1))
    micro_batch_size: int = field(default=1, validator=ge(1))
    seed: int = field(default=0, validator=ge(0))
    device: str = field(default="auto", validator=is_device)
    dtype: ComputeDtype = ComputeDtype.BFLOAT16
    eval_every: int | None = field(default=None, validator=optional(ge(1)))
    tensorboard: bool = False
    update: Update = Update.DEFERRED
    replan_after: int | None = field(default=None, validator=optional(ge(1)))
    durability: Durability = Durability.STEP
    checkpoint_every: int | None = field(default=None, validator=optional(ge(1)))
    checksums: bool = True

    @property
    def most_versions(self) -> int:
        """How many versions of each state the store may have."""
        if self.durability is Durability.NONE:
            return 1
        return VERSIONS_TO_SPECULATE if self.update is Update.SPECULATIVE else 2

    def __attrs_post_init__(self) -> None:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"'micro_batch_size' must divide batch_size ({self.batch_size}), which {self.micro_batch_size} does not"
            )


@frozen(kw_only=True)
class MemoryConfig:
    """How much of each tier the run may use.

    Attributes:
        gpu: Device memory; `null`: what is free at the start. A sixteenth of it, at most 384 MiB, is left to what no
            plan counts.
        host: Host memory; `null`: what is free at the start, less a sixteenth, at most 8 GiB. Where the CPU computes,
            half of that, the other half being for `gpu`; what a limit leaves of one goes to the other.
        ssd: Space in the storage backend; `null`: what is free at the start.
        chunk: Size of one fp32 chunk buffer, the unit in which states are read, updated and written; a multiple of
            16 KiB. The results do not depend on it.
    """

    gpu: Bytes | None = field(default=None, validator=optional(gt(Bytes(0))))
    host: Bytes | None = field(default=None, validator=optional(gt(Bytes(0))))
    ssd: Bytes | None = field(default=None, validator=optional(gt(Bytes(0))))
    chunk: Bytes = field(default=Bytes(64 * 2**20), validator=gt(Bytes(0)))

    def __attrs_post_init__(self) -> None:
        if self.chunk % CHUNK_UNIT_BYTES:
            raise ValueError(f"'chunk' must be a multiple of {CHUNK_UNIT_BYTES} bytes, which {self.chunk} is not")


@frozen(kw_only=True)
class BackendChoice:
    """A backend by name, and an instance of its own config class."""

    kind: Kind
    name: str
    settings: object


@frozen(kw_only=True)
class Config:
    """Everything that a config file says, checked. Paths are absolute."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    memory: MemoryConfig
    storage: BackendChoice
    optimizer: BackendChoice
    planner: BackendChoice
    profiler: BackendChoice
