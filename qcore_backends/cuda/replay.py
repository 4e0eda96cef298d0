"""Whole programs as one launch: CUDA graphs.

A network at a small batch is a hundred short kernels, and starting each from Python takes longer
than running it. A CUDA graph records the kernels of one call with their operands, and starts them
all at once. It is a record of one call: sizes, dtypes and addresses are those of that call.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from qcore import BackendError

from .device import interpreted

__all__ = ["GraphReplay"]

_Signature = tuple[Any, ...]


class GraphReplay(nn.Module):
    """A lowered model that replays its kernels for inputs of recorded sizes.

    The first call with an example's sizes was recorded; a later one copies its inputs into those of
    the record, starts it, and gives a copy of its results. Inputs of any other sizes, dtypes or
    plain values run as they did before, kernel by kernel.

    A record has memory of its own, as much as one call takes, which no other record or model uses.
    Calls from several streams or threads take turns, because they share it; a model that is to run
    on several streams at once needs a ``GraphReplay`` for each.

    Args:
        model: lowered to backend ``cuda``; not to be changed afterwards.
        examples: calls to record: a tensor, or a tuple of arguments, each on the GPU of the model.

    Raises:
        BackendError: there is no GPU; the model can't be recorded, because it reads values back
            while it runs.

    Example::

        lowered = qcore.lower(q.to("cuda"), "cuda")
        fast = GraphReplay(lowered, x)
        y = fast(x)
    """

    def __init__(self, model: nn.Module, *examples: Any) -> None:
        super().__init__()
        self.model = model
        self._records: dict[_Signature, Callable[[list[Tensor]], Any]] = {}
        if interpreted() or not torch.cuda.is_available():
            raise BackendError(
                "CUDA graphs need a GPU; without one call the lowered model itself, which gives "
                "the same results"
            )
        for example in examples:
            args = example if isinstance(example, tuple) else (example,)
            signature, tensors = _signature(args)
            elsewhere = next((t.device for t in tensors if t.device.type != "cuda"), None)
            if elsewhere is not None:
                raise BackendError(
                    f"an example lies on {elsewhere}; a CUDA graph is of a program that was on the "
                    "GPU when it was lowered: qcore.lower(q.to('cuda'), 'cuda'), x.to('cuda')"
                )
            self._records[signature] = _recorded(model, args, tensors)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        signature, tensors = _signature(args)
        record = self._records.get(signature)
        return self.model(*args) if record is None else record(tensors)


def _signature(args: tuple[Any, ...]) -> tuple[_Signature, list[Tensor]]:
    """What a record holds for, and the tensors that may change from call to call."""
    leaves, spec = pytree.tree_flatten(args)
    # With its type, because 1, 1.0 and True are equal.
    parts = [
        (leaf.device, leaf.dtype, leaf.shape, leaf.stride())
        if isinstance(leaf, Tensor)
        else (type(leaf), leaf)
        for leaf in leaves
    ]
    return (str(spec), *parts), [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@torch.no_grad()
def _recorded(
    model: nn.Module, args: tuple[Any, ...], tensors: list[Tensor]
) -> Callable[[list[Tensor]], Any]:
    """A call of the model as a function of its tensors."""
    places = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
    given = iter(places)
    static = pytree.tree_map_only(Tensor, lambda _: next(given), args)
    device = places[0].device if places else torch.device("cuda")
    with torch.cuda.device(device):
        # Compiling and choosing tiles can't be recorded, so it is done before, and twice: what
        # libraries set up at first use is then there.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                model(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = model(*static)
        except RuntimeError as error:
            raise BackendError(
                f"the model can't be recorded as a CUDA graph ({str(error).splitlines()[0]}); "
                "operations on the reference kernels may read values back while they run: "
                "qcore.lowered_info(model) names them. Call the model itself, or record the parts "
                "that run on kernels of the backend"
            ) from error

    lock, done = threading.Lock(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    def replay(inputs: list[Tensor]) -> Any:
        with lock, torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            # The call before may still run, on another stream, in the same memory.
            stream.wait_event(done)
            for place, value in zip(places, inputs, strict=True):
                place.copy_(value)
            graph.replay()
            # The next replay overwrites the results of the record.
            results = pytree.tree_map_only(Tensor, Tensor.clone, outputs)
            done.record(stream)
        return results

    return replay
