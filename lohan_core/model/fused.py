"""Layers whose operators between matrix products and attention are fused by Inductor.

[Note: why not torch.compile] It would compile the layer as one: no product would reach the dispatcher for a plan to
keep what it returns (:mod:`lohan_core.model.keep`), and dynamo does not work under a dispatch mode. Here the layer is
captured as aten operators once (``make_fx``, no dynamo), split into anchors and segments
(:mod:`lohan_core.model.segments`), and each segment is compiled once, forward and backward, whatever a plan keeps. What
runs later is straight-line Python: an operator, a segment, an operator.

[Note: same bits] Nothing is compiled or tuned after :func:`compile_captured`, and Inductor's deterministic mode lets no
measured time choose between kernels that sum in different orders. A segment returns new memory and writes into nothing
it was given, in backward neither (no donated buffers): what is kept of an anchor stays what it was. Segments are hidden
from dispatch modes: what torch runs around compiled code (copies of gradients to other strides) counts for nothing.

[Note: alignment] Segments are compiled for inputs at addresses that are multiples of 16 bytes. On a GPU, Inductor's own
wrapper copies those that are not, each time, with the same result; what backward needs of them is the copy. On a CPU it
makes no difference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

from lohan_core.model.rng import preserved, seeded_state, set_random_state
from lohan_core.model.segments import NotFusable, split, without_mutation

__all__ = ["NotFusable", "capture", "compile_captured", "disagreement"]

_INDUCTOR = {"deterministic": True, "triton.cudagraphs": False, "compile_threads": 1}
"""Settings of Inductor. Of compiling processes there would be one for each core, to stay for the rest of the run."""
_FAILURES = (AssertionError, LookupError, RuntimeError, TypeError, ValueError)
"""What a layer's code raises on tensors without values, and Inductor on what it does not know."""

_MOST_SEGMENTS = 24
"""Layers have 4 to 12. One that loops over its tokens would take hours to compile, and gain nothing."""
_SEED = 20
_ROUNDING_ONLY = 0.25
"""A gradient that moves by this much of itself as inputs change in their last bits says nothing."""


def capture(function: Callable[..., Tensor], examples: Sequence[Tensor]) -> GraphModule:
    """Write down the operators that a function's forward runs in training, and split them: nothing is compiled yet.

    Args:
        function: takes tensors, the hidden state first, and returns one. What else it computes with is captured:
            settings as they are, other tensors (buffers) by reference.
        examples: tensors of the kinds that it will be called with: shapes, strides, types, device, and which require
            grad. Their values are not looked at, and they may be fake.

    Returns:
        Its operators, and its segments as submodules, each a ``GraphModule`` that returns a tuple.

    Raises:
        NotFusable: the function looks at values, or writes into its inputs.
    """
    captured = _captured(function, examples)
    without_mutation(captured)
    code = split(captured)
    segments = len(code.graph.find_nodes(op="call_module"))
    if segments > _MOST_SEGMENTS:
        raise NotFusable(f"it falls into {segments} segments: it runs some operators over and over")
    return code


