"""Splitting a captured layer into operators that run as they are and segments between them that a compiler fuses.

[Note: anchors and segments] A plan names a layer's matrix products and attention by their order of occurrence, so these
stay operators of their own, run in the order of the eager layer: *anchors*. So does all that a compiler would not fuse
(gathers, sorts) or must not (draws of random numbers). The rest, pointwise operators and reductions mostly, goes into
*segments*. Nothing runs before an anchor or the output wants it; then all that is missing becomes one segment. That
keeps the anchors' order, lets no value wait longer than it must, and puts what depends on weights alone (Gemma's one
more than the weight) where it is used.

[Note: views] A view belongs nowhere: whoever reads one, a segment or an anchor, takes what it is a view of and makes it
anew. So no output of a segment shares memory with an input, autograd of an anchor's views stays torch's own, and a
rotary embedding's slices are differentiated within its segment.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator
from enum import Enum, auto

import torch
from attrs import define, field
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

__all__ = ["NotFusable", "split", "without_mutation"]


class NotFusable(ValueError):  # noqa: N818 - no mistake of anyone's: the layer runs as it is instead
    """A layer that cannot be captured, or whose capture would not do the same. The message says why, in a line."""


class _Kind(Enum):
    INPUT = auto()
    VIEW = auto()
    ANCHOR = auto()
    SEGMENT = auto()


_FUSED = frozenset(
    {
        "_fused_rms_norm",
        "_log_softmax",
        "_safe_softmax",
        "_softmax",
        "_to_copy",
        "all",
        "amax",
        "amin",
        "any",
        "arange",
        "cat",
        "clone",
        "constant_pad_nd",
        "full",
        "full_like",
        "linalg_vector_norm",
        "logsumexp",
        "mean",
        "native_layer_norm",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "repeat",
        "scalar_tensor",
        "stack",
        "std",
        "sum",
        "tril",
        "triu",
        "var",
        "var_mean",
        "zeros",
        "zeros_like",
    }
)
"""What Inductor fuses beside the operators that torch tags as pointwise."""


def split(captured: GraphModule) -> GraphModule:
    """Split a captured function into anchors and segments.

    Args:
        captured: a graph of aten operators that writes into nothing that is read elsewhere: :func:`without_mutation`.

    Returns:
        The same function. It calls each segment as a submodule, which returns a tuple.
    """
    kinds: dict[Node, _Kind] = {}
    device = _values(next(iter(captured.graph.nodes)))[0].device
    for node in captured.graph.nodes:
        kinds[node] = _kind(node, kinds, device)
    return _Splitter(captured, kinds).run()


def _kind(node: Node, kinds: dict[Node, _Kind], device: torch.device) -> _Kind:
    if node.op in {"placeholder", "get_attr"}:
        return _Kind.INPUT
    if node.op == "output":
        return _Kind.ANCHOR
    if node.target is operator.getitem:  # shares the fate of what returned several values
        return kinds[node.all_input_nodes[0]]
    target = node.target
    if not isinstance(target, OpOverload):
        raise NotFusable(f"{target} is made of other operators")
    tensors = [*_values(node), *(tensor for given in node.all_input_nodes for tensor in _values(given))]
    if target.namespace != "aten" or any(tensor.is_complex() for tensor in tensors):
        return _Kind.ANCHOR
    if _is_view(target):
        return _Kind.VIEW
    fusable = (
        (torch.Tag.pointwise in target.tags or target.overloadpacket.__name__ in _FUSED)
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable  # noqa: SLF001 - torch offers no public way to a schema
        and all(tensor.device == device for tensor in tensors)
    )
    return _Kind.SEGMENT if fusable else _Kind.ANCHOR


def _is_view(target: OpOverload) -> bool:
    schema = target._schema  # noqa: SLF001 - as above
    aliases = any(result.alias_info is not None for result in schema.returns)
    return (aliases and not schema.is_mutable) or target is torch.ops.aten._unsafe_view.default  # noqa: SLF001


def _values(node: Node) -> list[Tensor]:
    return [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]


@define(eq=False)
class _Splitter:
    _captured: GraphModule
    _kinds: dict[Node, _Kind]
    _graph: Graph = field(factory=Graph)
    _made: dict[Node, Node] = field(factory=dict)
    """What has been made so far, by the node of the captured graph."""
    _segments: dict[str, GraphModule] = field(factory=dict)

    def run(self) -> GraphModule:
        for node in self._captured.graph.nodes:
            if self._kinds[node] is _Kind.INPUT:
                self._made[node] = self._graph.node_copy(node)
            elif self._kinds[node] is _Kind.ANCHOR:  # so is the output
                self._provide(node)
                self._made[node] = self._graph.node_copy(node, self._take)
        constants = {
            str(node.target): operator.attrgetter(str(node.target))(self._captured)
            for node in self._graph.find_nodes(op="get_attr")
        }
        return GraphModule({**self._segments, **constants}, self._graph)

    def _take(self, node: Node) -> Node:
        """Give an anchor one of its inputs, through views that are made here if they were not before."""
        if node not in self._made:
            self._made[node] = self._graph.node_copy(node, self._take)
        return self._made[node]

    def _provide(self, anchor: Node) -> None:
        """Make a segment of all that is missing before an anchor can run."""
        missing: set[Node] = set()
        ahead = list(anchor.all_input_nodes)
        while ahead:
            node = ahead.pop()
            if node in missing or node in self._made:
                continue
            missing.add(node)
            ahead.extend(node.all_input_nodes)
            ahead.extend(user for user in node.users if user.target is operator.getitem)
        members = [node for node in self._captured.graph.nodes if node in missing]
        members = [node for node in members if self._kinds[node] is _Kind.SEGMENT]
        if members:
            self._add_segment(members)

    def _add_segment(self, members: list[Node]) -> None:
        within = dict.fromkeys(members)
        inputs = list(dict.fromkeys(base for node in members for base in self._bases(node, within)))
        outputs = [node for node in members if self._is_wanted_outside(node, within)]
        graph, inside = Graph(), dict[Node, Node]()
        for node in inputs:
            inside[node] = graph.placeholder(node.name)

        def take(node: Node) -> Node:
            if node not in inside:
                inside[node] = graph.node_copy(node, take)
            return inside[node]

        for node in members:
            take(node)
        graph.output(tuple(inside[node] for node in outputs))
        name = f"segment_{len(self._segments)}"
        self._segments[name] = GraphModule({}, graph)
        call = self._graph.call_module(name, tuple(self._made[node] for node in inputs))
        for position, node in enumerate(outputs):
            self._made[node] = self._graph.call_function(operator.getitem, (call, position))

    def _bases(self, node: Node, within: Container[Node]) -> Iterator[Node]:
        """Yield what a segment's node needs from outside: not views, but what they are views of."""
        for given in node.all_input_nodes:
            if self._kinds[given] is _Kind.VIEW:
                yield from self._bases(given, within)
            elif given not in within:
                yield given

    def _is_wanted_outside(self, node: Node, within: Container[Node]) -> bool:
        return any(
            self._is_wanted_outside(user, within) if self._kinds[user] is _Kind.VIEW else user not in within
            for user in node.users
        )


