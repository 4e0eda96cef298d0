"""Computing a result a slice of the batch at a time, so that temporaries stay in the cache.

An operation makes several float32 temporaries of four bytes a value for a result of one byte. Over
a whole batch each of them goes through main memory and is allocated afresh; over slices they stay
in the cache, which saves more time than the products take in layers of few channels. Values of
different samples never meet, so the result is the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["fill", "memory_format"]

_SLICE = 2**19
"""Values of the largest tensor of a slice: 2 MiB in float32, about a core's cache."""


def fill(
    out: Tensor, kernel: Callable[..., Tensor], *inputs: Tensor | None, at_least: int = 1
) -> Tensor:
    """``out`` filled with ``kernel(*inputs)``, by slices of dimension 0 on a CPU.

    Args:
        out: receives the result, converted to its dtype; any strides.
        kernel: must not mix values of different indices of dimension 0.
        inputs: those with as many dimensions as ``out`` and its size in dimension 0 are sliced;
            others (None, tensors that broadcast along the batch) are passed whole.
        at_least: fewest indices of a slice, for kernels that read other large tensors every time.

    Returns:
        ``out``.
    """
    sizes = [t.numel() for t in inputs if t is not None and _spans(t, out)]
    batch = out.shape[0] if sizes else 1
    step = max(at_least, _SLICE * batch // max(out.numel(), *sizes, 1))
    if out.device.type != "cpu" or step >= batch:
        return out.copy_(kernel(*inputs))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        slices = [t[part] if t is not None and _spans(t, out) else t for t in inputs]
        out[part].copy_(kernel(*slices))
    return out


def _spans(tensor: Tensor, out: Tensor) -> bool:
    """Whether dimension 0 of the two is the same batch."""
    return tensor.ndim == out.ndim > 0 and tensor.shape[0] == out.shape[0]


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last if ``x`` of shape ``[B, C, *spatial]`` is stored so and not also contiguous.

    Operations on images give their result in the format of their input; kernel and meta kernel both
    ask this function.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(x.ndim)
    if wanted is None or x.is_contiguous() or not x.is_contiguous(memory_format=wanted):
        return torch.contiguous_format
    return wanted