def compile_captured(captured: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Compile, forward and backward, what lies between a function's matrix products.

    Call it outside any dispatch mode. It runs the function's forward once on random data, with weights of its own, and
    leaves the random state as it was.

    Args:
        captured: what :func:`capture` returned; its segments are replaced.
        examples: as for that, with memory behind them.

    Returns:
        The function: it runs anchors and compiled segments in order.

    Raises:
        NotFusable: this torch cannot compile it.
    """
    if not hasattr(torch._inductor.config, "deterministic"):  # noqa: SLF001 - has no public name
        raise NotFusable(f"Inductor of torch {torch.__version__} lets measured times decide on the last bits")
    with preserved(examples[0].device), torch.enable_grad():
        inputs = [_random_like(example, 1.0).requires_grad_(example.requires_grad) for example in examples]
        try:
            _Compiler(captured).run(*inputs)
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            raise NotFusable(f"it cannot be compiled: {_in_a_line(error)}") from error
    run: Callable[..., Tensor] = captured.forward
    return run


def _captured(function: Callable[..., Tensor], examples: Sequence[Tensor]) -> GraphModule:
    mode = detect_fake_mode(list(examples)) or FakeTensorMode(allow_non_fake_inputs=True)
    with _quietly(), mode, torch.enable_grad():
        stand_ins = [
            torch.empty_strided(e.shape, e.stride(), dtype=e.dtype, device=e.device).requires_grad_(e.requires_grad)
            for e in examples
        ]
        try:
            captured = make_fx(function)(*stand_ins)
        except _FAILURES as error:
            raise NotFusable(f"it cannot be captured: {_in_a_line(error)}") from error
    # Not only what is never read: autograd has looked at each output that it saves.
    captured.graph.eliminate_dead_code()
    (output,) = captured.graph.find_nodes(op="output")
    if not isinstance(output.args[0], torch.fx.Node):
        raise NotFusable("it does not return one tensor")
    return captured


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch from printing a traceback of what becomes a reason not to fuse."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _Compiler(Interpreter):
    """Runs anchors, and compiles each segment for the inputs that it really gets.

    Those that were foreseen without memory may differ: not every kernel of attention says truly how its output is
    strided.
    """

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put what is compiled of a segment in its place, and run that."""
        del kwargs
        segment = _Compiled(_compile(self.fetch_attr(target), args))
        setattr(self.module, target, segment)
        return segment(*args)


class _Compiled(nn.Module):
    """A compiled segment, which dispatch modes do not see."""

    def __init__(self, run: Callable[..., Sequence[Tensor]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Tensor) -> Sequence[Tensor]:
        with torch._C._DisableTorchDispatch():  # noqa: SLF001 - has no public name
            return self._run(*inputs)


def _compile(segment: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a segment, forward and backward, and run both: what is done at a first call is done."""
    inputs: list[Any] = [example.detach().requires_grad_(example.requires_grad) for example in examples]
    with _functorch_settings():
        run: Callable[..., Sequence[Tensor]] = torch._inductor.compile(segment, inputs, _INDUCTOR)  # noqa: SLF001 - likewise
        outputs = [output for output in run(*inputs) if output.requires_grad]
        if outputs:
            leaves = [leaf for leaf in inputs if leaf.requires_grad]
            torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs], allow_unused=True)
    return run


def _functorch_settings() -> AbstractContextManager[None]:
    """Compile backward at once and here, for gradients as strided as the outputs, and reuse no memory of forward's."""
    changes = {
        "force_non_lazy_backward_lowering": True,
        "guess_tangent_strides_as_outputs": True,
        "donated_buffer": False,
    }
    settings: AbstractContextManager[None] = torch._functorch.config.patch(changes)  # noqa: SLF001 - likewise
    return settings


def _random_like(stand_in: Tensor, scale: float) -> Tensor:
    """Make a tensor of a kind: of normally distributed numbers, or of zeros, which are an index or a mask as well."""
    # What is expanded has less memory than elements.
    size = 1 + sum((n - 1) * stride for n, stride in zip(stand_in.shape, stand_in.stride(), strict=True))
    memory = torch.zeros(size, dtype=stand_in.dtype, device=stand_in.device)
    if memory.is_floating_point():
        memory.normal_(std=scale)
    return memory.as_strided(stand_in.shape, stand_in.stride())


def disagreement(function: Callable[..., Tensor], fused: Callable[..., Tensor], examples: Sequence[Tensor]) -> float:
    """Compare a function with what was captured or compiled of it, forward and backward, on random data.

    Whoever fuses a layer should refuse one that disagrees by more than rounding: a capture holds what forward computes
    but not a gradient that the layer defines otherwise (a straight-through estimator, a region without grad).

    Args:
        function: as given to :func:`capture`.
        fused: what was made of it.
        examples: likewise; tensors that require no grad (masks, positions) are used as they are.

    Returns:
        The largest difference of output or a gradient, norm over norm; infinite where only one has a gradient or
        something is not finite. A gradient that is rounding only (that of a key's bias) is left out: it is told by its
        own change as the inputs change in their last bits.
    """
    with preserved(examples[0].device):
        set_random_state(examples[0].device, seeded_state(examples[0].device, _SEED))
        tensors = [_drawn(example, 1.0 if example is examples[0] else None) for example in examples]
        nudged = [_nudged(tensor) for tensor in tensors]
        expected, found, beside = _results(function, tensors), _results(fused, tensors), _results(function, nudged)
    differences = [_difference(exact, ours) for exact, ours in zip(expected, found, strict=True)]
    movements = [_difference(exact, moved) for exact, moved in zip(expected, beside, strict=True)]
    output, *gradients = differences
    telling = [
        difference
        for difference, movement in zip(gradients, movements[1:], strict=True)
        if movement < _ROUNDING_ONLY or math.isinf(difference)
    ]
    return max(output, *telling)


def _drawn(example: Tensor, scale: float | None) -> Tensor:
    """Draw weights that a layer does something with: matrices which keep a vector's length, all else around one."""
    if not example.requires_grad:
        return example
    if scale is None and example.dim() < 2:
        drawn = _random_like(example, 0.3).add_(1)
    else:
        drawn = _random_like(example, scale or (example.shape[-1] * example.shape[-2]) ** -0.25)
    return drawn.requires_grad_()


def _nudged(tensor: Tensor) -> Tensor:
    if not tensor.requires_grad:
        return tensor
    values = tensor.detach()
    return (values + values * torch.randn_like(values) * torch.finfo(values.dtype).eps).requires_grad_()


def _results(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Return output and gradients, drawing the same random numbers each time."""
    set_random_state(tensors[0].device, seeded_state(tensors[0].device, _SEED))
    with torch.enable_grad():
        output = function(*tensors)
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        gradients = torch.autograd.grad(output, leaves, torch.randn_like(output), allow_unused=True)
    return [output.detach(), *gradients]


def _difference(exact: Tensor | None, other: Tensor | None) -> float:
    """Return the norm of the difference over the norm; infinite if there is none, or it is no number."""
    if exact is None or other is None:
        return 0.0 if exact is other else math.inf
    size, difference = (float(torch.linalg.vector_norm(t, dtype=torch.float32)) for t in (exact, exact - other))
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size else difference
