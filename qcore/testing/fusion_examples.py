"""Examples of fusions: those of the author, or made from the names of the pattern's operations."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..specs import FusionSpec
from .contract import ContractViolation, Subject
from .trials import Inputs, examples_of, lively

__all__ = ["fusion_examples"]

_CHANNELS = 4

_SPATIAL = ((), (9,), (6, 5), (5, 4, 3))
"""Sizes behind batch and channels, by their number."""

_CONV: tuple[Callable[..., nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ALONE: tuple[Callable[..., nn.Module], ...] = (
    lambda _: nn.Dropout(0.0),
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_LAYERS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "linear": lambda: nn.Linear(_CHANNELS, _CHANNELS),
        **{f"conv{d}d": partial(_CONV[d], _CHANNELS, _CHANNELS, 3, padding=1) for d in (1, 2, 3)},
        **{
            f"conv_transpose{d}d": partial(_TRANSPOSED[d - 1], _CHANNELS, _CHANNELS, 3, padding=1)
            for d in (1, 2, 3)
        },
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "hardtanh": lambda: nn.Hardtanh(-0.4, 0.9),
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "mish": nn.Mish,
        "elu": nn.ELU,
        "leaky_relu": nn.LeakyReLU,
        "softplus": nn.Softplus,
    }
)
"""What makes a layer that keeps the shape of its input, by the name of its operation."""

_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "add": torch.add,
        "mul": torch.mul,
        "sub": torch.sub,
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "matmul": lambda a, b: torch.matmul(a, b.transpose(-1, -2)),
    }
)
"""Functions of two values of one shape; of matrices too, behind channels."""


class _Chain(nn.Module):
    """The operations of a pattern between two layers, so that they get integers and give them.

    Dropping nothing, or the maximum of one value, changes nothing, and keeps the first layer out of
    the chain.
    """

    def __init__(self, ops: tuple[str, ...], dims: int) -> None:
        super().__init__()
        self.stem = _CONV[dims](3, _CHANNELS, *[1] * bool(dims))
        self.alone = _ALONE[dims](1)
        self.layers = nn.ModuleList(
            nn.Identity()
            if op in _BINARY
            else _NORM[dims](_CHANNELS)
            if op == "batch_norm"
            else _LAYERS[op]()
            for op in ops
        )
        self.head = _CONV[dims](_CHANNELS, 2, *[1] * bool(dims))
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        x = self.alone(self.stem(x))
        other = x.flip(-1)
        for op, layer in zip(self.ops, self.layers, strict=True):
            x = _BINARY[op](x, other) if op in _BINARY else layer(x)
        return self.head(x)  # type: ignore[no-any-return]


def fusion_examples(subject: Subject) -> tuple[tuple[nn.Module, Inputs], ...]:
    """Examples of a fusion, in eval mode.

    Without the author's there is one for each alternative of the step that has the most.

    Raises:
        ContractViolation: the author gave none, and they can't be made from the pattern.
    """
    spec = subject.spec
    assert isinstance(spec, FusionSpec)
    if spec.examples is not None:
        return examples_of(subject)
    steps = [(step,) if isinstance(step, str) else step for step in spec.pattern]
    unknown = {op for step in steps for op in step} - {*_LAYERS, *_BINARY, "batch_norm"}
    if unknown:
        raise ContractViolation(
            f"the kit can make no example of the pattern {spec.target!r}: it does not know "
            f"{', '.join(sorted(unknown))}; give the record examples='package.module:function'"
        )
    found = []
    for number in range(max(map(len, steps))):
        ops = tuple(step[number % len(step)] for step in steps)
        sizes = [int(op[-2]) for op in ops if op[-2:] in ("1d", "2d", "3d")]
        dims = 0 if "linear" in ops else next(iter(sizes), 2)
        found.append((lively(_Chain(ops, dims)), (torch.randn(3, 3, *_SPATIAL[dims]),)))
    return tuple(found)
