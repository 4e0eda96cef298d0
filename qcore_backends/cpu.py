"""The CPU backend: oneDNN's int8 convolutions and linear layers, as every torch wheel has them.

Its contract is what those kernels compute, in float32, each step rounded by itself:

    t = acc * float32(x_scale * w_scale[n]) + bias
    t = fma(other - other_zero_point, other_scale, t)                     a fused residual
    y = clamp(round_half_even(t * float32(1 / y_scale) + y_zero_point))

The scale of the input is passed as 1 and folded into that of the weight: passed by itself, some
kernels multiply in another order. Activations go in as uint8, int8 ones shifted by 128, because the
kernels for int8 activations divide instead of multiplying on some processors.

A processor without VNNI adds pairs of u8 x s8 products in 16 bits, which saturates for weights
beyond
64. There the backend leaves such layers to the reference kernels and says so.
"""

import os
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from qcore import Backend, Numerics, schema_arguments

__all__ = ["CpuBackend"]

_CONV = torch.ops.qcore.qconv.default
_LINEAR = torch.ops.qcore.qlinear.default
_KERNELS = {_CONV: "onednn.qconv", _LINEAR: "onednn.qlinear"}

_PAIR_SAFE = 64
"""Two products of 255 and this weight are 32640, the last multiple that fits 16 bits."""

_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
"""Values of ``ONEDNN_MAX_CPU_ISA`` that keep oneDNN from using VNNI."""


class CpuBackend(Backend):
    """Runs convolutions and linear layers on oneDNN, everything else as it is defined."""

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

    def why_not(self, node: fx.Node) -> str | None:
        if node.target not in _KERNELS:
            return "it has no kernel of its own for this operation"
        given = schema_arguments(node)
        weight = _constant(given["w"])
        scale = _constant(given["w_scale"])
        if weight is None or scale is None:
            return "the weight is computed at run time"
        if given["w_zero_point"] is not None:
            return "the weight has a zero point; oneDNN takes symmetric weights"
        if scale.ndim > 1:
            return "the weight is quantized in groups"
        if _storage(given["x"]) not in (torch.int8, torch.uint8):
            return "the input is no 8-bit tensor"
        if given["y_dtype"] not in (torch.int8, torch.uint8, torch.float32):
            return f"the output is {given['y_dtype']}"
        if given.get("other") is not None:
            if weight.ndim != 4:
                return "oneDNN adds a residual in two dimensions only"
            if given["y_dtype"] == torch.float32:
                return "a residual is added to a float output"
            if _storage(given["other"]) != given["y_dtype"]:
                return "the residual has another storage than the output"
        if not has_vnni() and weight.numel() and int(weight.int().abs().max()) > _PAIR_SAFE:
            return (
                f"without VNNI, products of weights beyond {_PAIR_SAFE} saturate in pairs; use 7 "
                "bits "
                "for the weight"
            )
        return None

    def kernel(self, node: fx.Node) -> str:
        return _KERNELS[cast(torch._ops.OpOverload, node.target)]

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        # All are packed first: a layer asks the operations before it what they store.
        packed = {
            node: (PackedConv if node.target is _CONV else PackedLinear)(schema_arguments(node))
            for node in program.graph.nodes
            if node.name in own
        }
        for node, layer in packed.items():
            name = f"onednn_{node.name}"
            program.add_module(name, layer)
            given = schema_arguments(node)
            inputs = [given["x"]] if given.get("other") is None else [given["x"], given["other"]]
            with program.graph.inserting_before(node):
                new = program.graph.call_module(name, tuple(inputs))
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()
        program.recompile()
        return program


def has_vnni() -> bool:
    """Whether oneDNN multiplies u8 x s8 into 32 bits here; ``ONEDNN_MAX_CPU_ISA`` can forbid it."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_VNNI:
        return False
    flags = torch.backends.cpu.get_cpu_capability()
    if flags in ("AVX512", "AVX2"):
        return bool(torch.cpu._is_vnni_supported()) or bool(torch.cpu._is_amx_tile_supported())
    # Other architectures have no 16-bit pairs to saturate.
    return flags not in ("DEFAULT", "NO AVX")


def _constant(value: Any) -> Tensor | None:
    """The tensor that a node of a program stands for whatever the input is; None if there is
    none."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        root = value.graph.owning_module
        assert root is not None
        owner, _, name = str(value.target).rpartition(".")
        found = getattr(root.get_submodule(owner), name)
        return found if isinstance(found, Tensor) else None
    if value.op == "call_function" and value.target is torch.ops.qcore.unpack.default:
        packed, *options = value.args
        tensor = _constant(packed)
        return None if tensor is None else torch.ops.qcore.unpack.default(tensor, *options)
    return None


