"""Products of two activations, as products of int8 matrices."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from qcore import FLOAT32_EXACT

from ..values import storage_of
from .finish import Finish
from .isa import has_vnni
from .kernel import Kernel

__all__ = ["MatMul"]

_MATMUL = torch.ops.qcore.qmatmul.default
_BYTES = (torch.int8, torch.uint8)


class MatMul(Kernel):
    """``qmatmul`` by oneDNN's product of int8 matrices, one matrix of the batch at a time.

    uint8 operands are shifted by 128, and zero points go in afterwards:

        sum((a - za) * (b - zb)) = sum(a * b) - zb * sum(a) - za * sum(b) + K * za * zb

    All of it is exact in int32, and in float32 as long as the result stays below ``2**24``. Longer
    sums, vectors and operands that broadcast run as they are defined.
    """

    label: ClassVar[str] = "onednn int8 matmul"
    inputs: ClassVar[tuple[str, ...]] = ("a", "b")

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if any(storage_of(given[side]) not in _BYTES for side in ("a", "b")):
            return "an operand is no 8-bit tensor"
        if not has_vnni():
            return "without VNNI, products of 8-bit integers saturate in pairs"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        scale = torch.tensor(given["a_scale"]) * torch.tensor(given["b_scale"])
        self.finish = Finish(given, scale)
        self.given = {key: value for key, value in given.items() if key not in ("a", "b")}
        self.unsigned = [storage_of(given[side]) == torch.uint8 for side in ("a", "b")]
        self.zero_points = [
            given[f"{side}_zero_point"] - (128 if unsigned else 0)
            for side, unsigned in zip(("a", "b"), self.unsigned, strict=True)
        ]
        left, right = (128 + abs(z) for z in self.zero_points)
        self.deepest = FLOAT32_EXACT // (left * right)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        regular = a.ndim == b.ndim > 1 and a.shape[:-2] == b.shape[:-2] and a.numel() and b.numel()
        # Of a single column torch._int_mm takes the wrong stride, and gives another product.
        if not regular or not 1 < a.shape[-1] <= self.deepest:
            return _MATMUL(a=a, b=b, **self.given)  # type: ignore[no-any-return]
        left, right = self._signed(a, 0), self._signed(b.transpose(-1, -2), 1).transpose(-1, -2)
        rows, depth = a.shape[-2:]
        columns = b.shape[-1]
        products = torch.empty((len(left), rows, columns), dtype=torch.int32)
        for x, w, y in zip(left, right, products, strict=True):
            torch._int_mm(x, w, out=y)
        acc = products.to(torch.float32)
        za, zb = self.zero_points
        if zb:
            acc.sub_(left.sum(2, keepdim=True, dtype=torch.int32).mul_(zb).sub_(depth * za * zb))
        if za:
            acc.sub_(right.sum(1, keepdim=True, dtype=torch.int32).mul_(za))
        y = self.finish(acc).to(self.finish.dtype)
        return y.view(*a.shape[:-1], columns)

    def _signed(self, x: Tensor, side: int) -> Tensor:
        """``[..., M, K]`` as contiguous int8 ``[batch, M, K]``."""
        x = x.contiguous().view(-1, *x.shape[-2:])
        return (x ^ 128).view(torch.int8) if self.unsigned[side] else x
