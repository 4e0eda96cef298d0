"""What BatchNorm does with the statistics of a batch, in the two forms that a layer simulates.

References:
    Jacob et al., 2018, section 3.2 <https://arxiv.org/abs/1712.05877>
    Krishnamoorthi, 2018, section 3.2.2 <https://arxiv.org/abs/1806.08342>
"""

import torch
from torch import Tensor, nn

__all__ = ["apart", "batch_factor", "running_factor", "update_statistics"]


def apart(x: Tensor) -> Tensor:
    """``x``, computed once under torch.compile, and kept for backward.

    Where the compiler puts a small tensor and a large one that needs it into one loop, it computes
    the small one again for each value of the large one. And backward may compute it again from its
    sources: a running statistic has moved by then, and gradients would silently be those of the
    next step; torch 2.11 to 2.13 do not see that.
    """
    return snapshot(x) if torch.compiler.is_compiling() else x


@torch.library.custom_op("qcore_converters::snapshot", mutates_args=())
def snapshot(x: Tensor) -> Tensor:
    """A copy by an operation that is not torch's own, which the compiler leaves as it is."""
    return x.clone()


@snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def running_factor(bn: nn.Module) -> Tensor:
    """``gamma / sqrt(running_var + eps)``, ``[C]``, detached and of this moment."""
    var, gamma, eps = bn.running_var, bn.weight, bn.eps
    assert isinstance(var, Tensor)
    assert isinstance(eps, float)
    factor = torch.rsqrt(apart(var) + eps)
    return factor * gamma.detach() if isinstance(gamma, Tensor) else factor


def batch_factor(bn: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift by which BatchNorm maps ``y``, ``[B, C, *spatial]``, with this batch.

    Updates the running statistics, as BatchNorm itself does.

    Returns:
        ``gamma / sqrt(var + eps)`` and ``beta - mean * factor``, both ``[C]`` with gradients.
    """
    dims = [i for i in range(y.ndim) if i != 1]
    var, mean = torch.var_mean(y, dims, correction=0)
    update_statistics(bn, mean.detach(), var.detach(), y.numel() // y.shape[1])
    eps = bn.eps
    assert isinstance(eps, float)
    factor = torch.rsqrt(var + eps)
    if isinstance(bn.weight, Tensor):
        factor = factor * bn.weight
    shift = -mean * factor
    return factor, shift + bn.bias if isinstance(bn.bias, Tensor) else shift


@torch.no_grad()
def update_statistics(bn: nn.Module, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics of a BatchNorm towards those of a batch.

    Args:
        bn: a BatchNorm with running statistics.
        mean, var: ``[C]``, of the batch; the variance not corrected.
        count: values a channel; the running variance is the corrected one.
    """
    running_mean, running_var, seen = bn.running_mean, bn.running_var, bn.num_batches_tracked
    assert isinstance(running_mean, Tensor)
    assert isinstance(running_var, Tensor)
    assert isinstance(seen, Tensor)
    seen.add_(1)
    # Without momentum it is the average of all batches.
    weight = 1.0 / seen if bn.momentum is None else bn.momentum
    assert isinstance(weight, float | Tensor)
    running_mean.lerp_(mean, weight)
    running_var.lerp_(var * (count / max(count - 1, 1)), weight)
