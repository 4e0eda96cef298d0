"""One operation of a program with the values that went into it, ready to be computed anew."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, fx

from ..match import schema_arguments
from ..numerics import Numerics, scalar
from .sides import Place, operation_name

__all__ = [
    "Case",
    "Recomputation",
    "Score",
    "accumulator_step",
    "bias_as",
    "has_bias",
    "recomputation",
    "stored",
]


@attrs.frozen(kw_only=True, eq=False)
class Recomputation:
    """The slice of a program between the layers before and one layer, on known values.

    Args:
        nodes: of the slice, in their order; the last one gives the layer's value.
        principal: the operation of Q in it that computes, the last of several; without one the last
            node.
        given: its arguments by the names of its schema, as values.
        values: of every node of the slice before the principal one, and of what goes into it.
    """

    nodes: Sequence[fx.Node]
    principal: fx.Node
    given: Mapping[str, Any]
    values: Mapping[fx.Node, Any]

    @property
    def operation(self) -> str:
        """Name of the principal operation."""
        return operation_name(self.principal)

    def run(self, **changes: Any) -> Tensor:
        """The layer's value by the reference kernels, with other arguments of the operation."""
        target: Any = self.principal.target
        if isinstance(target, torch._ops.OpOverload):
            return self.finish(target(**{**self.given, **changes}))
        return self.finish(_execute(self.principal, self.values))

    def finish(self, value: Any) -> Tensor:
        """The layer's value from that of the principal operation."""
        values = {**self.values, self.principal: value}
        behind = self.nodes[list(self.nodes).index(self.principal) + 1 :]
        for node in behind:
            values[node] = _execute(node, values)
        result: Tensor = values[self.nodes[-1]]
        return result


def recomputation(
    place: Place, known: Mapping[str, Tensor], leaves: Sequence[Any] | None
) -> Recomputation | None:
    """The slice that ends at a layer.

    Args:
        place: the layer.
        known: values by the names of nodes, where the slice begins.
        leaves: the inputs of the program; None if they are not known.

    Returns:
        None where the slice begins at an input that is not known.
    """
    nodes, entries = _slice(place.node, known)
    values: dict[fx.Node, Any] = {}
    inputs = [node for node in place.program.graph.nodes if node.op == "placeholder"]
    for node in entries:
        if node.name in known:
            values[node] = known[node.name]
        elif leaves is None:
            return None
        else:
            values[node] = leaves[inputs.index(node)]
    ours = [n for n in nodes if str(n.target).startswith("qcore.")]
    principal = ours[-1] if ours else nodes[-1]
    with torch.no_grad():
        for node in nodes[: nodes.index(principal)]:
            values[node] = _execute(node, values)
    given = {
        name: fx.map_arg(value, lambda n: values[n])
        for name, value in schema_arguments(principal).items()
    }
    contract = place.contracts.get(principal.name)
    if contract is not None:
        given["numerics"] = contract
        if has_bias(given):
            given["bias"] = bias_as(Numerics.parse(contract).bias, given)
    return Recomputation(nodes=nodes, principal=principal, given=given, values=values)


def accumulator_step(given: Mapping[str, Any]) -> Tensor:
    """What one step of the accumulator is worth: ``float32(sx * sw)``, shaped like ``sw``."""
    w_scale: Tensor = given["w_scale"]
    return scalar(given["x_scale"], w_scale) * w_scale


def has_bias(given: Mapping[str, Any]) -> bool:
    """Whether an operation has a bias that goes with the scales of a weight."""
    return isinstance(given.get("bias"), Tensor) and {"x_scale", "w_scale"} <= given.keys()


def bias_as(kind: str, given: Mapping[str, Any]) -> Tensor:
    """The bias of an operation in the form that a contract holds it in."""
    bias: Tensor = given["bias"]
    if bias.is_floating_point() == (kind == "float32"):
        return bias
    step = accumulator_step(given).reshape(-1)
    step = step.repeat(bias.numel() // max(step.numel(), 1))
    if kind == "float32":
        return bias.float() * step
    return torch.round(bias.double() / step.double()).to(torch.int32)


def stored(place: Place, value: Tensor) -> Tensor:
    """The value of a layer in the dtype in which its program holds it."""
    given = schema_arguments(place.node) if place.node.op == "call_function" else {}
    for key in ("y_dtype", "dtype"):
        if isinstance(given.get(key), torch.dtype):
            return value.to(given[key])
    table = given.get("table")
    return value if not isinstance(table, fx.Node) else value.to(_execute(table, {}).dtype)


def _slice(last: fx.Node, known: Mapping[str, Tensor]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes that lead to a node, in their order, and the known ones and inputs before them."""
    inside, entries, pending = {last}, set(), list(last.all_input_nodes)
    while pending:
        node = pending.pop()
        if node in inside or node in entries:
            continue
        if node.name in known or node.op == "placeholder":
            entries.add(node)
            continue
        inside.add(node)
        pending.extend(node.all_input_nodes)
    return [n for n in last.graph.nodes if n in inside], [
        n for n in last.graph.nodes if n in entries
    ]


def _execute(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    module = node.graph.owning_module
    assert module is not None
    if node.op == "get_attr":
        owner, _, field = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), field)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    called: Any = (
        module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    )
    return called(*args, **kwargs)


@attrs.frozen(kw_only=True)
class Score:
    """How well a prediction fits.

    Args:
        explained: values that differ and are as predicted.
        refuted: values that are equal and should not be.
        differing: values that differ.
    """

    explained: int
    refuted: int
    differing: int

    @property
    def full(self) -> bool:
        """Whether every value is as predicted."""
        return self.explained == self.differing and not self.refuted


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """An operation that gives other values for the same inputs.

    Args:
        right: the side that the other is measured by, as data.
        other: the data of the suspect; None if there are none.
        expected: what the right side gave, on the suspect's lattice.
        got: what the suspect gave.
        floats: whether these are real values, not integers.
        reference, suspect: how the sides are called, ``"A"`` or ``"B"``.
    """

    right: Recomputation
    other: Recomputation | None
    expected: Tensor
    got: Tensor
    floats: bool
    reference: str
    suspect: str

    @property
    def given(self) -> Mapping[str, Any]:
        """Arguments of the right side's operation."""
        return self.right.given

    @property
    def operation(self) -> str:
        """Name of the right side's operation."""
        return self.right.operation

    def score(self, predict: Callable[[], Tensor]) -> Score:
        """How well what ``predict`` gives fits what the suspect gave."""
        with torch.no_grad():
            predicted = predict().to(torch.float64)
        got, expected = self.got.to(torch.float64), self.expected.to(torch.float64)
        different = got != expected
        hit = (predicted == got) | (predicted.isnan() & got.isnan())
        return Score(
            explained=int((different & hit).sum()),
            refuted=int((~different & ~hit).sum()),
            differing=int(different.sum()),
        )
