"""The CUDA backend: which kernel runs what, and where.

Its contract is the default one: int32 sums, one float32 multiplication, one rounding half to even.
All kernels are written in Triton, so nothing is built when qcore is installed. Nothing here imports
Triton before a program is lowered: a machine without it can ask whether the backend is available.
"""

import functools
import operator
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from qcore import Backend, BackendError, schema_arguments

from ..values import constant
from .device import described, interpreted, why_too_old, why_unavailable

if TYPE_CHECKING:
    from .kernel import Kernel

__all__ = ["CudaBackend"]


@functools.cache
def _kernels() -> dict[Any, tuple[type["Kernel"], ...]]:
    """By operation, in the order of preference; the last runs the most."""
    from .convolution import Conv, DepthwiseConv, PointwiseConv
    from .dynamic import DynamicLinear
    from .elementwise import Add, Cat, Dequantize, Mul, Quantize, Requantize, Table
    from .linear import Linear
    from .matmul import MatMul
    from .pooling import AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, MaxPool, Mean
    from .weight_only import DequantizedBlocks, WeightOnlyLinear

    ops = torch.ops.qcore
    return {
        ops.dequantize.default: (Dequantize,),
        ops.dequantize_block.default: (DequantizedBlocks,),
        ops.qadaptive_avg_pool.default: (AdaptiveAvgPool,),
        ops.qadaptive_max_pool.default: (AdaptiveMaxPool,),
        ops.qadd.default: (Add,),
        ops.qavg_pool.default: (AvgPool,),
        ops.qcat.default: (Cat,),
        ops.qconv.default: (PointwiseConv, DepthwiseConv, Conv),
        ops.qlinear.default: (Linear,),
        ops.qlinear_dynamic.default: (DynamicLinear,),
        ops.qmatmul.default: (MatMul,),
        ops.qmax_pool.default: (MaxPool,),
        ops.qmean.default: (Mean,),
        ops.qmul.default: (Mul,),
        ops.qrequantize.default: (Requantize,),
        ops.qtable.default: (Table,),
        ops.quantize.default: (Quantize,),
        torch.ops.aten.linear.default: (WeightOnlyLinear,),
    }


class CudaBackend(Backend):
    """Runs a program on a GPU; in Triton's interpreter on the CPU, to try and to test it."""

    name: ClassVar[str] = "cuda"

    @classmethod
    def unavailable(cls) -> str | None:
        return why_unavailable()

    @classmethod
    def runs_on(cls) -> str | None:
        return described()

    def why_not(self, node: fx.Node) -> str | None:
        candidates = _kernels().get(node.target)
        if candidates is None:
            if node.target is torch.ops.qcore.unpack.default and constant(node) is not None:
                return "kernels hold the constant in their own form; unpacked for others alone"
            return "it has no kernel of its own for this operation"
        given = schema_arguments(node)
        reasons = [kernel.why_not(given) for kernel in candidates]
        return None if None in reasons else reasons[-1]

    def kernel(self, node: fx.Node) -> str:
        linear = torch.ops.aten.linear.default
        if node.target is torch.ops.qcore.dequantize_block.default and all(
            user.target is linear and schema_arguments(user)["weight"] is node
            for user in node.users
        ):
            return "in the kernel of the layer"
        return _chosen(node).label

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        lies_on, device = _devices_of(program)
        # All are made first: a layer asks the operations before it what they store.
        nodes = [node for node in program.graph.nodes if node.name in own]
        kernels = {node: _chosen(node)(schema_arguments(node)) for node in nodes}
        for node, kernel in kernels.items():
            given = schema_arguments(node)
            inputs = [given[key] for key in kernel.inputs if given.get(key) is not None]
            name = f"cuda_{node.name}"
            program.add_module(name, kernel)
            with program.graph.inserting_before(node):
                new = program.graph.call_module(name, tuple(inputs))
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)
        for node in program.graph.nodes:
            if isinstance(node.kwargs.get("device"), torch.device):
                node.update_kwarg("device", device)
        _add_entrance(program, carries=lies_on.type != device.type)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()
        _forget_constants(program)
        program.recompile()
        return program.to(device)