def without_mutation(captured: GraphModule) -> None:
    """Replace operators that write in place by those that return what would have been written.

    That takes a value which the function made itself and whose other readers all come before. Draws of random numbers
    stay in place, into new memory that nobody else reads: their twins might draw others.

    Raises:
        NotFusable: the function writes into something else.
    """
    order = {node: place for place, node in enumerate(captured.graph.nodes)}
    for node, position in order.items():
        target = node.target
        if not isinstance(target, OpOverload) or not target._schema.is_mutable:  # noqa: SLF001 - as above
            continue
        written = node.args[0] if node.args else None
        others = [user for user in written.users if user is not node] if isinstance(written, Node) else []
        read_before = all(order[user] < position and not _aliases(user) for user in others)
        if not isinstance(written, Node) or written.op != "call_function" or _aliases(written) or not read_before:
            raise NotFusable(f"{target} writes into a value that may be read elsewhere")
        if torch.Tag.nondeterministic_seeded not in target.tags:
            node.target = _twin(node, target)
        elif others or not str(written.target).startswith(("aten.empty", "aten.new_empty")):
            raise NotFusable(f"{target} draws into memory that holds a value")
    captured.recompile()


def _aliases(node: Node) -> bool:
    """Tell whether a node returns what may share memory with its inputs."""
    if node.target is operator.getitem:
        return _aliases(node.all_input_nodes[0])
    return isinstance(node.target, OpOverload) and _is_view(node.target)


def _twin(node: Node, target: OpOverload) -> OpOverload:
    """Find the operator that returns what this one writes, of the same shape, strides and type."""
    packet = getattr(torch.ops.aten, target.overloadpacket.__name__.removesuffix("_"), None)
    twin = getattr(packet, target._overloadname, None)  # noqa: SLF001 - likewise
    written = node.meta["val"]
    if isinstance(twin, OpOverload) and not twin._schema.is_mutable and isinstance(written, FakeTensor):  # noqa: SLF001
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda given: given.meta["val"])
        with written.fake_mode:
            made = twin(*args, **kwargs)
        if (made.dtype, made.shape, made.stride()) == (written.dtype, written.shape, written.stride()):
            return twin
    raise NotFusable(f"{target} writes in place what no other operator returns")