def _storage(value: Any) -> torch.dtype | None:
    """Storage dtype of an integer value of a program: of the operation that made it."""
    while isinstance(value, fx.Node) and value.op == "call_function":
        given = schema_arguments(value)
        for key in ("y_dtype", "dtype"):
            if isinstance(given.get(key), torch.dtype):
                return given[key]  # type: ignore[no-any-return]
        if "table" in given:
            table = _constant(given["table"])
            return None if table is None else table.dtype
        if not value.all_input_nodes:
            return None
        value = value.all_input_nodes[0]
    return None


class _Packed(nn.Module):
    """A layer whose weight lies in oneDNN's own order; built once, never changed."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        weight, w_scale = _constant(given["w"]), _constant(given["w_scale"])
        assert weight is not None
        assert w_scale is not None
        bias = None if given["bias"] is None else _constant(given["bias"])
        channels = weight.shape[0]
        scale = torch.tensor(given["x_scale"], dtype=torch.float32) * w_scale
        self.scale = scale.reshape(-1).expand(channels).contiguous()
        if bias is not None and not bias.is_floating_point():
            # A program of another contract, lowered because the caller asked for it.
            bias = bias.float() * self.scale
        self.bias = bias
        self.zeros = torch.zeros(channels, dtype=torch.int32)
        signed = _storage(given["x"]) == torch.int8
        self.shift = signed
        self.x_zero_point = given["x_zero_point"] + (128 if signed else 0)
        self.dtype: torch.dtype = given["y_dtype"]
        self.output = (
            (1.0, 0, torch.float32)
            if self.dtype == torch.float32
            else (given["y_scale"], given["y_zero_point"], self.dtype)
        )
        self.post, self.low, self.high = _post_operation(given)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Packed":
        return self

    def unsigned(self, x: Tensor) -> Tensor:
        """The input as uint8: int8 plus 128, by flipping the sign bit."""
        return x.view(torch.uint8) ^ 128 if self.shift else x

    def clamped(self, y: Tensor) -> Tensor:
        if self.low is None and self.high is None:
            return y
        return y.clamp_(self.low, self.high)


def _post_operation(given: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """The kernel's own activation, and what is left to clamp after it."""
    if given["y_dtype"] == torch.float32:
        return "none", None, None
    info = torch.iinfo(given["y_dtype"])
    low = given["y_min"] if given["y_min"] > info.min else None
    high = given["y_max"] if given["y_max"] < info.max else None
    if low is not None and low == given["y_zero_point"]:
        return "relu", None, high
    return "none", low, high


class PackedConv(_Packed):
    """``qconv`` on oneDNN."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.geometry = tuple(list(given[key]) for key in ("stride", "padding", "dilation"))
        self.groups = given["groups"]
        self.residual = (given["other_scale"], given["other_zero_point"])
        weight = _constant(given["w"])
        assert weight is not None
        self.spatial = weight.ndim - 2
        self.weight = torch.ops.onednn.qconv_prepack(
            weight.contiguous(), self.scale, 1.0, self.x_zero_point, *self.geometry, self.groups
        )

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if x.numel() == 0:
            return x.new_empty(self._empty_shape(x), dtype=self.dtype)
        x = self.unsigned(x)
        weight = (x, 1.0, self.x_zero_point, self.weight, self.scale, self.zeros)
        layer = (*self.geometry, self.groups, *self.output)
        if other is None:
            y = torch.ops.onednn.qconv_pointwise(*weight, self.bias, *layer, self.post, [], "")
        else:
            # The kernel adds into the residual's own memory, which others may still read.
            total = other.clone(memory_format=torch.channels_last)
            y = torch.ops.onednn.qconv2d_pointwise.binary(
                *weight, total, self.bias, *layer, *self.residual, "sum", 1.0, self.post, [], ""
            )
        return self.clamped(y)

    def _empty_shape(self, x: Tensor) -> list[int]:
        stride, padding, dilation = self.geometry
        kernel = self.weight.shape[-self.spatial :]
        sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        return [x.shape[0], self.scale.numel(), *out]


class PackedLinear(_Packed):
    """``qlinear`` on oneDNN."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        weight = _constant(given["w"])
        assert weight is not None
        self.weight = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], self.scale.numel()), dtype=self.dtype)
        y = torch.ops.onednn.qlinear_pointwise(
            self.unsigned(x).contiguous(),
            1.0,
            self.x_zero_point,
            self.weight,
            self.scale,
            self.zeros,
            self.bias,
            *self.output,
            self.post,
            [],
            "",
        )
        return self.clamped(y)
