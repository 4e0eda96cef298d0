"""Embedding tables as integers: rows are looked up, and made float where they are used."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from qcore import (
    Builder,
    FakeQuantize,
    Match,
    PerChannel,
    PerGroup,
    PerTensor,
    QConfig,
    QFloatOp,
    QScheme,
    QuantizationError,
    Quantizers,
    QValue,
    pack,
    quantize_tensor,
)

__all__ = ["QFloatEmbedding", "QFloatEmbeddingBag"]


class QFloatEmbedding(QFloatOp):
    """``nn.Embedding``: integers a row or a group of a row, float32 out.

    There is nothing to compute but the lookup, so activations have no part in it: the next layer's
    quantizer rounds what it takes.

    Args:
        table: the float module.
        quantizer: of its weight, whose channels are the rows.
    """

    anchor: ClassVar[bool] = True
    weight_only: ClassVar[bool] = True
    program_op: ClassVar[str] = "qembedding"

    def __init__(self, table: nn.Embedding | nn.EmbeddingBag, *, quantizer: FakeQuantize) -> None:
        super().__init__()
        # The same Parameter object, so layers that share the table go on sharing it.
        self.register_parameter("weight", table.weight)  # type: ignore[arg-type]
        self.padding_idx = table.padding_idx
        self.weight_quantizer = quantizer

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        table = match.first.module
        assert table is not None
        assert qconfig.weight is not None
        if not isinstance(table._parameters.get("weight"), nn.Parameter):
            return "its weight is computed from other parameters; make it a parameter first"
        if table.max_norm is not None:
            return "max_norm changes its rows in place while they are looked up"
        scheme = qconfig.weight.scheme
        assert isinstance(scheme, QScheme)
        if not isinstance(scheme.granularity, PerTensor | PerChannel | PerGroup):
            return (
                f"weight scheme {scheme.describe()}: a table takes per-tensor, per-channel (a row) "
                "or per-group scales"
            )
        assert isinstance(table.weight, Tensor)
        try:
            scheme.granularity.block_shape(table.weight.shape)
        except QuantizationError as error:
            raise QuantizationError(
                f"layer {match.name!r} ({match.first.kind}, weight {list(table.weight.shape)}): "
                f"{error}; an override for this layer can set another scheme"
            ) from None
        return None

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        table = match.first.module
        assert isinstance(table, nn.Embedding | nn.EmbeddingBag)
        return cls(table, quantizer=quantizers.weight(0))

    def weight_quantizers(self) -> Iterator[tuple[FakeQuantize, Tensor]]:
        assert isinstance(self.weight, Tensor)
        yield self.weight_quantizer, self.weight

    def quantized(self) -> Tensor:
        """The fake-quantized table; an observer that is on sees this table and no earlier one."""
        if self.weight_quantizer.observer_enabled:
            self.weight_quantizer.observer.reset()
        return self.weight_quantizer(self.weight)  # type: ignore[no-any-return]

    def compute(self, *xs: Tensor) -> Tensor:
        return F.embedding(xs[0], self.quantized(), self.padding_idx)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        return b.call("qembedding", xs[0], *self._stored(b))

    def _stored(self, b: Builder) -> list[Any]:
        """Table, scale, zero point, bits, sign and columns as operations of Q take them."""
        assert isinstance(self.weight, Tensor)
        qparams = self.weight_quantizer.qparams()
        dtype, q = qparams.scheme.dtype, quantize_tensor(self.weight, qparams)
        bits = dtype.bits if dtype.packable else 8
        zero_point = qparams.zero_point if bool(qparams.zero_point.any()) else None
        return [
            b.constant("weight", pack(q, bits) if bits < 8 else q),
            b.constant("weight_scale", qparams.scale),
            None if zero_point is None else b.constant("weight_zero_point", zero_point),
            bits,
            dtype.signed,
            q.shape[1],
        ]


class QFloatEmbeddingBag(QFloatEmbedding):
    """``nn.EmbeddingBag``: sums, means and maxima of rows, in float32.

    Args:
        table: the float module.
        quantizer: of its weight.
        given: which of ``input``, ``offsets`` and ``per_sample_weights`` it is called with.
    """

    program_op: ClassVar[str] = "qembedding_bag"

    def __init__(
        self, table: nn.EmbeddingBag, *, quantizer: FakeQuantize, given: tuple[str, ...] = ()
    ) -> None:
        super().__init__(table, quantizer=quantizer)
        self.mode = table.mode
        self.include_last_offset = table.include_last_offset
        self.given = given

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        table = match.first.module
        assert isinstance(table, nn.EmbeddingBag)
        given = tuple(k for k, v in match.first.arguments.items() if v is not None)
        return cls(table, quantizer=quantizers.weight(0), given=given)

    def _called_with(self, xs: tuple[Any, ...]) -> list[Any]:
        """Index, offsets and weights; None for what is not given."""
        values = dict(zip(self.given, xs, strict=True))
        return [values.get(k) for k in ("input", "offsets", "per_sample_weights")]

    def compute(self, *xs: Tensor) -> Tensor:
        index, offsets, weights = self._called_with(xs)
        return F.embedding_bag(
            index,
            self.quantized(),
            offsets,
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )

    def emit(self, b: Builder, *xs: QValue) -> Any:
        last = (self.mode, self.include_last_offset, self.padding_idx)
        return b.call("qembedding_bag", *self._called_with(xs), *self._stored(b), *last)
