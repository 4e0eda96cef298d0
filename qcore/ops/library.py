"""Registration of an operation: schema, reference kernel and meta kernel in one place."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["OUTPUT_ARGS", "define"]

_LIBRARY = torch.library.Library("qcore", "DEF")  # type: ignore[no-untyped-call]

OUTPUT_ARGS = (
    "float y_scale, int y_zero_point, int y_min, int y_max, ScalarType y_dtype, str numerics"
)
"""How every computing operation describes its output: qparams, clamp, storage, contract.

``y_dtype=float32`` asks for the float result instead, ``float32(acc) * float32(sx * sw)``; then the
other five are ignored but for the contract.
"""


def define(schema: str, *, meta: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Registers ``qcore::<schema>`` with the decorated function as its kernel on every device."""
    name = schema.partition("(")[0]

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        own = _undisturbed(kernel)
        _LIBRARY.impl(name, own, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"qcore::{name}", meta, lib=_LIBRARY)
        return kernel

    return register


def _undisturbed(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel without gradients and without autocast, which would round its exact sums."""

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        first = args[0] if isinstance(args[0], Tensor) else args[0][0]
        device = first.device.type
        with torch.no_grad():
            if not torch.is_autocast_enabled(device):
                return kernel(*args)
            with torch.autocast(device, enabled=False):
                return kernel(*args)

    return call
