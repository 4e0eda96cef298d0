"""Models that have each operation, for the conformance kit: one function a record, by its name."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Examples = Iterator[tuple[nn.Module, tuple[Tensor, ...]]]
Function = Callable[[Tensor], Tensor]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


class _Between(nn.Module):
    """A function between two convolutions, so that it gets integers and gives them.

    The maximum of single pixels changes nothing, and keeps the first convolution from taking it in.
    """

    def __init__(self, function: Function, dims: int, channels: int) -> None:
        super().__init__()
        self.first = _CONV[dims - 1](3, channels, 3, padding=1)
        self.alone = _MAX_POOL[dims - 1](1)
        self.function = function
        self.last = _CONV[dims - 1](channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.alone(self.first(x))))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """A convolution whose result is added to its input and clamped."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = _CONV[dims - 1]
        self.stem = conv(3, 8, 3)
        self.norm = _BATCH_NORM[dims - 1](8)
        self.block = conv(8, 8, 3, padding=1, bias=False)
        self.last = conv(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.last(F.relu6(self.block(x) + x))  # type: ignore[no-any-return]


def _inputs(dims: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, *((12,), (8, 6), (5, 6, 4))[dims - 1]),)


def _between(*makes: Callable[[], Function], dims: int = 2) -> Callable[[], Examples]:
    """Examples of functions of ``[B, 4, 8, 6]`` that keep the four channels."""

    def examples() -> Examples:
        for make in makes:
            yield _Between(make(), dims, 4), _inputs(dims)

    return examples


def _both(first: Callable[[], Examples], *more: Callable[[], Examples]) -> Callable[[], Examples]:
    def examples() -> Examples:
        for one in (first, *more):
            yield from one()

    return examples


def _convolutions(dims: int) -> Callable[[], Examples]:
    conv: Any = _CONV[dims - 1]

    def examples() -> Examples:
        layers = (
            conv(3, 8, 3, padding=1, padding_mode="reflect"),
            conv(8, 8, 3, padding="same"),
            conv(8, 8, 3, stride=2, padding=2, groups=4, dilation=2, bias=False),
            conv(8, 4, 2, padding=1, padding_mode="circular"),
        )
        yield nn.Sequential(*layers), _inputs(dims)
        yield _Residual(dims), _inputs(dims)

    return examples


def _transposed(dims: int) -> Callable[[], Examples]:
    conv: Any = _CONV_TRANSPOSE[dims - 1]

    def examples() -> Examples:
        layers = (
            conv(3, 8, 2, stride=2, bias=False),
            _BATCH_NORM[dims - 1](8),
            nn.ReLU(),
            conv(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        )
        yield nn.Sequential(*layers), _inputs(dims)

    return examples


conv1d, conv2d, conv3d = map(_convolutions, (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_transposed, (1, 2, 3))


def linear() -> Examples:
    """Of matrices and of sequences."""
    layers = (nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    yield nn.Sequential(*layers), (torch.randn(3, 12),)
    yield nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4)), (torch.randn(3, 5, 12),)


def transposed_linear() -> Examples:
    """As in the GPT-2 of transformers."""
    from transformers import pytorch_utils

    layer: Any = pytorch_utils.Conv1D
    yield nn.Sequential(layer(8, 12), nn.ReLU(), layer(4, 8)), (torch.randn(3, 5, 12),)


batch_norm = _both(
    _between(lambda: nn.BatchNorm1d(4), dims=1),
    _between(lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())),
    _between(lambda: nn.BatchNorm3d(4), dims=3),
)
matmul = _between(
    lambda: lambda y: torch.matmul(y, y.transpose(-1, -2)),
    lambda: lambda y: torch.bmm(y[:, 0], y[:, 1].transpose(1, 2)).unsqueeze(1).expand(-1, 4, 8, 8),
)
added_matmul = _between(
    lambda: (
        lambda y: (
            torch.baddbmm(
                y[:, 0].sigmoid().exp(), y[:, 1], y[:, 2, :6].mT.matmul(y[:, 3, :6])[:, :6]
            )
            .unsqueeze(1)
            .expand(-1, 4, 8, 6)
        )
    ),
)


