"""Which kernel of a backend runs each operation of a program, before the program is lowered.

What a backend takes can depend on shapes, dtypes and constants, so the answer is about a program,
not about a model.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import attrs
import torch
from torch import fx, nn

from .backend import Lowered, available_backend, place
from .conversion import ProgramInfo, programs
from .planning import Plan, PlanRow

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = [
    "Placed",
    "PlacedLayer",
    "kernel_plan",
    "operation_kernel",
    "placed",
    "placed_layers",
]

_ops = torch.ops
# A layer is what gives its result, what makes its weight a float one, and what may end it.
_WEIGHT_STEP = _ops.qcore.dequantize_block.default
_LAST_STEPS = (_ops.aten.clamp.default, _ops.aten.add.Tensor)


@attrs.frozen(kw_only=True)
class PlacedLayer:
    """What would run a layer of a program.

    Args:
        program: path of its program.
        name: of the layer.
        kernel: names of the kernels, in the order of execution, with `` + `` between.
        reason: why kernels of the backend do not run all of it; empty if they do.
    """

    program: str
    name: str
    kernel: str
    reason: str


Placed = Mapping[str, tuple[fx.GraphModule, Lowered]]
"""The programs of a model by path, each with what would run its operations."""


def placed(q: nn.Module, backend: str, *, host: "PluginHost | None" = None) -> Placed:
    """What would run the operations of a model's programs; as of :func:`kernel_plan`."""
    engine = available_backend(backend, host)()
    return {path: (p, place(engine, backend, p)) for path, p in programs(q).items()}


def placed_layers(found: Placed) -> list[PlacedLayer]:
    """What would run each layer, in the order of execution."""
    return [
        layer for path, (program, table) in found.items() for layer in _layers(path, program, table)
    ]


def kernel_plan(q: nn.Module, backend: str = "", *, host: "PluginHost | None" = None) -> Plan:
    """The plan of a program with what runs each layer on a backend.

    Nothing is compiled. ``kernel`` of a row names the backend's kernels; ``reference`` and
    ``torch`` stand for what its kernels don't run, and ``reason`` says why.

    Args:
        q: from :func:`qcore.convert` or :func:`qcore.load`.
        backend: its name; by default the one that the program was prepared for.
        host: plug-ins; by default those installed.

    Raises:
        BackendError: the backend is not available here.
        QuantizationError: ``q`` holds no program.
    """
    plan = next(iter(programs(q).values())).meta["qcore"].plan
    assert isinstance(plan, Plan)
    backend = backend or plan.backend
    by_name: dict[str, list[PlacedLayer]] = {}
    for layer in placed_layers(placed(q, backend, host=host)):
        by_name.setdefault(layer.name, []).append(layer)

    def row_of(row: PlanRow) -> PlanRow:
        # A module that is called several times has a layer for each call.
        layers = by_name.get(row.name, [])
        if not row.kernel or not layers:
            return row
        reasons = (row.reason, *(layer.reason for layer in layers))
        return attrs.evolve(
            row,
            kernel=_joined(" + ", (layer.kernel for layer in layers)),
            reason=_joined("; ", filter(None, reasons)),
        )

    return attrs.evolve(plan, rows=tuple(map(row_of, plan.rows)), backend=backend)


def operation_kernel(node: fx.Node, table: Lowered) -> str:
    """What would run an operation: the backend's kernel, ``"reference"`` or ``"torch"``."""
    ours = getattr(node.target, "namespace", "") == "qcore"
    return table.kernels.get(node.name) or ("reference" if ours else "torch")


def _layers(path: str, program: fx.GraphModule, table: Lowered) -> Iterator[PlacedLayer]:
    nodes = {node.name: node for node in program.graph.nodes}
    info: ProgramInfo = program.meta["qcore"]
    for layer in info.layers:
        calls = [] if layer.node not in nodes else _calls(nodes[layer.node])
        reasons = [
            f"{table.backend}: {table.reference[node.name]}"
            for node in calls
            if operation_kernel(node, table) == "reference" and node.name in table.reference
        ]
        if any(node.name in table.may_differ for node in calls):
            reasons.append(f"{table.backend}: it computes another contract than the program's")
        yield PlacedLayer(
            program=path,
            name=layer.name,
            kernel=_joined(" + ", (operation_kernel(node, table) for node in calls)),
            reason=_joined("; ", reasons),
        )


def _calls(node: fx.Node) -> list[fx.Node]:
    """The operations of the layer whose result ``node`` gives, in the order of execution."""
    source = node.args[0] if node.args else None
    if node.target in _LAST_STEPS and isinstance(source, fx.Node) and source.op == "call_function":
        return [*_calls(source), node]
    return [*(n for n in node.all_input_nodes if n.target is _WEIGHT_STEP), node]


def _joined(separator: str, words: Iterable[str]) -> str:
    """Each once, in their order."""
    return separator.join(dict.fromkeys(words))
