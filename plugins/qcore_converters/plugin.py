"""Entry point of the built-in converters."""

from collections.abc import Iterable

from qcore import ConverterSpec, hookimpl

_PACKAGE = "qcore_converters"


def _converter(
    *,
    name: str,
    op: str,
    summary: str,
    target: str,
    types: tuple[str, ...] = (),
    functions: tuple[str, ...] = (),
) -> ConverterSpec:
    return ConverterSpec(
        name=name,
        op=op,
        summary=summary,
        types=types,
        functions=functions,
        target=f"{_PACKAGE}.{target}",
        examples=f"{_PACKAGE}.examples:{name}",
    )


def _types(*names: str) -> tuple[str, ...]:
    return tuple(f"torch.nn.{name}" for name in names)


def _functions(*names: str) -> tuple[str, ...]:
    """``relu`` is ``aten.relu.default``; a name with a dot says its overload."""
    return tuple(f"aten.{name if '.' in name else name + '.default'}" for name in names)


@hookimpl
def qcore_module_converters() -> Iterable[ConverterSpec]:
    for dims in (1, 2, 3):
        yield _converter(
            name=f"conv{dims}d",
            op=f"conv{dims}d",
            summary=f"{dims}-d convolution, with BatchNorm, residual and clamp.",
            types=_types(f"Conv{dims}d"),
            target="convolution:QFloatConv",
        )
        yield _converter(
            name=f"conv_transpose{dims}d",
            op=f"conv_transpose{dims}d",
            summary=f"{dims}-d transposed convolution, with bias, groups, BatchNorm and clamp.",
            types=_types(f"ConvTranspose{dims}d"),
            target="convolution:QFloatConvTranspose",
        )
    yield _converter(
        name="linear",
        op="linear",
        summary="Linear layer, with BatchNorm and clamp; weights also in groups.",
        types=_types("Linear"),
        target="linear:QFloatLinear",
    )
    yield _converter(
        name="transposed_linear",
        op="linear",
        summary="Linear layer with a weight [K, N], as in the GPT-2 of transformers.",
        types=("transformers.pytorch_utils.Conv1D",),
        target="linear:QFloatTransposedLinear",
    )
    yield _converter(
        name="batch_norm",
        op="batch_norm",
        summary="BatchNorm that stands alone, as a depthwise 1x1 convolution.",
        types=_types("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
        target="batch_norm:QFloatBatchNorm",
    )
    yield _converter(
        name="matmul",
        op="matmul",
        summary="Matrix product of two activations.",
        functions=_functions("matmul", "bmm"),
        target="matmul:QFloatMatmul",
    )
    yield from _elementwise()
    yield from _pools()
    yield from _movements()


def _elementwise() -> Iterable[ConverterSpec]:
    yield _converter(
        name="add",
        op="add",
        summary="Sum of two tensors, with clamp; with a number, a table.",
        functions=_functions("add.Tensor"),
        target="elementwise:QFloatAdd",
    )
    yield _converter(
        name="mul",
        op="mul",
        summary="Product of two tensors, with clamp; with a number, a table.",
        functions=_functions("mul.Tensor"),
        target="elementwise:QFloatMul",
    )
    yield _converter(
        name="cat",
        op="cat",
        summary="Concatenation to one scale.",
        functions=_functions("cat"),
        target="elementwise:QFloatCat",
    )
    clamps = (
        ("relu", ("ReLU",), ("relu",)),
        ("relu6", ("ReLU6",), ("relu6",)),
        ("hardtanh", ("Hardtanh",), ("hardtanh", "clamp")),
    )
    tables = (
        ("hardswish", ("Hardswish",), ("hardswish",)),
        ("hardsigmoid", ("Hardsigmoid",), ("hardsigmoid",)),
        ("sigmoid", ("Sigmoid",), ("sigmoid",)),
        ("tanh", ("Tanh",), ("tanh",)),
        ("gelu", ("GELU",), ("gelu",)),
        ("silu", ("SiLU",), ("silu",)),
        ("mish", ("Mish",), ("mish",)),
        ("elu", ("ELU", "CELU", "SELU"), ("elu", "celu", "selu")),
        ("leaky_relu", ("LeakyReLU", "PReLU"), ("leaky_relu",)),
        ("softplus", ("Softplus",), ("softplus",)),
        ("div", (), ("div.Tensor",)),
        ("abs", (), ("abs",)),
        ("neg", (), ("neg",)),
    )
    for op, types, functions in (*clamps, *tables):
        yield _converter(
            name=op,
            op=op,
            summary=f"{op} by lookup table, where no layer before it takes it in.",
            types=_types(*types),
            functions=_functions(*functions),
            target="elementwise:QFloatTable",
        )


def _pools() -> Iterable[ConverterSpec]:
    dims = (1, 2, 3)
    yield _converter(
        name="avg_pool",
        op="avg_pool",
        summary="Average pool.",
        types=_types(*(f"AvgPool{d}d" for d in dims)),
        functions=_functions(*(f"avg_pool{d}d" for d in dims)),
        target="pooling:QFloatAvgPool",
    )
    yield _converter(
        name="adaptive_avg_pool",
        op="adaptive_avg_pool",
        summary="Adaptive average pool.",
        types=_types(*(f"AdaptiveAvgPool{d}d" for d in dims)),
        functions=_functions(*(f"adaptive_avg_pool{d}d" for d in dims)),
        target="pooling:QFloatAdaptiveAvgPool",
    )
    yield _converter(
        name="mean",
        op="mean",
        summary="Mean over dimensions.",
        functions=_functions("mean", "mean.dim"),
        target="pooling:QFloatMean",
    )
    yield _converter(
        name="max_pool",
        op="max_pool",
        summary="Maximum pool.",
        types=_types(*(f"{a}MaxPool{d}d" for d in dims for a in ("", "Adaptive"))),
        functions=_functions(*(f"max_pool{d}d" for d in dims)),
        target="movement:MaxPool",
    )


def _movements() -> Iterable[ConverterSpec]:
    yield _converter(
        name="pad",
        op="pad",
        summary="Padding with zeros, or by reflection and repetition.",
        types=_types(
            *(
                f"{kind}Pad{d}d"
                for d in (1, 2, 3)
                for kind in ("Zero", "Constant", "Reflection", "Replication")
            )
        ),
        functions=_functions("pad", "constant_pad_nd"),
        target="movement:Pad",
    )
    yield _converter(
        name="move",
        op="move",
        summary="Reshapes, transposes, slices, splits, shuffles; dropout in eval mode.",
        types=_types(
            *(
                "Identity",
                "Flatten",
                "Unflatten",
                "PixelShuffle",
                "PixelUnshuffle",
                "ChannelShuffle",
            ),
            *(
                "Dropout",
                "Dropout1d",
                "Dropout2d",
                "Dropout3d",
                "AlphaDropout",
                "FeatureAlphaDropout",
            ),
        ),
        functions=(
            "_operator.getitem",
            *_functions(
                *("reshape", "view", "_unsafe_view", "flatten.using_ints", "unflatten.int"),
                *("permute", "transpose.int", "t", "movedim.int", "movedim.intlist", "swapaxes"),
                *("squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze", "expand", "expand_as"),
                *("contiguous", "clone", "alias", "slice.Tensor", "select.int", "narrow"),
                *("index_select", "chunk", "split.Tensor", "split.sizes", "split_with_sizes"),
                *("unbind.int", "repeat", "roll", "flip"),
                *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
            ),
        ),
        target="movement:Move",
    )