def _chosen(node: fx.Node) -> type["Kernel"]:
    """The kernel of a node that there is one for."""
    given = schema_arguments(node)
    candidates = _kernels()[cast(torch._ops.OpOverload, node.target)]
    return next(kernel for kernel in candidates if kernel.why_not(given) is None)


def _devices_of(program: fx.GraphModule) -> tuple[torch.device, torch.device]:
    """Where a program is, and where it is to run: on its GPU, else on the current one.

    Raises:
        BackendError: it is on several, or on one that is too old.
    """
    found = {t.device for t in (*program.parameters(), *program.buffers())}
    gpus = sorted((d for d in found if d.type == "cuda"), key=str)
    if len(gpus) > 1:
        raise BackendError(
            f"the program lies on {', '.join(map(str, gpus))}; a kernel needs all operands on one "
            f"GPU: move it with q.to({str(gpus[0])!r}) before it is lowered"
        )
    if gpus:
        why = why_too_old(gpus[0].index)
        if why is not None:
            raise BackendError(f"the program lies on {gpus[0]}, but {why}")
        return gpus[0], gpus[0]
    cpu = torch.device("cpu")
    return cpu, cpu if interpreted() else torch.device("cuda", torch.cuda.current_device())


def _forget_constants(program: fx.GraphModule) -> None:
    """Deletes the tensors that no node reads any more: the kernels have their own form of them."""
    read = {str(n.target) for n in program.graph.nodes if n.op in ("get_attr", "call_module")}
    for name in [n for n, _ in (*program.named_buffers(), *program.named_parameters())]:
        parts = name.split(".")
        if read.isdisjoint(".".join(parts[:i]) for i in range(1, len(parts) + 1)):
            delattr(program.get_submodule(".".join(parts[:-1])), parts[-1])


class _Entrance(nn.Module):
    """Refuses inputs on another device than the program's, before a kernel reads their memory, and
    carries those of a program from the CPU to its GPU.

    Args:
        names: of the inputs.
        carries: whether inputs come from the CPU, wherever the program is.
    """

    def __init__(self, names: list[str], carries: bool) -> None:
        super().__init__()
        self.names = names
        self.carries = carries
        # It moves with the program.
        self.register_buffer("place", torch.empty(0), persistent=False)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        here = cast(Tensor, self.place).device
        wanted = torch.device("cpu") if self.carries else here
        for name, value in zip(self.names, inputs, strict=True):
            if isinstance(value, Tensor) and value.device != wanted:
                raise BackendError(
                    f"input {name!r} is on {value.device}, but this program of backend 'cuda' "
                    f"takes inputs on {wanted}, where it was when it was lowered; move the input: "
                    f"{name}.to({str(wanted)!r})"
                )
        return tuple(_moved(value, here) for value in inputs) if self.carries else inputs


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor on another device; anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) else value


def _add_entrance(program: fx.GraphModule, carries: bool) -> None:
    """Puts the inputs of a program through an :class:`_Entrance`, and with ``carries`` its results
    back to the CPU."""
    graph = program.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if inputs:
        program.add_module("cuda_inputs", _Entrance([str(n.target) for n in inputs], carries))
        with graph.inserting_after(inputs[-1]):
            entrance = graph.call_module("cuda_inputs", tuple(inputs))
        # The last is made first, so that they stand in their order.
        for index, node in reversed(list(enumerate(inputs))):
            with graph.inserting_after(entrance):
                item = graph.call_function(operator.getitem, (entrance, index))
            node.replace_all_uses_with(item, lambda user: user is not entrance)
    if carries:
        output = next(node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(output):
            output.args = fx.map_arg(
                output.args,
                lambda node: graph.call_function(_moved, (node, torch.device("cpu"))),
            )
