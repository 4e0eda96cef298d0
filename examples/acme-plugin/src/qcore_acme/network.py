"""A small network with what this plug-in converts: convolutions with SiLU, and a gated layer."""

from torch import Tensor, nn

from .gated_linear import GatedLinear

__all__ = ["GatedNet"]


class GatedNet(nn.Module):
    """Two convolutions with BatchNorm and SiLU, pooling, a gated layer and a classifier.

    Args:
        width: channels of the first convolution; the second has twice as many.
        num_classes: size of the result.

    >>> import torch
    >>> GatedNet(width=4).eval()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.gated = GatedLinear(8 * width, 2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 1, 8, 8]`` to logits ``[B, num_classes]``."""
        y: Tensor = self.head(self.gated(self.features(x)))
        return y
