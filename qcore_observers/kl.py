"""The observer that minimizes the Kullback-Leibler divergence of the quantized values."""

from torch import Tensor

from qcore import QScheme, QuantizationError

from .counting import CountingObserver
from .divergence import range_of_least_divergence
from .dyadic import power_of_two

__all__ = ["KlObserver"]

_BINS_MIN = 2048
_BINS_A_STEP = 32


class KlObserver(CountingObserver):
    """Range whose quantized values lose least information; entropy calibration.

    Both ends are clipped at one magnitude. See :mod:`qcore_observers.divergence` for what is
    minimized.

    Bounded state, exact merge: see :class:`~qcore_observers.counting.CountingObserver`, which also
    explains the option ``sample``.

    Args:
        scheme: what :meth:`calculate_qparams` answers for; per tensor or per channel.
        where: the place it observes, for error messages.
        bins: number of bins of a row; by default 32 for each integer of the dtype, at least 2048.
            At least 8 for each integer are needed, because what is lost is seen only within a step.

    Raises:
        QuantizationError: an option is out of range; too few bins; the granularity has too many
        rows.

    References:
        Migacz, 2017, "8-bit inference with TensorRT", GPU Technology Conference
        <https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf>

    >>> import torch
    >>> from qcore import UINT8
    >>> observer = KlObserver(scheme=QScheme(dtype=UINT8, symmetric=False))
    >>> _ = observer(torch.distributions.Exponential(1.0).icdf(torch.linspace(0, 1 - 1e-6, 100000)))
    >>> [round(end.item()) for end in observer.range()]  # the largest value is 13.8
    [0, 11]
    """

    def __init__(
        self,
        *,
        scheme: QScheme,
        where: str = "",
        bins: int | None = None,
        sample: int | None = 8192,
    ) -> None:
        integers = scheme.dtype.quant_max - scheme.dtype.quant_min + 1
        if bins is None:
            bins = max(_BINS_MIN, _BINS_A_STEP * integers)
        super().__init__(scheme=scheme, where=where, bins=bins, sample=sample)
        if bins < 8 * integers:
            raise QuantizationError(
                f"{self._place()}: bins={bins} for the {integers} integers of {scheme.dtype.name}; "
                f"use at least {8 * integers}, or the observer histogram"
            )

    def range(self) -> tuple[Tensor, Tensor]:
        # Zeros are exact in every quantizer; counted, they would forbid to merge their bin with
        # others.
        seen = self.tally().without_zeros()
        return range_of_least_divergence(
            seen.counts,
            seen.edges(),
            *seen.ends,
            width=power_of_two(seen.exponent),
            scheme=self.scheme,
        )
