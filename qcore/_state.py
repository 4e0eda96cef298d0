"""Buffers whose shape is known only once data was seen, and that a state_dict restores all the
same."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["LateBuffers"]


class LateBuffers(nn.Module):
    """A module whose buffers start as None ("unset") and take the shape that a state_dict brings.

    ``half()``, ``bfloat16()`` and ``double()`` leave the buffers' dtypes as they are: scales and
    statistics are part of the arithmetic, not of the model's precision.
    """

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = (*self._buffers, *self._parameters, "_extra_state")
        if not any(prefix + name in state_dict for name in own):
            # A checkpoint of something else, loaded with strict=False.
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            return
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if not isinstance(saved, Tensor):
                # Saved before anything was seen: loading it means to forget.
                self._buffers[name] = None
            else:
                # Always a new tensor: what was derived from the old one can tell that it is
                # outdated.
                device = self._device() if buffer is None else buffer.device
                dtype = saved.dtype if buffer is None else buffer.dtype
                self._buffers[name] = torch.empty_like(saved, device=device, dtype=dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _device(self) -> torch.device | None:
        known = [t.device for t in (*self.parameters(), *self.buffers())]
        return known[0] if known else None
