"""Residual networks for large images (ResNet-18, ResNet-50) and for small ones (ResNet-20).

A block computes ``relu(F(x) + shortcut(x))`` with ``F`` two 3x3 convolutions or a bottleneck of
1x1, 3x3 and 1x1, each followed by batch normalisation. Modules have the names of torchvision's, so
that its checkpoints load.

References:
    He et al., 2016, Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from qcore import RecipeError

__all__ = ["BasicBlock", "Bottleneck", "IdentityShortcut", "ResNet"]
__all__ += ["resnet18", "resnet20", "resnet50"]

Shortcut = Literal["identity", "projection"]
Stem = Literal["imagenet", "small"]


class IdentityShortcut(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, and zeros for the new channels.

    ``[N, C, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]``; option A of He et al.

    >>> IdentityShortcut(2, 4, stride=2)(torch.ones(1, 2, 5, 5)).shape
    torch.Size([1, 4, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def _shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if kind == "identity":
        return IdentityShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    ``[N, C, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]``.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(shortcut, in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 beside a shortcut; the output has ``4 * channels``.

    The stride is in the 3x3 convolution ("v1.5"), not in the first 1x1 as in the paper, because the
    published checkpoints have it there.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        out = self.relu(out)
        return out


class ResNet(nn.Module):
    """Stages of residual blocks; each but the first halves the size and doubles the channels.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks in each stage.
        in_channels: channels of the images.
        num_classes: size of the output.
        width: channels of the first stage, before the expansion of a bottleneck.
        stem: ``"imagenet"``: 7x7 convolution of stride 2 and 3x3 max pooling of stride 2;
            ``"small"``: one 3x3 convolution of stride 1, for images of 8 to 64 pixels.
        shortcut: where a block changes the shape, ``"projection"`` (1x1 convolution and batch
            normalisation, option B of He et al.) or ``"identity"`` (:class:`IdentityShortcut`,
            option A, no parameters).

    Shapes: images ``[N, in_channels, H, W]`` float32 -> logits ``[N, num_classes]``. Any size
    works; the last stage sees ``ceil(H / 2**k)`` pixels with ``k = len(depths) - 1``, 2 more for
    the ImageNet stem.

    Raises:
        RecipeError: an unknown stem or shortcut, or a size below 1.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        width: int = 64,
        stem: Stem = "imagenet",
        shortcut: Shortcut = "projection",
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise RecipeError(f"ResNet: stem={stem!r}; use 'imagenet' or 'small'")
        if shortcut not in ("identity", "projection"):
            raise RecipeError(f"ResNet: shortcut={shortcut!r}; use 'identity' or 'projection'")
        if min(in_channels, num_classes, width) < 1:
            raise RecipeError(
                f"ResNet: in_channels={in_channels}, num_classes={num_classes}, width={width}; "
                "use 1 or more"
            )
        self.conv1 = (
            nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            if stem == "imagenet"
            else nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        self.stages = len(depths)
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(block(channels, width << stage, stride, shortcut))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


def resnet18(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    width: int = 64,
    stem: Stem = "imagenet",
) -> ResNet:
    """ResNet-18: four stages of two basic blocks, projection shortcuts.

    Args:
        in_channels: channels of the images.
        num_classes: size of the output.
        width: channels of the first stage.
        stem: ``"imagenet"`` or ``"small"``; see :class:`ResNet`.

    >>> sum(p.numel() for p in resnet18().parameters())
    11689512
    >>> model = resnet18(in_channels=1, num_classes=10, stem="small")
    >>> sum(p.numel() for p in model.parameters())
    11172810
    >>> model.eval()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        in_channels=in_channels,
        num_classes=num_classes,
        width=width,
        stem=stem,
    )


def resnet50(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    width: int = 64,
    stem: Stem = "imagenet",
) -> ResNet:
    """ResNet-50: four stages of 3, 4, 6 and 3 bottlenecks, projection shortcuts.

    The arguments are those of :func:`resnet18`.

    >>> sum(p.numel() for p in resnet50().parameters())
    25557032
    """
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        in_channels=in_channels,
        num_classes=num_classes,
        width=width,
        stem=stem,
    )


def resnet20(
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    width: int = 16,
    shortcut: Shortcut = "projection",
) -> ResNet:
    """ResNet-20: a 3x3 convolution and three stages of three basic blocks, 16, 32 and 64 channels.

    The network of He et al., section 4.2, for CIFAR. The paper uses the shortcut without parameters
    (``"identity"``, 0.27 M parameters); the default here is the projection, which is 1 % larger and
    is made of convolutions only.

    Args:
        in_channels: channels of the images.
        num_classes: size of the output.
        width: channels of the first stage.
        shortcut: ``"projection"`` or ``"identity"``; see :class:`ResNet`.

    >>> sum(p.numel() for p in resnet20().parameters())
    272474
    >>> sum(p.numel() for p in resnet20(shortcut="identity").parameters())
    269722
    >>> resnet20(in_channels=1).eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return ResNet(
        BasicBlock,
        (3, 3, 3),
        in_channels=in_channels,
        num_classes=num_classes,
        width=width,
        stem="small",
        shortcut=shortcut,
    )
