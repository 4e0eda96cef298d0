"""MobileNetV2: inverted residual blocks around depthwise convolutions, with linear bottlenecks.

A block widens its input by a factor with a 1x1 convolution, filters each channel by itself with a
3x3 convolution, and narrows it with a 1x1 convolution that has no activation; where stride and
channels allow, the input is added. Modules have the names of torchvision's, so that its
checkpoints load.

References:
    Sandler et al., 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks
    <https://arxiv.org/abs/1801.04381>
"""

from typing import Literal

import torch
from torch import nn

from qcore import RecipeError

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2", "round_channels"]

Stem = Literal["imagenet", "small"]

# Expansion, channels at width 1, blocks, stride of the first block: table 2 of the paper.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, at least ``divisor`` and at least 90 % of ``channels``.

    >>> [round_channels(c) for c in (3, 12, 16 * 0.35, 96 * 1.4)]
    [8, 16, 8, 136]
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; plus the input where the shape stays.

    ``[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_bn_relu6(in_channels, hidden, 1))
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2 of any width, for large or small images.

    Args:
        in_channels: channels of the images.
        num_classes: size of the output.
        width: factor on all channels, each rounded by :func:`round_channels`; the last convolution
            is never narrower than 1280.
        stem: stride of the first convolution: 2 for ``"imagenet"``, so that the size is halved five
            times; 1 for ``"small"``, four times, for images of 16 to 64 pixels.
        dropout: probability before the classifier.

    Shapes: images ``[N, in_channels, H, W]`` float32 -> logits ``[N, num_classes]``.

    Raises:
        RecipeError: an unknown stem, or a size that is not positive.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        width: float = 1.0,
        stem: Stem = "imagenet",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise RecipeError(f"MobileNetV2: stem={stem!r}; use 'imagenet' or 'small'")
        if min(in_channels, num_classes) < 1 or width <= 0:
            raise RecipeError(
                f"MobileNetV2: in_channels={in_channels}, num_classes={num_classes}, "
                f"width={width}; use positive sizes"
            )
        channels = round_channels(32 * width)
        first_stride = 2 if stem == "imagenet" else 1
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, channels, 3, stride=first_stride)]
        for expansion, base, blocks, stride in _STAGES:
            out_channels = round_channels(base * width)
            for index in range(blocks):
                step = 1 if index else stride
                layers.append(InvertedResidual(channels, out_channels, step, expansion))
                channels = out_channels
        last = round_channels(1280 * max(1.0, width))
        layers.append(_conv_bn_relu6(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(self.pool(self.features(x)), 1)
        x = self.classifier(x)
        return x


def mobilenet_v2(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    width: float = 1.0,
    stem: Stem = "imagenet",
    dropout: float = 0.2,
) -> MobileNetV2:
    """MobileNetV2; the arguments are those of :class:`MobileNetV2`.

    >>> sum(p.numel() for p in mobilenet_v2().parameters())
    3504872
    >>> model = mobilenet_v2(in_channels=1, num_classes=10, width=0.5, stem="small")
    >>> sum(p.numel() for p in model.parameters())
    700202
    >>> model.eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return MobileNetV2(
        in_channels=in_channels, num_classes=num_classes, width=width, stem=stem, dropout=dropout
    )
