"""Several processes that train or calibrate one model, as ``torchrun`` starts them.

What the processes have to agree on besides weights are statistics: those of observers, and the
running ones of BatchNorm. Observers are reduced by their statistics, never by averaging scales: the
scale of two halves of the data is not a function of the halves' scales.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import QuantizationError
from .observer import Observer
from .qfloat_model import quantizers
from .ranks import gather_tensors, world_size

__all__ = ["synchronize_batch_norm", "synchronize_observers"]


def synchronize_observers(model: nn.Module) -> None:
    """Gives the observers of every process the statistics of all, as if one had seen all the data.

    Every process of the default process group must call it. They may have seen different numbers of
    batches, or none. Statistics are merged in the order of the ranks (:meth:`Observer.merge`); this
    matters to moving averages alone, which then equal those of one process that has seen the
    batches of rank 0, then those of rank 1, and so on. Scales and zero points are then found anew.

    From then on these observers stay together: each batch that they observe is merged over the
    processes at once, in every forward, so all processes must observe equally often. Where
    observers are off, as after :func:`qcore.calibrate` (which calls this function), nothing is
    exchanged. Calling it again changes nothing.

    Observers of weights are left alone: the weights are the same everywhere.

    Args:
        model: any module with fake quantizers, the same in all processes, where each observer has
            statistics of its own data; changed in place. Without a process group, or in a group of
            one process, nothing is done.

    Raises:
        QuantizationError: an observer has a state that is no tensor, or one that can't be merged.
    """
    if world_size() == 1:
        return
    # Those that are together already have the same statistics everywhere.
    found = [q for _, q in quantizers(model) if not q.of_weight and not q.observer.synchronized]
    own = {f"{i}.{name}": value for i, q in enumerate(found) for name, value in _state(q.observer)}
    states = [_by_observer(tensors) for tensors in gather_tensors(own)]
    device = next((parameter.device for parameter in model.parameters()), None)
    for i, quantizer in enumerate(found):
        observer = quantizer.observer
        merged = _merged(observer, [state[i] for state in states])
        if merged.seen:
            observer.load_state_dict(merged.state_dict())
            observer.to(device)
            quantizer._stale = True
        observer.synchronized = True


def _state(observer: Observer) -> Sequence[tuple[str, Tensor]]:
    state = observer.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise QuantizationError(
                f"layer {observer.where!r}: {type(observer).__name__} keeps {name!r} as a "
                f"{type(value).__name__}; only tensors travel between processes: register buffers"
            )
    return list(state.items())


def _by_observer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    states: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for path, tensor in tensors.items():
        index, _, name = path.partition(".")
        states[int(index)][name] = tensor
    return states


def _merged(observer: Observer, states: Sequence[Mapping[str, Tensor]]) -> Observer:
    result: Observer | None = None
    for state in states:
        other = copy.deepcopy(observer)
        other.load_state_dict(state)
        result = other if result is None else result.merge(other)
    assert result is not None
    return result


@torch.no_grad()
def synchronize_batch_norm(model: nn.Module) -> None:
    """Averages the running statistics of every BatchNorm over all processes; each must call it.

    Called after every step of a training, it keeps the weights that BatchNorm is folded into, and
    so their rounding, the same everywhere. The mean is that of all examples; the variance is the
    mean of the processes' variances, as torch's own ``DistributedDataParallel`` sees them, which
    takes those of rank 0 instead.

    Args:
        model: the same in all processes; changed in place. Without a process group nothing is done.
    """
    if world_size() == 1:
        return
    found = dict.fromkeys(module for module in model.modules() if isinstance(module, _BatchNorm))
    means = [bn.running_mean for bn in found if bn.running_mean is not None]
    variances = [bn.running_var for bn in found if bn.running_var is not None]
    statistics = [*means, *variances]
    if not statistics:
        return
    flat = torch.cat([t.flatten() for t in statistics])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(
        statistics, torch.split(flat, [t.numel() for t in statistics]), strict=True
    ):
        tensor.copy_(part.reshape(tensor.shape))
