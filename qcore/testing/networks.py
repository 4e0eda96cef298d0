"""Small networks that have most operations of Q between them, and what they are quantized to."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import QConfig, QScheme, QuantizerConfig
from ..dtypes import INT4, INT8, INT8_NARROW, UINT8
from ..granularity import PerChannel, PerGroup, PerToken

__all__ = ["GROUPS", "NETWORKS", "PER_TOKEN", "QCONFIGS", "WEIGHT_ONLY", "classifier"]


_CHANNEL = PerChannel(0)


def _qconfig(weight: QScheme, activation: QScheme) -> QConfig:
    return QConfig(
        weight=QuantizerConfig(scheme=weight), activation=QuantizerConfig(scheme=activation)
    )


_INT8_WEIGHT = QScheme(dtype=INT8_NARROW, granularity=_CHANNEL)
_INT8 = QScheme(dtype=INT8, symmetric=False)

QCONFIGS: Mapping[str, QConfig] = MappingProxyType(
    {
        "int8": _qconfig(_INT8_WEIGHT, _INT8),
        "uint8": _qconfig(_INT8_WEIGHT, QScheme(dtype=UINT8, symmetric=False)),
        "int4 weights": _qconfig(QScheme(dtype=INT4, granularity=_CHANNEL), _INT8),
    }
)
"""What contributions are tried with: int8 and uint8 activations, 8-bit and 4-bit weights."""

_TOKENS = QScheme(dtype=INT8, granularity=PerToken())

PER_TOKEN: QConfig = _qconfig(_INT8_WEIGHT, _TOKENS)
"""Inputs of linear layers are quantized at run time."""

GROUPS: QConfig = _qconfig(QScheme(dtype=INT4, granularity=PerGroup(4)), _TOKENS)
"""So they are, and weights are in groups."""

WEIGHT_ONLY: QConfig = QConfig(weight=QuantizerConfig(scheme=_INT8_WEIGHT), activation=None)
"""Activations stay float."""


class _Residual(nn.Module):
    """Convolutions, one with a residual that is read again later, a clamp, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.point(F.relu6(self.depthwise(x))) + x)
        y = self.last(y) + x
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))  # type: ignore[no-any-return]


class _Branches(nn.Module):
    """Two branches that are joined, pools, a transposed convolution and tables."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.hardswish(self.left(x)), torch.sigmoid(self.right(x))
        y = torch.cat((F.max_pool2d(a * b, 2), F.avg_pool2d(a + b, 2)), 1)
        return self.out(self.up(y).mean((2, 3)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """A block of attention: linear layers, matrix products, and float operations between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        y = x + self.out(torch.matmul((torch.matmul(q, k.transpose(-1, -2)) / 4).softmax(-1), v))
        return y + self.down(F.gelu(self.up(y)))  # type: ignore[no-any-return]


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = MappingProxyType(
    {
        "residual": (_Residual, (3, 8, 8)),
        "branches": (_Branches, (3, 6, 6)),
        "attention": (_Attention, (5, 16)),
    }
)
"""What makes a network, with the weights that torch's random numbers give it, and the shape of an
example without its batch."""


def classifier(classes: int = 3) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with BatchNorm for images of three channels, and inputs for it."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    return model.eval(), (torch.randn(4, 3, 6, 6),)
