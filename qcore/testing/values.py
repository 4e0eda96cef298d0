"""The values that the contracts of observers and fake quantizers are tried on."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..config import QScheme
from ..dtypes import INT2, INT4, INT8, INT8_NARROW, UINT4, UINT8
from ..errors import QcoreError
from ..granularity import PerBlock, PerChannel, PerGroup, PerToken
from .contract import ContractViolation

__all__ = [
    "EXTREMES",
    "SCHEMES",
    "SHAPE",
    "accepted",
    "draw",
    "layouts",
    "one_of_each_granularity",
    "places",
]

SHAPE = (2, 16)
"""A tensor of this shape has scales of every scheme of :data:`SCHEMES`."""

SCHEMES = (
    QScheme(dtype=UINT8, symmetric=False),
    QScheme(dtype=INT8),
    QScheme(dtype=INT2),
    QScheme(dtype=UINT4, symmetric=False),
    QScheme(dtype=INT8_NARROW, granularity=PerChannel(0)),
    QScheme(dtype=UINT4, granularity=PerChannel(-1), symmetric=False),
    QScheme(dtype=INT4, granularity=PerGroup(8)),
    QScheme(dtype=UINT8, granularity=PerBlock((2, 8)), symmetric=False),
    QScheme(dtype=INT4, granularity=PerToken()),
)
"""2 to 8 bits, signed and unsigned, symmetric and affine, of every granularity."""


def accepted(make: Callable[[QScheme], object], who: str) -> list[QScheme]:
    """The schemes that a contribution takes; one that it does not it refuses when it is made.

    Raises:
        ContractViolation: it takes none of them.
    """
    found, refusals = [], []
    for scheme in SCHEMES:
        try:
            make(scheme)
        except QcoreError as error:
            refusals.append(f"{scheme.describe()}: {error}")
        else:
            found.append(scheme)
    if not found:
        raise ContractViolation(f"{who} refuses every scheme that it was given; {refusals[0]}")
    return found


def one_of_each_granularity(schemes: Iterable[QScheme]) -> list[QScheme]:
    """The first scheme of each granularity, for laws that have nothing to do with the integers."""
    found: dict[type, QScheme] = {}
    for scheme in schemes:
        found.setdefault(type(scheme.granularity), scheme)
    return list(found.values())


def draw(seed: int, *shape: int) -> Tensor:
    """Values with a long tail on both sides, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of a tensor of two dimensions or more, laid out in memory in other ways."""
    yield "strided", torch.stack([x, x + 1e9], dim=-1)[..., 0]
    yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    yield "offset", torch.cat([x.reshape(-1)[:3], x.reshape(-1)])[3:].reshape(x.shape)
    if x.ndim == 4:
        yield "channels-last", x.contiguous(memory_format=torch.channels_last)


def places(
    scheme: QScheme, shape: tuple[int, ...] = SHAPE
) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Some of the parts of a tensor that have a scale of their own.

    Yields:
        Index of the scale, flat; and where its values are.
    """
    block = scheme.granularity.block_shape(shape)
    counts = [n // b for n, b in zip(shape, block, strict=True)]
    total = torch.Size(counts).numel()
    for index in sorted({0, total // 2, total - 1}):
        position = []
        rest = index
        for count, size in zip(reversed(counts), reversed(block), strict=True):
            rest, at = divmod(rest, count)
            position.append(slice(at * size, (at + 1) * size))
        yield index, tuple(reversed(position))


EXTREMES = {
    "one value": torch.tensor([0.7]),
    "one value below zero": torch.tensor([-0.7]),
    "a scalar": torch.tensor(0.7),
    "zeros": torch.zeros(100),
    "a negative zero": torch.tensor([-0.0]),
    "a constant": torch.full((200,), 3.3),
    "the largest float32": torch.tensor([-3.4e38, 3.4e38, 1e38, 1.0]),
    "denormal numbers": torch.tensor([1e-45, -1e-42, 5e-40]),
    "huge and denormal": torch.tensor([3e38, -1e-45, 1e-45]),
    "a relu6": draw(0, 2000).clamp(0, 6),
    "one spike among zeros": torch.cat([torch.zeros(999), torch.tensor([1000.0])]),
    "values far from zero": 1000 + draw(1, 300),
}
"""Tensors that a range is hard to find for."""
