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
    plain: tuple[str, ...] = (),
) -> ConverterSpec:
    return ConverterSpec(
        name=name,
        op=op,
        summary=summary,
        types=types,
        functions=functions,
        plain=plain,
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
    for kind in ("LSTM", "GRU", "RNN"):
        yield _converter(
            name=kind.lower(),
            op=kind.lower(),
            summary=f"{kind} of any depth and direction: integer products, float gates.",
            types=_types(kind),
            plain=("hx",),
            target="recurrent:QFloatRecurrent",
        )
        yield _converter(
            name=f"{kind.lower()}_cell",
            op=f"{kind.lower()}_cell",
            summary=f"One step of a {kind}.",
            types=_types(f"{kind}Cell"),
            plain=("hx",),
            target="recurrent:QFloatRecurrentCell",
        )
    yield _converter(
        name="embedding",
        op="embedding",
        summary="Table of integer rows, looked up and made float.",
        types=_types("Embedding"),
        plain=("input",),
        target="embedding:QFloatEmbedding",
    )
    yield _converter(
        name="embedding_bag",
        op="embedding_bag",
        summary="Sums, means and maxima of rows of integers, in float.",
        types=_types("EmbeddingBag"),
        plain=("input", "offsets", "per_sample_weights"),
        target="embedding:QFloatEmbeddingBag",
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
    yield _converter(
        name="added_matmul",
        op="matmul",
        summary="Matrix product of two activations, to which a float tensor is added.",
        functions=_functions("baddbmm", "addmm"),
        plain=("self",),
        target="matmul:QFloatAddedMatmul",
    )
    yield _converter(
        name="attention",
        op="attention",
        summary="Scaled dot-product attention as two integer products; its softmax is float.",
        functions=_functions("scaled_dot_product_attention"),
        plain=("attn_mask",),
        target="attention:QFloatAttention",
    )
    yield from _elementwise()
    yield from _pools()
    yield from _movements()
    yield from _islands()


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
        name="sub",
        op="sub",
        summary="Difference of two tensors, with clamp; with a number, a table.",
        functions=_functions("sub.Tensor", "rsub.Scalar"),
        target="elementwise:QFloatSub",
    )
    for extreme in ("maximum", "minimum"):
        yield _converter(
            name=extreme,
            op=extreme,
            summary=f"Elementwise {extreme} of two tensors, at one scale.",
            functions=_functions(extreme, f"{extreme[:3]}.other"),
            target=f"elementwise:QFloat{extreme.capitalize()}",
        )
    yield _converter(
        name="cat",
        op="cat",
        summary="Concatenation to one scale.",
        functions=_functions("cat"),
        target="elementwise:QFloatCat",
    )
    yield _converter(
        name="glu",
        op="glu",
        summary="One half of a tensor times the sigmoid of the other.",
        types=_types("GLU"),
        functions=_functions("glu"),
        target="elementwise:QFloatGlu",
    )
    yield _converter(
        name="stack",
        op="stack",
        summary="Concatenation along a new dimension, to one scale.",
        functions=_functions("stack"),
        target="elementwise:QFloatStack",
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
        ("leaky_relu", ("LeakyReLU", "PReLU", "RReLU"), ("leaky_relu",)),
        ("log_sigmoid", ("LogSigmoid",), ("log_sigmoid",)),
        ("shrink", ("Hardshrink", "Softshrink", "Tanhshrink"), ("hardshrink", "softshrink")),
        ("threshold", ("Threshold",), ("threshold",)),
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
        summary="Padding with zeros, or by reflection, repetition and wrapping.",
        types=_types(
            *(
                f"{kind}Pad{d}d"
                for d in (1, 2, 3)
                for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
            )
        ),
        functions=_functions("pad", "constant_pad_nd"),
        target="movement:Pad",
    )
    yield _converter(
        name="interpolate",
        op="interpolate",
        summary="Resizing to the nearest value; linear and cubic ways stay float.",
        types=_types("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d"),
        functions=_functions(
            *(f"upsample_nearest{d}d.vec" for d in (1, 2, 3)),
            *(f"_upsample_nearest_exact{d}d.vec" for d in (1, 2, 3)),
            *(f"upsample_{way}.vec" for way in ("linear1d", "bilinear2d", "trilinear3d")),
            *("upsample_bicubic2d.vec", "_upsample_bilinear2d_aa.vec"),
            "_upsample_bicubic2d_aa.vec",
        ),
        target="movement:Interpolate",
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
                *("unbind.int", "repeat", "repeat_interleave.self_int", "tile", "roll", "flip"),
                *("index.Tensor", "unfold", "amax", "amin"),
                *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
            ),
        ),
        target="movement:Move",
    )


def _islands() -> Iterable[ConverterSpec]:
    """What stays float, so that a plan says why and an override can name it."""
    norms = (
        ("layer_norm", ("LayerNorm", "RMSNorm"), ("layer_norm", "rms_norm")),
        ("group_norm", ("GroupNorm",), ("group_norm",)),
        (
            "instance_norm",
            ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
            ("instance_norm",),
        ),
        ("local_response_norm", ("LocalResponseNorm",), ()),
    )
    wide = (
        (
            "softmax",
            ("Softmax", "Softmax2d", "Softmin", "LogSoftmax"),
            ("softmax.int", "log_softmax.int", "_softmax"),
        ),
        ("exp", (), ("exp", "expm1")),
        ("log", (), ("log", "log1p", "log2")),
        ("pow", (), ("pow.Tensor_Scalar", "square", "sqrt")),
        ("reciprocal", (), ("reciprocal", "rsqrt")),
    )
    for op, types, functions in (*norms, *wide):
        yield _converter(
            name=op,
            op=op,
            summary=f"{op} stays float; the plan says why.",
            types=_types(*types),
            functions=_functions(*functions),
            target="island:FloatIsland",
        )
