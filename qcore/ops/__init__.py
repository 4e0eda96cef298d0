"""The operations of Q: the ``torch.ops.qcore`` namespace.

Each operation works on raw integer tensors and carries its scales, zero points and arithmetic
contract as arguments. Its kernel is plain torch, runs on any device and *defines* the result; a
meta kernel gives shapes, dtypes and strides, so programs work under ``torch.export``. Importing
this package registers all of them.
"""

from . import (
    convolution,
    dynamic,
    elementwise,
    embedding,
    linear,
    pooling,
    recurrent,
    storage,
)
from .exact import exact_conv, exact_matmul
from .saturating import saturating_matmul

__all__ = [
    "convolution",
    "dynamic",
    "elementwise",
    "embedding",
    "exact_conv",
    "exact_matmul",
    "linear",
    "pooling",
    "recurrent",
    "saturating_matmul",
    "storage",
]
