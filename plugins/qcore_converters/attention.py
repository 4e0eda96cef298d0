"""Scaled dot-product attention: two integer products with the softmax in float between them.

    scores = (q @ k^T) * scale (+ mask)        float32, from an int32 accumulator
    p      = softmax(scores)                   float32, then rounded to integers of its own scale
    y      = p @ v                             int32 accumulator, one rounding

References:
    Vaswani et al., 2017, section 3.2.1 <https://arxiv.org/abs/1706.03762>
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qcore import (
    Builder,
    Eager,
    FakeQuantize,
    Match,
    Numerics,
    QConfig,
    QFloatOp,
    QuantizationError,
    Quantizers,
    QValue,
)

from .matmul import QFloatMatmul, largest, overflow

__all__ = ["QFloatAttention"]

aten = torch.ops.aten


class QFloatAttention(QFloatOp):
    """``torch.nn.functional.scaled_dot_product_attention`` of quantized query, key and value.

    Args:
        where: name of the layer.
        scale: what scores are multiplied with.
        repeats: query heads a head of key and value; 1 without grouped queries.
        causal: a query sees no key behind its own place.
        mask: dtype of the mask that follows the three inputs; None without.
        width: values a head, the terms of a score; None where they are known at run time.
        probabilities: quantizer of the result of the softmax.
    """

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qmatmul"

    def __init__(
        self,
        where: str,
        *,
        scale: float,
        repeats: int,
        causal: bool,
        mask: torch.dtype | None,
        width: int,
        probabilities: FakeQuantize,
    ) -> None:
        super().__init__()
        self.where = where
        self.scale = scale
        self.repeats = repeats
        self.causal = causal
        self.mask = mask
        self.width = width
        self.probabilities = probabilities

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        given = match.first.arguments
        if given.get("dropout_p"):
            return "it drops values at random"
        if not all(isinstance(n, int) for n in (*_width(match), *_heads(match))):
            return "its number of heads, or of values a head, is known only at run time"
        return QFloatMatmul.why_not(match, qconfig)

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        return QFloatMatmul.why_not_by(numerics, qconfig)

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        given = match.first.arguments
        (width,) = _width(match)
        heads = _heads(match)
        scale = given.get("scale")
        return cls(
            quantizers.where,
            scale=1 / math.sqrt(width) if scale is None else float(scale),
            repeats=heads[0] // heads[1] if given.get("enable_gqa") else 1,
            causal=bool(given.get("is_causal")),
            mask=match.plain[0].meta["val"].dtype if match.plain else None,
            width=width,
            probabilities=quantizers.activation("probabilities"),
        )

    def inner_quantizers(self) -> Iterator[FakeQuantize]:
        yield self.probabilities

    def compute(self, *xs: Tensor) -> Tensor:
        query, key, value, *mask = xs
        if self.repeats > 1:
            key, value = (t.repeat_interleave(self.repeats, -3) for t in (key, value))
        p = self._softmax(Eager(), query @ key.transpose(-2, -1), *mask)
        return self.probabilities(p) @ value  # type: ignore[no-any-return]

    def emit(self, b: Builder, *xs: QValue) -> Any:
        query, key, value, *mask = xs
        reason = overflow(self.width, largest(query), largest(key))
        if reason is not None:
            raise QuantizationError(f"layer {self.where!r}: {reason}")
        if self.repeats > 1:
            key, value = (
                t.replace(b.function(aten.repeat_interleave.self_int, t.value, self.repeats, -3))
                for t in (key, value)
            )
        key = key.replace(b.function(aten.transpose.int, key.value, -2, -1))
        to_float = (1.0, 0, 0, 0, torch.float32, self.numerics.key)
        scores = b.call("qmatmul", *_operand(query), *_operand(key), *to_float)
        p = self.integers(b, self._softmax(b, scores, *mask), self.probabilities.qparams())
        return self.result(b.call("qmatmul", *_operand(p), *_operand(value), *self.output_args()))

    def _softmax(self, b: Builder, products: Any, *mask: Any) -> Any:
        """Probabilities from products. A query that sees no key has zeros, as in torch."""
        scores = b.function(aten.mul.Tensor, products, self.scale)
        hidden = []
        if self.causal:
            seen = b.function(aten.tril.default, b.function(aten.ones_like.default, scores))
            hidden.append(b.function(aten.eq.Scalar, seen, 0))
        if mask and self.mask == torch.bool:
            hidden.append(b.function(aten.logical_not.default, *mask))
        elif mask:
            scores = b.function(aten.add.Tensor, scores, *mask)
        for places in hidden:
            scores = b.function(aten.masked_fill.Scalar, scores, places, -math.inf)
        safe = aten._safe_softmax.default if hidden or mask else aten.softmax.int
        return b.function(safe, scores, -1)


def _operand(x: QValue) -> tuple[Any, float, int]:
    return x.value, x.scale, x.zero_point


def _width(match: Match) -> tuple[Any]:
    return (match.inputs[0].meta["val"].shape[-1],)


def _heads(match: Match) -> tuple[Any, ...]:
    """Heads of query and of key; of no account without a dimension for them."""
    shapes = [node.meta["val"].shape for node in match.inputs[:2]]
    if not match.first.arguments.get("enable_gqa"):
        return (1, 1)
    return tuple(shape[-3] for shape in shapes)