class _Attention(nn.Module):
    """Self-attention of four heads between two layers."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 48)
        self.outer = nn.Linear(16, 8)
        self.function = function
        self.register_buffer("seen", torch.ones(5, 5).tril() > 0)

    def forward(self, x: Tensor) -> Tensor:
        parts = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.inner(x).chunk(3, -1))
        return self.outer(self.function(self.seen, *parts).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attention() -> Examples:
    """Without and with a mask, scaled, causal."""
    attend = F.scaled_dot_product_attention
    functions: tuple[Callable[..., Tensor], ...] = (
        lambda seen, q, k, v: attend(q, k, v, scale=0.3),
        lambda seen, q, k, v: attend(q, k, v, attn_mask=seen),
        lambda seen, q, k, v: attend(q, k, v, is_causal=True),
    )
    for function in functions:
        yield _Attention(function), (torch.randn(2, 5, 16),)


def _tables(module: nn.Module) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(module, nn.Linear(32, 4)), (torch.randint(0, 20, (3, 6)),)


def embedding() -> Examples:
    """A table whose rows go into a layer."""
    yield _tables(nn.Embedding(20, 32))


def embedding_bag() -> Examples:
    """Means and sums of rows, with one that is left out."""
    yield _tables(nn.EmbeddingBag(20, 32))
    yield _tables(nn.EmbeddingBag(20, 32, mode="sum", padding_idx=3))


class _Recurrent(nn.Module):
    """A recurrent layer or cell between two layers, from no state and from one."""

    def __init__(self, layer: Any, states: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layer = layer
        self.last = nn.Linear(6 * states, 4)
        self.cell = isinstance(layer, nn.RNNCellBase)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.cell:
            state = self.layer(x[:, 1], self.layer(x[:, 0]))
            return self.last(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]
        y, state = self.layer(x)
        return self.last(self.layer(y[..., :6].repeat(1, 1, 2)[..., :8], state)[0])  # type: ignore[no-any-return]


def _recurrent(kind: Any) -> Callable[[], Examples]:
    def examples() -> Examples:
        layers = (
            kind(8, 6, batch_first=True),
            kind(8, 6, 2, bidirectional=True, bias=False, batch_first=True),
        )
        for layer in layers:
            yield _Recurrent(layer, 2 if layer.bidirectional else 1), (torch.randn(2, 4, 8),)

    return examples


def _cells(kind: Any) -> Callable[[], Examples]:
    def examples() -> Examples:
        yield _Recurrent(kind(8, 6)), (torch.randn(2, 4, 8),)

    return examples


lstm, gru, rnn = map(_recurrent, (nn.LSTM, nn.GRU, nn.RNN))
lstm_cell, gru_cell, rnn_cell = map(_cells, (nn.LSTMCell, nn.GRUCell, nn.RNNCell))
add = _between(
    lambda: lambda y: y + y.flip(2),
    lambda: lambda y: F.relu(y.flip(2) + y),
    lambda: lambda y: y + 0.3,
)
mul = _between(
    lambda: lambda y: y * y.flip(2),
    lambda: lambda y: F.relu(y.flip(2) * y),
    lambda: lambda y: y * 0.7,
)
sub = _between(
    lambda: lambda y: y - y.flip(2),
    lambda: lambda y: F.relu(y.flip(2) - y),
    lambda: lambda y: 1 - y,
)
maximum = _between(lambda: lambda y: torch.maximum(y, y.flip(2) * 0.5))
minimum = _between(lambda: lambda y: torch.minimum(y, y.flip(2) * 0.5))
glu = _between(
    lambda: lambda y: F.glu(torch.cat((y, y.flip(2)), 1), 1), lambda: lambda y: nn.GLU(2)(y)
)
stack = _between(lambda: lambda y: torch.stack((y, y.flip(2) * 0.3), 2).amax(2))
cat = _between(lambda: lambda y: torch.cat((y * 0.3, y), 1)[:, 2:6])

relu = _between(nn.ReLU, lambda: F.relu)
relu6 = _between(nn.ReLU6, lambda: F.relu6)
hardtanh = _between(lambda: nn.Hardtanh(-0.4, 0.9), lambda: lambda y: y.clamp(-0.3, 0.6))
hardswish = _between(nn.Hardswish, lambda: F.hardswish)
hardsigmoid = _between(nn.Hardsigmoid, lambda: F.hardsigmoid)
sigmoid = _between(nn.Sigmoid, lambda: torch.sigmoid)
tanh = _between(nn.Tanh, lambda: torch.tanh)
gelu = _between(lambda: nn.GELU("tanh"), lambda: F.gelu)
silu = _between(nn.SiLU, lambda: F.silu)
mish = _between(nn.Mish, lambda: F.mish)
elu = _between(lambda: nn.ELU(0.7), nn.CELU, nn.SELU, lambda: F.elu)
leaky_relu = _between(lambda: nn.LeakyReLU(0.2), nn.PReLU, lambda: F.leaky_relu)
softplus = _between(lambda: nn.Softplus(2.0), lambda: F.softplus)
log_sigmoid = _between(nn.LogSigmoid, lambda: F.logsigmoid)
shrink = _between(lambda: nn.Hardshrink(0.1), lambda: nn.Softshrink(0.1), nn.Tanhshrink)
threshold = _between(lambda: nn.Threshold(0.1, 0.0), lambda: lambda y: F.threshold(y, 0.2, 0.0))
div = _between(lambda: lambda y: y / 1.7)
abs = _between(lambda: torch.abs)
neg = _between(lambda: torch.neg)

avg_pool = _both(
    _between(
        lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
        lambda: lambda y: F.avg_pool2d(y, 3, ceil_mode=True, divisor_override=5),
    ),
    _between(lambda: nn.AvgPool1d(2), dims=1),
    _between(lambda: nn.AvgPool3d(2), dims=3),
)
adaptive_avg_pool = _both(
    _between(lambda: nn.AdaptiveAvgPool2d(1), lambda: lambda y: F.adaptive_avg_pool2d(y, (3, 2))),
    _between(lambda: nn.AdaptiveAvgPool1d(5), dims=1),
    _between(lambda: nn.AdaptiveAvgPool3d(2), dims=3),
)
mean = _between(
    lambda: lambda y: y.mean((2, 3), keepdim=True), lambda: lambda y: y.mean(-1).unsqueeze(2)
)
max_pool = _both(
    _between(
        lambda: nn.MaxPool2d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
        lambda: nn.AdaptiveMaxPool2d(2),
        lambda: lambda y: F.max_pool2d(y, 2, padding=1),
    ),
    _between(lambda: nn.MaxPool1d(2), dims=1),
    _between(lambda: nn.AdaptiveMaxPool3d(2), dims=3),
)
pad = _both(
    _between(
        lambda: nn.ZeroPad2d((1, 0, 2, 3)),
        lambda: nn.ReflectionPad2d(2),
        lambda: nn.Sequential(nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 0.0)),
        lambda: lambda y: F.pad(y, (1, 2, 3, 0), "circular"),
    ),
    _between(lambda: nn.ReplicationPad3d(1), dims=3),
)
interpolate = _both(
    _between(
        lambda: nn.Upsample(scale_factor=2),
        lambda: nn.UpsamplingNearest2d((5, 9)),
        lambda: lambda y: F.interpolate(y, scale_factor=1.5, mode="nearest-exact"),
    ),
    _between(lambda: nn.Upsample(scale_factor=3), dims=1),
    _between(lambda: nn.Upsample((2, 9, 5)), dims=3),
)
move = _between(
    lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Unflatten(1, (4, 6, 8)), nn.Identity()),
    lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2)),
    lambda: lambda y: y.transpose(2, 3).flip(2).roll(1, 3)[:, :, 1:-1, ::2],
    lambda: lambda y: y.reshape(y.shape[0], 4, 4, 12).narrow(3, 1, 4).repeat(1, 1, 2, 1),
    lambda: (
        lambda y: torch.cat([z.unsqueeze(3) for z in y.unbind(3)], 3).index_select(
            2, torch.tensor([1, 0, 1])
        )
    ),
)

layer_norm = _between(lambda: nn.LayerNorm(6), lambda: nn.RMSNorm((8, 6)))
group_norm = _between(lambda: nn.GroupNorm(2, 4), lambda: lambda y: F.group_norm(y, 4))
instance_norm = _between(lambda: nn.InstanceNorm2d(4, affine=True), lambda: F.instance_norm)
local_response_norm = _between(lambda: nn.LocalResponseNorm(2))
softmax = _between(lambda: nn.Softmax(1), nn.Softmax2d, lambda: lambda y: y.log_softmax(-1))
exp = _between(lambda: torch.exp, lambda: torch.expm1)
log = _between(lambda: lambda y: (y.abs() + 1).log(), lambda: lambda y: torch.log1p(y.abs()))
pow = _between(lambda: torch.square, lambda: lambda y: y.abs().sqrt())
reciprocal = _between(lambda: lambda y: (y.abs() + 1).reciprocal())
