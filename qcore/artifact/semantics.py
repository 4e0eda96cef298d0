"""What the arguments of an operation of Q must be for its integers to mean something.

A file whose checksums fit can still have been written by anybody. So before a program is believed,
every scale is finite and positive, every zero point is an integer of its tensor's dtype, every
clamp is a range, weights, scales and biases have shapes that belong together, and packed weights
have as many bytes as their columns need.

The rules go by the names of the arguments, which all operations of Q share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtifactError, QcoreError
from ..numerics import Numerics
from ..ops.recurrent import CELLS, STATES
from .dtypes import name_of_dtype
from .program_reading import CheckedCall
from .propagation import Operand

__all__ = ["check_call", "check_scale"]

_OPERANDS = (torch.int8, torch.uint8, torch.int16)
_RESULTS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.float32)
_WEIGHTS = (torch.int8, torch.uint8, torch.int16)
_POSITIVE = ("stride", "dilation", "kernel", "groups", "block", "output_size", "columns")
_NOT_NEGATIVE = ("padding", "output_padding")
_FLOAT32_MAX = torch.finfo(torch.float32).max
_FLOAT32_MIN = torch.finfo(torch.float32).smallest_normal


def check_call(call: CheckedCall, arguments: Mapping[str, Any]) -> None:
    """Checks one call of an operation of Q; those of torch have no such rules.

    Args:
        call: the call.
        arguments: by name, with an :class:`Operand` for each node.

    Raises:
        ArtifactError: an argument breaks a rule; the message names it.
    """
    if not call.op.of_qcore:
        return
    try:
        _check_literals(call, arguments)
        _check_numbers(arguments)
        _check_output(arguments)
        name = call.op.name.split(".")[1]
        for rule in (*_ZERO_POINTS.get(name, ()), *_RULES.get(name, ())):
            rule(arguments)
    except ArtifactError as error:
        raise ArtifactError(f"{call.where}: {call.op.name}: {error}") from None


def check_scale(scale: float, name: str = "scale") -> None:
    """Refuses a scale that is no positive, finite, normal float32 number.

    Raises:
        ArtifactError: it is not.
    """
    if not _FLOAT32_MIN <= scale <= _FLOAT32_MAX:
        raise ArtifactError(f"{name}={scale!r}; a scale is a positive, finite float32 number")


def _check_literals(call: CheckedCall, arguments: Mapping[str, Any]) -> None:
    """Refuses a scale, a size or any other setting that is computed: only tensors may be."""
    assert call.op.schema is not None
    for argument in call.op.schema.arguments:
        value = arguments[argument.name]
        items = value if isinstance(value, list | tuple) else [value]
        if "Tensor" not in str(argument.type) and any(isinstance(i, Operand) for i in items):
            raise ArtifactError(f"{argument.name} is computed by the program; use a number")


def _check_numbers(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if isinstance(value, float | int) and (name == "scale" or name.endswith("_scale")):
            check_scale(value, name)
        elif name == "scales":
            for i, scale in enumerate(value):
                check_scale(scale, f"scales[{i}]")
        elif name in _POSITIVE and any(n < 1 for n in _numbers(value)):
            raise ArtifactError(f"{name}={value}; use positive numbers")
        elif name in _NOT_NEGATIVE and any(n < 0 for n in _numbers(value)):
            raise ArtifactError(f"{name}={value}; use numbers that are not negative")
        elif name in ("numerics", "rounding"):
            _check_contract(name, value)


def _numbers(value: Any) -> Sequence[int]:
    return value if isinstance(value, list | tuple) else [value]


def _check_contract(name: str, value: str) -> None:
    try:
        if name == "numerics":
            Numerics.parse(value)
        else:
            Numerics(rounding=value)
    except QcoreError as error:
        raise ArtifactError(str(error)) from None


def _check_output(arguments: Mapping[str, Any]) -> None:
    """Qparams and clamp of the result; ignored by the operation where it gives float."""
    if "y_dtype" not in arguments:
        return
    dtype = arguments["y_dtype"]
    if dtype not in _RESULTS:
        raise ArtifactError(f"y_dtype={name_of_dtype(dtype)}; use one of {_names(_RESULTS)}")
    if dtype == torch.float32:
        return
    _check_range(arguments["y_min"], arguments["y_max"], dtype, "y_min", "y_max")
    _check_zero_point(arguments["y_zero_point"], dtype, "y_zero_point")


def _check_range(low: int, high: int, dtype: torch.dtype, low_name: str, high_name: str) -> None:
    info = torch.iinfo(dtype)
    if not info.min <= low <= high <= info.max:
        raise ArtifactError(
            f"{low_name}={low}, {high_name}={high}; they must ascend and lie in "
            f"{info.min}..{info.max}, what {name_of_dtype(dtype)} holds"
        )


def _check_zero_point(zero_point: int, dtype: torch.dtype, name: str) -> None:
    info = torch.iinfo(dtype)
    if not info.min <= zero_point <= info.max:
        raise ArtifactError(
            f"{name}={zero_point} is not in {info.min}..{info.max}, what {name_of_dtype(dtype)} "
            "holds"
        )


_Rule = Callable[[Mapping[str, Any]], None]


def _operand(name: str, zero_point: str) -> _Rule:
    """The rule that a tensor holds integers and that its zero point is one of them."""

    def rule(arguments: Mapping[str, Any]) -> None:
        if arguments[name] is not None:
            _check_operand(arguments[name], name, arguments[zero_point], zero_point)

    return rule


def _check_operand(operand: Operand, name: str, zero_point: int, zero_point_name: str) -> None:
    tensor = operand.tensor
    if tensor is not None:
        if tensor.dtype not in _OPERANDS:
            raise ArtifactError(
                f"{name} is {name_of_dtype(tensor.dtype)}; use one of {_names(_OPERANDS)}"
            )
        _check_zero_point(zero_point, tensor.dtype, zero_point_name)


def _cat(arguments: Mapping[str, Any]) -> None:
    xs, scales, zero_points = (arguments[k] for k in ("xs", "scales", "zero_points"))
    if isinstance(xs, Operand) or not len(xs) == len(scales) == len(zero_points) > 0:
        raise ArtifactError("xs, scales and zero_points must be lists of one length, not empty")
    for i, x in enumerate(xs):
        _check_operand(x, f"xs[{i}]", zero_points[i], f"zero_points[{i}]")


def _quantize(arguments: Mapping[str, Any]) -> None:
    dtype = arguments["dtype"]
    if dtype not in _RESULTS or dtype == torch.float32:
        raise ArtifactError(f"dtype={name_of_dtype(dtype)}; use int8, uint8, int16 or int32")
    low, high, zero_point = (arguments[k] for k in ("quant_min", "quant_max", "zero_point"))
    _check_range(low, high, dtype, "quant_min", "quant_max")
    if not low <= zero_point <= high:
        raise ArtifactError(f"zero_point={zero_point} is not in {low}..{high}")


def _dequantize(arguments: Mapping[str, Any]) -> None:
    tensor = arguments["q"].tensor
    if tensor is not None:
        if tensor.dtype not in (*_OPERANDS, torch.int32):
            raise ArtifactError(f"q is {name_of_dtype(tensor.dtype)}; use integers of 8 to 32 bits")
        _check_zero_point(arguments["zero_point"], tensor.dtype, "zero_point")


def _dequantize_block(arguments: Mapping[str, Any]) -> None:
    q, block = arguments["q"].tensor, arguments["block"]
    if q is None:
        return
    if len(block) != q.ndim or any(n % b for n, b in zip(q.shape, block, strict=True)):
        raise ArtifactError(f"block {block} does not tile q of shape {list(q.shape)}")
    blocks = q.numel() // math.prod(block)
    scale = _stored(arguments, "scale")
    if scale.numel() != blocks:
        raise ArtifactError(f"scale has {scale.numel()} values for {blocks} blocks")
    _check_scales(scale, "scale")
    _check_zero_points(arguments, "zero_point", like=scale, q=q)


def _unpack(arguments: Mapping[str, Any]) -> None:
    bits, columns, packed = arguments["bits"], arguments["columns"], arguments["packed"].tensor
    if bits not in (1, 2, 4):
        raise ArtifactError(f"bits={bits}; use 1, 2 or 4")
    if packed is None:
        return
    if packed.dtype != torch.uint8 or not packed.ndim:
        raise ArtifactError(
            f"packed is {name_of_dtype(packed.dtype)} {list(packed.shape)}; use uint8 [..., bytes]"
        )
    needed = -(-columns * bits // 8)
    if packed.shape[-1] != needed:
        raise ArtifactError(
            f"{columns} columns of {bits} bits take {needed} bytes a row, packed has "
            f"{packed.shape[-1]}"
        )


def _table(arguments: Mapping[str, Any]) -> None:
    table, offset = _stored(arguments, "table"), arguments["offset"]
    x = arguments["x"].tensor
    if table.dtype not in _RESULTS or table.ndim != 1 or not 1 <= table.numel() <= 2**16:
        raise ArtifactError(
            f"table is {name_of_dtype(table.dtype)} {list(table.shape)}; use integers [1 to 65536]"
        )
    if x is not None:
        if x.dtype not in _OPERANDS:
            raise ArtifactError(f"x is {name_of_dtype(x.dtype)}; use one of {_names(_OPERANDS)}")
        _check_range(offset, offset + table.numel() - 1, x.dtype, "offset", "end of the table")


def _embedding(arguments: Mapping[str, Any]) -> None:
    bits, columns, index = arguments["bits"], arguments["columns"], arguments["index"].tensor
    w, scale = _stored(arguments, "w"), _stored(arguments, "w_scale")
    if bits not in (1, 2, 4, 8):
        raise ArtifactError(f"bits={bits}; use 1, 2, 4 or 8")
    if index is not None and index.dtype not in (torch.int32, torch.int64):
        raise ArtifactError(f"index is {name_of_dtype(index.dtype)}; use int32 or int64")
    width = columns if bits == 8 else -(-columns * bits // 8)
    allowed = _WEIGHTS if bits == 8 else (torch.uint8,)
    if w.dtype not in allowed or w.ndim != 2 or w.shape[1] != width:
        raise ArtifactError(
            f"w is {name_of_dtype(w.dtype)} {list(w.shape)}; use {_names(allowed)} [rows, {width}] "
            f"for {columns} columns of {bits} bits"
        )
    shape = tuple(scale.shape)
    groups = shape[1] if len(shape) == 2 and shape[0] == w.shape[0] else 0
    if shape not in ((), (w.shape[0],)) and (groups < 1 or columns % groups):
        raise ArtifactError(
            f"w_scale is {list(shape)} for {w.shape[0]} rows of {columns} columns; they don't "
            "belong together"
        )
    _check_scales(scale, "w_scale")
    signed = torch.empty(0, dtype=torch.int8 if arguments["signed"] else torch.uint8)
    _check_zero_points(arguments, "w_zero_point", like=scale, q=w if bits == 8 else signed)


def _embedding_bag(arguments: Mapping[str, Any]) -> None:
    _embedding(arguments)
    if arguments["mode"] not in ("sum", "mean", "max"):
        raise ArtifactError(f"mode={arguments['mode']!r}; use 'sum', 'mean' or 'max'")


def _conv(arguments: Mapping[str, Any]) -> None:
    w, groups = _weight(arguments, (3, 4, 5)), arguments["groups"]
    _check_geometry(arguments, w, ("stride", "padding", "dilation"))
    if w.shape[0] % groups:
        raise ArtifactError(
            f"groups={groups} does not divide the {w.shape[0]} output channels of w"
        )
    _check_channels(arguments, w.shape[1] * groups, dim=1)
    _check_weight_scale(arguments, w, channels=w.shape[0], outputs=w.shape[0])


def _conv_transpose(arguments: Mapping[str, Any]) -> None:
    w, groups = _weight(arguments, (3, 4, 5)), arguments["groups"]
    _check_geometry(arguments, w, ("stride", "padding", "output_padding", "dilation"))
    if w.shape[0] % groups:
        raise ArtifactError(f"groups={groups} does not divide the {w.shape[0]} input channels of w")
    _check_channels(arguments, w.shape[0], dim=1)
    _check_weight_scale(arguments, w, channels=w.shape[1], outputs=w.shape[1] * groups)


def _linear(arguments: Mapping[str, Any]) -> None:
    w = _weight(arguments, (2,))
    _check_channels(arguments, w.shape[1], dim=-1)
    _check_weight_scale(arguments, w, channels=w.shape[0], outputs=w.shape[0], grouped=True)


def _linear_dynamic(arguments: Mapping[str, Any]) -> None:
    low, high, x = arguments["quant_min"], arguments["quant_max"], arguments["x"].tensor
    _check_range(low, high, torch.int16, "quant_min", "quant_max")
    if not low < 0 < high:
        raise ArtifactError(
            f"quant_min={low}, quant_max={high}; a symmetric range has 0 between them"
        )
    if x is not None and x.dtype != torch.float32:
        raise ArtifactError(f"x is {name_of_dtype(x.dtype)}; use float32")
    _linear(arguments)
    if arguments["bias"] is not None and _stored(arguments, "bias").dtype != torch.float32:
        raise ArtifactError("bias is int32; where each token has its own step it is float32")


def _recurrent(arguments: Mapping[str, Any]) -> None:
    cell, state = arguments["cell"], arguments["state"]
    if cell not in CELLS or state not in STATES:
        raise ArtifactError(
            f"cell={cell!r}, state={state!r}; use one of {', '.join(CELLS)} and one of "
            f"{', '.join(STATES)}"
        )
    low, high = arguments["quant_min"], arguments["quant_max"]
    if state != "float":
        _check_range(low, high, torch.int16, "quant_min", "quant_max")
    if state == "token" and not low < 0 < high:
        raise ArtifactError(
            f"quant_min={low}, quant_max={high}; a symmetric range has 0 between them"
        )
    if state == "tensor" and not low <= arguments["h_zero_point"] <= high:
        raise ArtifactError(f"h_zero_point={arguments['h_zero_point']} is not in {low}..{high}")
    for name in ("x", "h", "c"):
        tensor = None if arguments[name] is None else arguments[name].tensor
        if tensor is not None and tensor.dtype != torch.float32:
            raise ArtifactError(f"{name} is {name_of_dtype(tensor.dtype)}; use float32")
    w = _weight(arguments, (2,))
    _check_weight_scale(arguments, w, channels=w.shape[0], outputs=w.shape[0], grouped=True)
    if arguments["bias"] is not None and _stored(arguments, "bias").dtype != torch.float32:
        raise ArtifactError("bias is int32; that of a recurrence is float32")


def _weight(arguments: Mapping[str, Any], dimensions: tuple[int, ...]) -> Tensor:
    w: Tensor | None = arguments["w"].tensor
    if w is None or w.dtype not in _WEIGHTS or w.ndim not in dimensions or not w.numel():
        got = "unknown" if w is None else f"{name_of_dtype(w.dtype)} {list(w.shape)}"
        raise ArtifactError(
            f"w is {got}; use {_names(_WEIGHTS)} of {' or '.join(map(str, dimensions))} "
            "dimensions, not empty"
        )
    return w


def _check_geometry(arguments: Mapping[str, Any], w: Tensor, names: Sequence[str]) -> None:
    for name in names:
        if len(arguments[name]) != w.ndim - 2:
            raise ArtifactError(f"{name}={arguments[name]}; w has {w.ndim - 2} spatial dimensions")


def _check_channels(arguments: Mapping[str, Any], channels: int, *, dim: int) -> None:
    x = arguments["x"].tensor
    if x is not None and (not -x.ndim <= dim < x.ndim or x.shape[dim] != channels):
        raise ArtifactError(f"x is {list(x.shape)}; w takes {channels} channels in dimension {dim}")


def _check_weight_scale(
    arguments: Mapping[str, Any], w: Tensor, *, channels: int, outputs: int, grouped: bool = False
) -> None:
    """Scale ``[]``, ``[channels]`` or ``[channels, groups]``, zero points like it, bias
    ``[outputs]``."""
    scale = _stored(arguments, "w_scale")
    shape = tuple(scale.shape)
    groups = shape[1] if grouped and len(shape) == 2 and shape[0] == channels else 0
    if shape not in ((), (channels,)) and (groups < 1 or w.shape[1] % groups):
        raise ArtifactError(
            f"w_scale is {list(shape)}, w {list(w.shape)}; they don't belong together"
        )
    _check_scales(scale, "w_scale")
    _check_zero_points(arguments, "w_zero_point", like=scale, q=w)
    if arguments["bias"] is None:
        return
    bias = _stored(arguments, "bias")
    if bias.dtype not in (torch.int32, torch.float32) or tuple(bias.shape) != (outputs,):
        raise ArtifactError(
            f"bias is {name_of_dtype(bias.dtype)} {list(bias.shape)}; use int32 or float32 "
            f"[{outputs}]"
        )
    if groups and bias.dtype != torch.float32:
        raise ArtifactError("bias is int32; with groups along the inputs it is float32")
    if not bool(torch.isfinite(bias).all()):
        raise ArtifactError("bias has values that are not finite")


def _stored(arguments: Mapping[str, Any], name: str) -> Tensor:
    operand = arguments[name]
    if not isinstance(operand, Operand) or operand.stored is None:
        raise ArtifactError(f"{name} is computed by the program; use a tensor of the artifact")
    return operand.stored


def _check_scales(scale: Tensor, name: str) -> None:
    if scale.dtype != torch.float32:
        raise ArtifactError(f"{name} is {name_of_dtype(scale.dtype)}; use float32")
    for value in (scale.min(), scale.max()) if scale.numel() else ():
        check_scale(float(value), name)


def _check_zero_points(arguments: Mapping[str, Any], name: str, *, like: Tensor, q: Tensor) -> None:
    if arguments[name] is None:
        return
    zero_point = _stored(arguments, name)
    if (
        zero_point.dtype != torch.int32
        or zero_point.numel() != like.numel()
        or (zero_point.ndim != like.ndim)
    ):
        raise ArtifactError(
            f"{name} is {name_of_dtype(zero_point.dtype)} {list(zero_point.shape)}; use int32 "
            f"{list(like.shape)}"
        )
    for value in (zero_point.min(), zero_point.max()) if zero_point.numel() else ():
        _check_zero_point(int(value), q.dtype, name)


def _pool(arguments: Mapping[str, Any]) -> None:
    options = [arguments[k] for k in ("kernel", "stride", "padding", "dilation") if k in arguments]
    if not 1 <= len(options[0]) <= 3 or any(len(option) != len(options[0]) for option in options):
        raise ArtifactError("kernel, stride, padding and dilation must have one length of 1 to 3")
    divisor = arguments.get("divisor_override")
    if divisor is not None and divisor < 1:
        raise ArtifactError(f"divisor_override={divisor}; use a positive number")


def _adaptive(arguments: Mapping[str, Any]) -> None:
    if not 1 <= len(arguments["output_size"]) <= 3:
        raise ArtifactError(f"output_size={arguments['output_size']}; use 1 to 3 numbers")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(map(name_of_dtype, dtypes))


_X = _operand("x", "x_zero_point")
_PAIR = (_operand("a", "a_zero_point"), _operand("b", "b_zero_point"))

_ZERO_POINTS: Mapping[str, tuple[_Rule, ...]] = {
    "qconv": (_X, _operand("other", "other_zero_point")),
    "qadd": _PAIR,
    "qsub": _PAIR,
    "qmul": _PAIR,
    "qmatmul": _PAIR,
    **dict.fromkeys(
        ("qconv_transpose", "qlinear", "qrequantize", "qavg_pool", "qadaptive_avg_pool", "qmean"),
        (_X,),
    ),
}
_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "quantize": (_quantize,),
    "dequantize": (_dequantize,),
    "dequantize_block": (_dequantize_block,),
    "unpack": (_unpack,),
    "qembedding": (_embedding,),
    "qembedding_bag": (_embedding_bag,),
    "qconv": (_conv,),
    "qconv_transpose": (_conv_transpose,),
    "qlinear": (_linear,),
    "qlinear_dynamic": (_linear_dynamic,),
    "qrecurrent": (_recurrent,),
    "qcat": (_cat,),
    "qtable": (_table,),
    "qavg_pool": (_pool,),
    "qmax_pool": (_pool,),
    "qadaptive_avg_pool": (_adaptive,),
    "qadaptive_max_pool": (_adaptive,),
}
