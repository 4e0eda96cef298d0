"""Average pools and means."""

import re
from typing import Any, ClassVar, Self

from torch import Tensor, fx

from qcore import Builder, Match, QConfig, QFloatOp, Quantizers, QValue, Step

from .call import FloatCall

__all__ = ["QFloatAdaptiveAvgPool", "QFloatAvgPool", "QFloatMean"]


class _Pool(QFloatOp):
    """An average over values, repeated in float by the call itself."""

    def __init__(self, step: Step, *, dims: int) -> None:
        super().__init__()
        self.call = FloatCall(step)
        self.dims = dims
        self.options = _options(step)

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        return cls(match.first, dims=_dims(match.first))

    def compute(self, *xs: Tensor) -> Tensor:
        return self.call(*xs)  # type: ignore[no-any-return]

    def many(self, value: Any) -> list[int]:
        """A number or a sequence as one number a dimension."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        return [int(v) for v in (values * self.dims if len(values) == 1 else values)]


class QFloatAvgPool(_Pool):
    """``avg_pool1d``, ``2d`` and ``3d``."""

    program_op: ClassVar[str] = "qavg_pool"

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        given = self.options
        kernel = self.many(given["kernel_size"])
        y = b.call(
            "qavg_pool",
            x.value,
            x.scale,
            x.zero_point,
            kernel,
            self.many(given["stride"]) if given.get("stride") else kernel,
            self.many(given.get("padding", 0)),
            bool(given.get("ceil_mode", False)),
            bool(given.get("count_include_pad", True)),
            given.get("divisor_override"),
            *self.output_args(),
        )
        return self.result(y)


class QFloatAdaptiveAvgPool(_Pool):
    """``adaptive_avg_pool1d``, ``2d`` and ``3d``."""

    program_op: ClassVar[str] = "qadaptive_avg_pool"

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        size = _options(match.first)["output_size"]
        if any(n is None for n in (size if isinstance(size, list | tuple) else [size])):
            return "output_size=None keeps a size of the input; write the size as a number"
        return super().why_not(match, qconfig)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        size = self.many(self.options["output_size"])
        y = b.call("qadaptive_avg_pool", x.value, x.scale, x.zero_point, size, *self.output_args())
        return self.result(y)


class QFloatMean(_Pool):
    """``mean`` over some dimensions, or all."""

    program_op: ClassVar[str] = "qmean"

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        if match.first.arguments.get("dtype") is not None:
            return "it asks for a dtype"
        return super().why_not(match, qconfig)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        dim = self.options.get("dim")
        dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
        keepdim = bool(self.options.get("keepdim", False))
        y = b.call("qmean", x.value, x.scale, x.zero_point, dims, keepdim, *self.output_args())
        return self.result(y)


_SETTINGS = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
    "output_size",
)


def _options(step: Step) -> dict[str, Any]:
    if step.module is not None:
        return {k: getattr(step.module, k) for k in _SETTINGS if hasattr(step.module, k)}
    # Without the input: a node holds on to its graph, which an operation must not copy with it.
    return {k: v for k, v in step.arguments.items() if not isinstance(v, fx.Node)}


def _dims(step: Step) -> int:
    """Spatial dimensions, from the name: ``AvgPool2d`` or ``aten.avg_pool2d.default``; else 0."""
    names = [step.kind.removesuffix(".default")]
    if step.module is not None:
        names = [
            cls.__name__ for cls in type(step.module).__mro__ if cls.__module__.startswith("torch.")
        ]
    found = (re.search(r"[pP]ool([123])d$", name) for name in names)
    return next((int(m[1]) for m in found if m), 0)
