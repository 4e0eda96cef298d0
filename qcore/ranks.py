"""The processes that work on one model: how many there are, and their tensors.

A process that :mod:`torch.distributed` knows nothing of is the only one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from .errors import QuantizationError

__all__ = ["failing_together", "gather_tensors", "rank", "world_size"]


def world_size() -> int:
    """Number of processes of the default process group; 1 where there is none."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if _initialized() else 0


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def failing_together(what: str) -> Iterator[None]:
    """Lets an exception of one process end the block in all of them; each process must enter it.

    Otherwise the others would wait for it, in the next exchange, until that times out.

    Args:
        what: the work of the block, in a word, for the error of the others.

    Raises:
        QuantizationError: the block failed elsewhere; its own exception is raised where it failed.
    """
    if world_size() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    # Whatever it is, it is raised again below.
    except Exception as error:
        failure = error
    words = "" if failure is None else f"{type(failure).__name__}: {failure}"
    said: list[str] = [""] * world_size()
    dist.all_gather_object(said, words)
    if failure is not None:
        raise failure
    for number, reason in enumerate(said):
        if reason:
            raise QuantizationError(
                f"{what} failed in process {number} of {len(said)}: {reason}. All processes stop; "
                "look at that one's data"
            )


def gather_tensors(tensors: Mapping[str, Tensor]) -> Sequence[dict[str, Tensor]]:
    """The tensors of every process, in the order of the ranks; each process must call it.

    Names, shapes and dtypes may differ between processes. They travel as safetensors, in two
    collective operations whatever their number.

    Args:
        tensors: of this process, on any device.

    Returns:
        One mapping a rank, with tensors on the CPU.
    """
    if world_size() == 1:
        return [{name: tensor.detach().cpu() for name, tensor in tensors.items()}]
    # NCCL moves tensors of the current GPU only.
    device = torch.device("cpu" if "gloo" in dist.get_backend() else "cuda")
    # Cloned, because tensors that share memory can't be saved as such.
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    message = torch.frombuffer(bytearray(safetensors.torch.save(own)), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([message.numel()], device=device))
    longest = max(int(size) for size in sizes)
    received = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in sizes]
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: message.numel()] = message
    dist.all_gather(received, padded)
    return [
        safetensors.torch.load(data[: int(size)].cpu().numpy().tobytes())
        for data, size in zip(received, sizes, strict=True)
    ]
