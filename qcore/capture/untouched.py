"""Leave a model exactly as it was found, whatever is done with it in between.

A forward may count its calls, cache tensors on itself, write to buffers and draw random numbers. A
capture runs forwards of its own, so all of this is put back afterwards.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["untouched"]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """A context in eval mode and without gradients, after which the model is as it was before.

    Put back: training flags, attributes (also what was added to lists, dicts and sets held by the
    modules), values of buffers and tensor attributes, the switch of torch's attention fast path
    (which is off inside: it would hide the layers from the trace), and the state of the random
    generators of torch, NumPy and Python. Parameters are not copied.
    """
    modules = list(model.modules())
    attributes = [(module, _snapshot(module)) for module in modules]
    values = [(tensor, tensor.clone(), tensor._version) for tensor in _state(modules)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        # train(False) may be overridden to do more than set the flag, so only the flag is set.
        for module in modules:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            torch.random.fork_rng(devices=_cuda_devices(model)),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, snapshot in attributes:
            _restore(module, snapshot)
        with torch.no_grad():
            for tensor, value, version in values:
                if tensor._version != version:
                    tensor.copy_(value)


def _state(modules: list[nn.Module]) -> Iterator[Tensor]:
    """The tensors that a forward may write to: buffers, and plain attributes."""
    for module in modules:
        yield from module.buffers(recurse=False)
        yield from (value for value in module.__dict__.values() if isinstance(value, Tensor))


def _snapshot(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute with a shallow copy of it where it is a container that can change."""
    return {
        name: (value, value.copy() if isinstance(value, list | dict | set) else None)
        for name, value in module.__dict__.items()
    }


def _restore(module: nn.Module, snapshot: dict[str, tuple[Any, Any]]) -> None:
    state = module.__dict__
    for name in [name for name in state if name not in snapshot]:
        del state[name]
    for name, (value, content) in snapshot.items():
        state[name] = value
        if content is None or _same(value, content):
            continue
        value.clear()
        if isinstance(value, list):
            value.extend(content)
        else:
            value.update(content)


def _same(value: Any, content: Any) -> bool:
    """Whether a container still holds the very objects, in order, that it held."""
    if len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(a is b and value[a] is content[b] for a, b in zip(value, content, strict=True))
    return all(a is b for a, b in zip(value, content, strict=True))


def _cuda_devices(model: nn.Module) -> list[int]:
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
