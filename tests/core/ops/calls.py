"""At least one call of every operation, as data: for what must hold of all of them."""

from typing import Any

import torch
from torch import Tensor

from qcore.ops import (
    convolution,
    dynamic,
    elementwise,
    embedding,
    linear,
    pooling,
    recurrent,
    storage,
)

from .cases import Activation, Conv, Linear, Target, ints

OPERATIONS = {
    name
    for module in (
        *(convolution, dynamic, elementwise, embedding),
        *(linear, pooling, recurrent, storage),
    )
    for name in module.__all__
    if name not in ("pack", "recurrent_step") and name.islower()
}
"""Names of all operations; the rest are functions and constants, no operations of programs."""

Y = Target(scale=0.13, zero_point=-7)
FLOAT = Target(dtype=torch.float32)
PAIRS = Target(scale=0.5, numerics="half_even.multiplier.int32.after.int16_pairs")
FIXED = Target(scale=0.5, numerics="half_away.fixed_point.int32.after.int32")
WINDOW_2D = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)}


def _last(q: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return q.contiguous(memory_format=formats[q.ndim])


def _conv(x: Tensor, w: tuple[int, ...], **options: Any) -> tuple[Any, ...]:
    spatial = len(w) - 2
    window = {k: options.pop(k, (v,) * spatial) for k, v in
              {"stride": 1, "padding": 0, "dilation": 1}.items()}  # fmt: skip
    transposed = "output_padding" in options
    channels = w[1] * options.get("groups", 1) if transposed else w[0]
    values = {
        "x": Activation(q=x, zero_point=3),
        "w": ints(w, low=-127),
        "w_scale": torch.linspace(0.01, 0.02, w[1] if transposed else w[0]),
        "bias": ints((channels,), torch.int32, low=-999, high=999),
        "y": Y,
    }
    return Conv(**{**values, **window, **options}).args()


def _linear(x: Tensor, columns: int, **options: Any) -> tuple[Any, ...]:
    values = {
        "x": Activation(q=x, zero_point=3),
        "w": ints((5, columns), low=-127),
        "w_scale": torch.linspace(0.01, 0.02, 5),
        "y": Y,
    }
    return Linear(**{**values, **options}).args()


IMAGE = ints((2, 4, 9, 8))
VOLUME = ints((2, 4, 5, 4, 6))
TOKENS = ints((2, 3, 8))
TWO = (0.05, 3, ints((2, 4, 9, 8), torch.uint8), 0.02, 101)
INDEX = ints((3, 5), torch.int64, low=0, high=6)
TABLE = (ints((7, 8)), torch.linspace(0.01, 0.02, 7), None, 8, True, 8)
ZEROS = ints((7, 3), torch.int32, low=-8, high=7)
PACKED = (ints((7, 3), torch.uint8), torch.rand(7, 3) + 0.1, ZEROS, 4, True, 6)
BAGS = (INDEX.flatten(), torch.tensor([0, 4, 4, 9]))
GATES = (ints((4, 2, 12)).float() / 100, ints((2, 3)).float() / 100)
HIDDEN = ints((12, 3))
STATE = (0.01, 3, -128, 127)
AVG = ([3, 2], [2, 2], [1, 1], True, False, None)

CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "qconv-1d": ("qconv", _conv(TOKENS, (5, 3, 3), padding=(2,))),
    "qconv-2d": ("qconv", _conv(IMAGE, (6, 4, 3, 3), **WINDOW_2D)),
    "qconv-2d-last": ("qconv", _conv(_last(IMAGE), (6, 4, 3, 3), **WINDOW_2D)),
    "qconv-2d-wide": ("qconv", _conv(_last(IMAGE.to(torch.int16)), (6, 4, 3, 3), **WINDOW_2D)),
    "qconv-2d-depthwise": ("qconv", _conv(_last(IMAGE), (4, 1, 3, 3), groups=4)),
    "qconv-2d-float": ("qconv", _conv(_last(IMAGE), (6, 4, 3, 3), y=FLOAT)),
    "qconv-2d-pairs": ("qconv", _conv(IMAGE, (6, 4, 3, 3), y=PAIRS)),
    "qconv-2d-pairs-last": ("qconv", _conv(_last(IMAGE), (6, 2, 3, 3), groups=2, y=PAIRS)),
    "qconv-2d-fixed": ("qconv", _conv(_last(IMAGE), (6, 4, 3, 3), y=FIXED)),
    "qconv-residual": (
        "qconv",
        _conv(_last(IMAGE), (6, 4, 1, 1), other=Activation(q=ints((2, 6, 9, 8)))),
    ),
    "qconv-3d": ("qconv", _conv(VOLUME, (6, 4, 2, 2, 3))),
    "qconv-3d-last": ("qconv", _conv(_last(VOLUME), (6, 4, 2, 2, 3))),
    "qconv_transpose-1d": ("qconv_transpose", _conv(TOKENS, (3, 5, 3), output_padding=(0,))),
    "qconv_transpose-2d": (
        "qconv_transpose",
        _conv(IMAGE, (4, 3, 3, 3), output_padding=(1, 0), **WINDOW_2D, groups=2),
    ),
    "qconv_transpose-2d-last": (
        "qconv_transpose",
        _conv(_last(IMAGE), (4, 3, 3, 3), output_padding=(1, 0), **WINDOW_2D),
    ),
    "qconv_transpose-3d": (
        "qconv_transpose",
        _conv(_last(VOLUME), (4, 3, 2, 2, 3), output_padding=(0, 0, 0)),
    ),
    "qlinear": ("qlinear", _linear(ints((7, 8)), 8)),
    "qlinear-vector": ("qlinear", _linear(ints((8,)), 8)),
    "qlinear-tokens": ("qlinear", _linear(TOKENS, 8, bias=ints((5,), torch.int32))),
    "qlinear-transposed": ("qlinear", _linear(TOKENS.transpose(0, 1), 8)),
    "qlinear-columns": ("qlinear", _linear(TOKENS.transpose(1, 2), 3)),
    "qlinear-groups": ("qlinear", _linear(TOKENS, 8, w_scale=torch.rand(5, 4) + 0.1)),
    "qlinear-pairs": ("qlinear", _linear(TOKENS, 8, y=PAIRS)),
    "qlinear-float": ("qlinear", _linear(TOKENS, 8, y=FLOAT)),
    "qlinear-long": ("qlinear", _linear(ints((3, 4000), low=90), 4000)),
    "qlinear_dynamic": (
        "qlinear_dynamic",
        (TOKENS.float(), -128, 127, ints((5, 8)), torch.rand(5), None, torch.randn(5)),
    ),
    "qlinear_dynamic-vector": (
        "qlinear_dynamic",
        (ints((8,)).float(), -127, 127, ints((5, 8)), torch.tensor(0.1), None, None),
    ),
    "qlinear_dynamic-groups": (
        "qlinear_dynamic",
        (TOKENS.mT.float(), -8, 7, ints((5, 3)), torch.rand(5, 3) + 0.1, None, None),
    ),
    "qembedding": ("qembedding", (INDEX, *TABLE)),
    "qembedding-int32": ("qembedding", (INDEX.to(torch.int32)[:, ::2], *TABLE)),
    "qembedding-packed": ("qembedding", (INDEX, *PACKED)),
    "qembedding_bag": ("qembedding_bag", (INDEX, None, None, *TABLE, "mean", False, 2)),
    "qembedding_bag-weights": (
        "qembedding_bag",
        (INDEX, None, torch.rand(3, 5), *PACKED, "sum", False, None),
    ),
    "qembedding_bag-offsets": ("qembedding_bag", (*BAGS, None, *TABLE, "max", True, None)),
    "qrecurrent-lstm": (
        "qrecurrent",
        (*GATES, GATES[1], HIDDEN, torch.rand(12), None, None, "lstm", False, "tensor", *STATE),
    ),
    "qrecurrent-token": (
        "qrecurrent",
        (
            *GATES,
            GATES[1],
            HIDDEN,
            torch.tensor(0.1),
            None,
            None,
            "lstm",
            True,
            "token",
            1.0,
            0,
            -127,
            127,
        ),
    ),
    "qrecurrent-gru": (
        "qrecurrent",
        (
            GATES[0][..., 3:],
            GATES[1],
            None,
            HIDDEN[3:],
            torch.rand(9, 3),
            ints((9, 3), torch.int32),
            torch.rand(9),
            "gru",
            False,
            "float",
            *STATE,
        ),
    ),
    "qmatmul": ("qmatmul", (TOKENS, 0.1, 3, TOKENS.mT, 0.2, -5, *Y.args)),
    "qmatmul-heads": (
        "qmatmul",
        (ints((2, 3, 5, 8)).transpose(1, 2), 0.1, 3, ints((5, 8, 4)), 0.2, -5, *Y.args),
    ),
    "qmatmul-long": (
        "qmatmul",
        (ints((2, 3, 3000), low=90), 0.1, -3, ints((2, 3000, 3), low=90), 0.2, -5, *Y.args),
    ),
    "qmatmul-vectors": ("qmatmul", (ints((8,)), 0.1, 3, ints((8,)), 0.2, -5, *Y.args)),
    "qadd": ("qadd", (IMAGE, *TWO, *Y.args)),
    "qadd-last": ("qadd", (_last(IMAGE), *TWO, *Y.args)),
    "qadd-broadcast": ("qadd", (ints((4, 1, 1)), 0.1, 3, _last(IMAGE), 0.2, 5, *Y.args)),
    "qadd-both": ("qadd", (ints((4, 1)), 0.1, 3, ints((1, 6)), 0.2, 5, *Y.args)),
    "qadd-permuted": ("qadd", (TOKENS.permute(2, 0, 1), 0.1, 3, ints((3,)), 0.2, 5, *Y.args)),
    "qsub": ("qsub", (IMAGE, *TWO, *Y.args)),
    "qsub-broadcast": ("qsub", (ints((4, 1, 1)), 0.1, 3, _last(IMAGE), 0.2, 5, *Y.args)),
    "qmul": ("qmul", (_last(IMAGE), *TWO, *Y.args)),
    "qmul-gate": ("qmul", (_last(IMAGE), 0.1, 3, ints((2, 4, 1, 1)), 0.2, 5, *FLOAT.args)),
    "qrequantize": ("qrequantize", (_last(IMAGE), 0.1, 3, *Y.args)),
    "qrequantize-sliced": ("qrequantize", (IMAGE[:, ::2, 1:], 0.1, 3, *Y.args)),
    "qcat": ("qcat", ([IMAGE, ints((2, 2, 9, 8))], [0.1, 0.2], [3, -5], 1, *Y.args)),
    "qcat-last": (
        "qcat",
        ([_last(IMAGE), _last(ints((2, 2, 9, 8)))], [0.1, 0.2], [3, -5], 1, *Y.args),
    ),
    "qcat-mixed": ("qcat", ([_last(IMAGE), IMAGE], [0.1, 0.2], [3, -5], 1, *Y.args)),
    "qtable": ("qtable", (IMAGE, ints((256,), torch.uint8), -128)),
    "qtable-last": ("qtable", (_last(IMAGE), ints((256,)), -128)),
    "qavg_pool-1d": ("qavg_pool", (TOKENS, 0.1, 3, [2], [], [1], False, True, None, *Y.args)),
    "qavg_pool-2d": ("qavg_pool", (IMAGE, 0.1, 3, *AVG, *Y.args)),
    "qavg_pool-2d-last": ("qavg_pool", (_last(IMAGE), 0.1, 3, *AVG, *Y.args)),
    "qavg_pool-float": ("qavg_pool", (IMAGE, 0.1, 3, *AVG, *FLOAT.args)),
    "qadaptive_avg_pool-float": ("qadaptive_avg_pool", (IMAGE, 0.1, 3, [4, 3], *FLOAT.args)),
    "qavg_pool-3d": (
        "qavg_pool",
        (_last(VOLUME), 0.1, 3, [2, 2, 2], [1, 2, 2], [0, 1, 0], False, False, 5, *Y.args),
    ),
    "qadaptive_avg_pool-1d": ("qadaptive_avg_pool", (TOKENS, 0.1, 3, [3], *Y.args)),
    "qadaptive_avg_pool-2d": ("qadaptive_avg_pool", (_last(IMAGE), 0.1, 3, [1, 1], *Y.args)),
    "qadaptive_avg_pool-3d": ("qadaptive_avg_pool", (VOLUME, 0.1, 3, [2, 3, 2], *Y.args)),
    "qmean": ("qmean", (_last(IMAGE), 0.1, 3, [2, 3], False, *Y.args)),
    "qmean-channels": ("qmean", (_last(IMAGE), 0.1, 3, [1], True, *Y.args)),
    "qmean-all": ("qmean", (IMAGE, 0.1, 3, [], False, *FLOAT.args)),
    "qmax_pool-1d": ("qmax_pool", (TOKENS, [3], [], [1], [1], True)),
    "qmax_pool-2d": ("qmax_pool", (_last(IMAGE), [3, 2], [2, 2], [1, 0], [1, 2], False)),
    "qmax_pool-3d": ("qmax_pool", (_last(VOLUME), [2, 2, 2], [], [0, 0, 0], [1, 1, 1], False)),
    "qadaptive_max_pool-2d": ("qadaptive_max_pool", (_last(IMAGE), [3, 3])),
    "qadaptive_max_pool-1d": ("qadaptive_max_pool", (TOKENS, [3])),
    "quantize": (
        "quantize",
        (_last(IMAGE.float()), 0.3, 5, -128, 127, torch.int8, "half_away"),
    ),
    "dequantize": ("dequantize", (_last(IMAGE), 0.1, 3)),
    "dequantize_block": (
        "dequantize_block",
        (ints((4, 6)).t(), torch.rand(6) + 0.1, ints((6,)).int(), [2, 2]),
    ),
    "unpack": ("unpack", (ints((5, 3), torch.uint8).t(), 4, True, 9)),
}


def call(name: str) -> Tensor:
    """The result of a call of the table."""
    operation, args = CALLS[name]
    result: Tensor = getattr(torch.ops.qcore, operation)(*args)
    return result
