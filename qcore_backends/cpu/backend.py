"""The CPU backend: which kernel runs what.

Its contract is what oneDNN's int8 layers compute, in float32, each step rounded by itself:

    t = acc * float32(x_scale * w_scale[n]) + bias
    t = fma(other - other_zero_point, other_scale, t)                     a fused residual
    y = clamp(round_half_even(t * float32(1 / y_scale) + y_zero_point))

A processor without VNNI adds pairs of u8 x s8 products in 16 bits, which saturates for weights
beyond 64. There the backend leaves such layers to the reference kernels and says so.
"""

from typing import ClassVar, cast

import torch
from torch import fx, nn

from qcore import Backend, Numerics, schema_arguments

from ..processor import InputsOnProcessor
from .convolution import PackedConv, PackedConvTranspose, PackedPointwiseConv
from .dynamic import DynamicLinear
from .isa import has_vnni
from .kernel import Kernel
from .linear import PackedLinear
from .matmul import MatMul
from .pooling import GlobalAvgPool, MaxPool
from .quantization import Dequantize, Quantize
from .tables import AddTable, MulTable, RequantizeTable, SubTable, Table
from .weight_only import DequantizedOnce

__all__ = ["CpuBackend"]

_KERNELS: dict[torch._ops.OpOverload, tuple[type[Kernel], ...]] = {
    torch.ops.qcore.qadaptive_avg_pool.default: (GlobalAvgPool,),
    torch.ops.qcore.qadd.default: (AddTable,),
    torch.ops.qcore.qconv.default: (PackedPointwiseConv, PackedConv),
    torch.ops.qcore.qconv_transpose.default: (PackedConvTranspose,),
    torch.ops.qcore.qlinear.default: (PackedLinear,),
    torch.ops.qcore.qlinear_dynamic.default: (DynamicLinear,),
    torch.ops.qcore.qmatmul.default: (MatMul,),
    torch.ops.qcore.qmax_pool.default: (MaxPool,),
    torch.ops.qcore.qmul.default: (MulTable,),
    torch.ops.qcore.qrequantize.default: (RequantizeTable,),
    torch.ops.qcore.qsub.default: (SubTable,),
    torch.ops.qcore.qtable.default: (Table,),
    torch.ops.qcore.quantize.default: (Quantize,),
    torch.ops.qcore.dequantize.default: (Dequantize,),
    torch.ops.qcore.dequantize_block.default: (DequantizedOnce,),
}
"""By operation, in the order of preference; the last runs the most."""


class CpuBackend(Backend):
    """Runs layers on oneDNN, other operations on integers as lookups and exact float32 sums."""

    name: ClassVar[str] = "cpu"
    numerics: ClassVar[Numerics] = Numerics(
        requantization="scale_bias_rescale", bias="float32", zero_point="before"
    )

    @classmethod
    def unavailable(cls) -> str | None:
        if not torch._C._has_mkldnn:
            return (
                "this build of torch has no oneDNN; install a build for x86-64 or aarch64 with it"
            )
        if not hasattr(torch.ops.onednn, "qconv_pointwise"):
            return "this build of torch has no quantized oneDNN operations; use x86-64"
        return None

    @classmethod
    def runs_on(cls) -> str | None:
        if has_vnni():
            return "oneDNN, which adds products of bytes in 32 bits"
        return "oneDNN without VNNI; layers that could saturate run on the reference kernels"

    def why_not(self, node: fx.Node) -> str | None:
        candidates = _KERNELS.get(cast(torch._ops.OpOverload, node.target))
        if candidates is None:
            return "it has no kernel of its own for this operation"
        given = schema_arguments(node)
        reasons = [kernel.why_not(given) for kernel in candidates]
        return None if None in reasons else reasons[-1]

    def kernel(self, node: fx.Node) -> str:
        return _chosen(node).label

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        # All are made first: a layer asks the operations before it what they store.
        kernels: dict[fx.Node, Kernel] = {}
        for node in program.graph.nodes:
            if node.name in own:
                given = schema_arguments(node)
                kernels[node] = kernel = _chosen(node)(given)
                if isinstance(kernel, PackedConv):
                    other = given["other"]
                    kernel.overwrite = other is not given["x"] and _last(other, kernels)
        for node, kernel in kernels.items():
            given = schema_arguments(node)
            inputs = [given[key] for key in kernel.inputs if given.get(key) is not None]
            name = f"cpu_{node.name}"
            program.add_module(name, kernel)
            with program.graph.inserting_before(node):
                new = program.graph.call_module(name, tuple(inputs))
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()
        program.recompile()
        names = [str(node.target) for node in program.graph.nodes if node.op == "placeholder"]
        check = InputsOnProcessor(backend=self.name, names=tuple(names))
        program.register_forward_pre_hook(check, with_kwargs=True)
        return program


def _chosen(node: fx.Node) -> type[Kernel]:
    """The kernel of a node that there is one for."""
    given = schema_arguments(node)
    candidates = _KERNELS[cast(torch._ops.OpOverload, node.target)]
    return next(kernel for kernel in candidates if kernel.why_not(given) is None)


def _last(value: fx.Node | None, kernels: dict[fx.Node, Kernel]) -> bool:
    """Whether the memory of ``value`` is its own, and nobody reads it after these kernels.

    Kernels give new tensors and keep none. Any other operation may give a view of its input, which
    could be read later.
    """
    return value in kernels and all(user in kernels for user in value.users)
