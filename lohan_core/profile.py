"""A profile: measured facts about a machine and a model, and nothing decided.

A profile is plain data that goes to and from JSON (``to_json``, ``from_json``), so that one machine's facts can be
planned with on another.
"""

from __future__ import annotations

import json
from enum import StrEnum

import cattrs
import cattrs.v
from attrs import Factory, asdict, field, frozen
from attrs.validators import deep_iterable, ge, gt, instance_of, optional

from lohan_core.errors import ConfigError
from lohan_core.states import StateVector

__all__ = ["BlockProfile", "Candidate", "Machine", "Profile", "Role"]


class Role(StrEnum):
    """Which part of the model a block is."""

    PRELUDE = "prelude"
    LAYER = "layer"
    POSTLUDE = "postlude"


@frozen(kw_only=True)
class Candidate:
    """An operator whose output may be kept instead of recomputed, for one micro-batch.

    ``index`` is the operator's place in the block's forward, counted over all that reach the dispatcher; plans
    name it by that. It is found again by ``occurrence``, how many of the same ``operator`` ran before it, since other
    micro-batches may have other operators beside it (see [Note: occurrences] in ``model/keep.py``). ``bytes`` counts
    every output (an attention's logsumexp too). ``keeping_seconds`` is what forward takes longer for
    keeping it: the host's time, where a GPU waits for that.
    """

    index: int = field(validator=ge(0))
    operator: str = field(validator=instance_of(str))
    occurrence: int = field(validator=ge(0))
    bytes: int = field(validator=gt(0))
    flops: float = field(validator=ge(0))
    seconds: float = field(validator=ge(0))
    keeping_seconds: float = field(default=0.0, validator=ge(0))

    @property
    def occurs_as(self) -> tuple[str, int]:
        """What it is found by when the block runs."""
        return self.operator, self.occurrence


@frozen(kw_only=True)
class BlockProfile:
    """One block, for one micro-batch.

    ``elements`` is the length of the flat vector that the block owns, padding included; ``borrows`` names the blocks
    whose parameters it computes with too (the prelude, for a head tied to the embedding). ``input_bytes`` is the
    inter-block activation that enters the block. ``seconds`` and ``flops`` are of one forward, ``recomputed_seconds``
    and ``recomputed_flops`` of what of it backward computes again where nothing is kept: all, unless something is known
    not to be needed. ``backward_seconds`` is of one backward without recomputation, with what becomes of its
    gradients on the GPU: twice the forward's, unless measured. ``transient_bytes`` is the peak of GPU memory that one
    backward with recomputation takes beside weights and gradients.
    """

    name: str
    role: Role
    elements: int = field(validator=ge(0))
    input_bytes: int = field(validator=ge(0))
    flops: float = field(validator=ge(0))
    seconds: float = field(validator=ge(0))
    transient_bytes: int = field(validator=ge(0))
    backward_seconds: float = field(default=Factory(lambda self: 2 * self.seconds, takes_self=True), validator=ge(0))
    recomputed_seconds: float = field(default=Factory(lambda self: self.seconds, takes_self=True), validator=ge(0))
    recomputed_flops: float = field(default=Factory(lambda self: self.flops, takes_self=True), validator=ge(0))
    borrows: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = field(default=(), validator=deep_iterable(instance_of(Candidate)))


@frozen(kw_only=True)
class Machine:
    """Rates of the lanes, bytes or floating-point operations or parameters a second, and memory free, in bytes.

    ``ssd_mixed_bytes_per_second`` is the total when reads and writes are in flight together. ``cpu_computes``: there is
    no GPU, so that the ``gpu``, ``h2d``, ``d2h`` and ``cpu`` lanes share one processor; rates are of each lane alone.
    ``memory_bytes_per_second``: what updates share with all that is copied into and out of host memory meanwhile, by
    the GPU and the drives; None: copies do not slow updates down. ``gpu_parameters_per_second``: updates on the GPU of
    states that live there; None: the optimizer has none for it, or there is no GPU. ``ssd_endurance_bytes``: what
    may be written to all drives together in their life; None: not known.
    """

    name: str
    gpu_flops_per_second: float = field(validator=gt(0))
    h2d_bytes_per_second: float = field(validator=gt(0))
    d2h_bytes_per_second: float = field(validator=gt(0))
    ssd_read_bytes_per_second: float = field(validator=gt(0))
    ssd_write_bytes_per_second: float = field(validator=gt(0))
    ssd_mixed_bytes_per_second: float = field(validator=gt(0))
    cpu_parameters_per_second: float = field(validator=gt(0))
    gpu_bytes: int = field(validator=ge(0))
    host_bytes: int = field(validator=ge(0))
    ssd_bytes: int = field(validator=ge(0))
    cpu_computes: bool = False
    memory_bytes_per_second: float | None = field(default=None, validator=optional(gt(0)))
    gpu_parameters_per_second: float | None = field(default=None, validator=optional(gt(0)))
    ssd_endurance_bytes: int | None = field(default=None, validator=optional(gt(0)))


@frozen(kw_only=True)
class Profile:
    """The facts that a planner plans with.

    ``weight_bytes`` is the size of one compute weight (P16: 2, or 4 in fp32); ``states`` are the flat vectors that the
    optimizer reads and writes (P32 and OS32: three of 4 bytes for Adam). ``arguments_bytes`` is what one micro-batch
    has on the GPU from a step's forward to its backward, whatever the plan: its tokens, and what layers are given
    beside the hidden state (masks, positions).
    """

    machine: Machine
    micro_batch_size: int = field(validator=gt(0))
    sequence_length: int = field(validator=gt(0))
    weight_bytes: int = field(validator=gt(0))
    states: tuple[StateVector, ...] = field(validator=deep_iterable(instance_of(StateVector)))
    blocks: tuple[BlockProfile, ...] = field(validator=deep_iterable(instance_of(BlockProfile)))
    arguments_bytes: int = field(default=0, validator=ge(0))

    def to_json(self) -> str:
        """Write the profile as indented JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "profile") -> Profile:
        """Read what :meth:`to_json` wrote; ``source`` names the file in errors.

        Raises:
            ConfigError: not JSON, or not a profile; names the first thing that is wrong.
        """
        converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{source}:{error.lineno}: not JSON: {error.msg}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: not a profile, which is one JSON object; write one with lohan profile -o")
        try:
            return converter.structure(values, cls)
        except cattrs.ClassValidationError as error:
            first, *others = cattrs.transform_error(error, format_exception=_reason)
            more = f" (and {len(others)} more)" if others else ""
            raise ConfigError(f"{source}: {first}{more}") from error


def _reason(error: BaseException, wanted: type | None) -> str:
    """Say what is wrong with a value; of what a class's own validators refuse, in their words."""
    if wanted is None and isinstance(error, ValueError):
        return str(error.args[0])
    return cattrs.v.format_exception(error, wanted)
