"""A training that several processes share, as ``torchrun`` starts them.

Each process works on its slice of every batch, and gradients are averaged. Because the slices have
one size, the mean of their losses is the loss of the whole batch.
"""

from collections.abc import Iterable
from typing import Any, Self

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from qcore import RecipeError

__all__ = ["Ranks"]


@attrs.frozen(kw_only=True)
class Ranks:
    """The processes of the default process group.

    Args:
        rank: number of this process, from 0.
        size: how many there are; 1 without a process group.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Self:
        """Those that this process belongs to."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def require_equal(self, words: str, *, what: str, cure: str) -> None:
        """Raises RecipeError if the processes do not all say the same."""
        said: list[Any] = [None] * self.size
        if self.size > 1:
            dist.all_gather_object(said, words)
            if len(set(said)) > 1:
                raise RecipeError(f"qat: {what} differs between the {self.size} processes; {cure}")

    def share(self, batch: Tensor) -> Tensor:
        """The examples of a batch that are this process's."""
        return batch[self.rank :: self.size]

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total.item() / self.size

    def of_first(self, value: float, device: torch.device) -> float:
        """The number of rank 0, in every process: machines may differ in the last digits."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return shared.item()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over all processes, in one collective operation.

        Not by ``DistributedDataParallel``: it is bound to the parameters that learn when it is
        made, and here scales and fake quantizers are switched on and off along the way.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.reshape(gradient.shape))
