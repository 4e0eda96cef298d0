"""The base of fake quantizers whose scale or zero point is trained with the model."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import attrs
import torch
from torch import Tensor, nn

from .config import QScheme
from .errors import QuantizationError
from .fake_quantize import FakeQuantize
from .granularity import PerToken
from .observer import Observer
from .qparams import QParams, expand

__all__ = ["LearnedFakeQuantize"]


class LearnedFakeQuantize(FakeQuantize):
    """Base of fake quantizers that learn: their qparams follow from parameters.

    The parameters begin as None. The first :meth:`set_qparams` (that is, ``qcore.calibrate``, a
    loaded ``state_dict``, or the first forward with an observer that has seen values) makes them.
    So an optimizer is built **after** calibration: one that was built before does not know them.
    A later :meth:`set_qparams` writes into the same parameters, which optimizers go on knowing.

    The observer only starts them. What it sees later changes nothing, until ``qcore.calibrate`` or
    :meth:`set_qparams` starts them anew.

    An author names the parameters in :attr:`learned` and writes

    - :meth:`start`: their first values, from qparams;
    - :meth:`current`: scale and zero point, from the parameters;
    - :meth:`simulate`: values and gradients in training.

    A layer whose weight is multiplied by a factor a channel, as by that of BatchNorm, says so with
    :meth:`set_unit`. The parameters are then about the weight without it, ``x / unit``: a method
    learns at the same rates whatever the factor is, and the scale follows where the factor moves.

    Args: as of :class:`FakeQuantize`.

    Attributes:
        learned: names of the parameters, in float32.
        powers_of_two: whether the method keeps the scale a power of two where the scheme asks.
        zero_point: the one that calibration found, for methods that do not learn it.
        unit: what the scale that follows from the parameters is multiplied by; None for nothing.

    Raises:
        QuantizationError: the scheme has a scale for each row of a batch, or powers of two that the
            method does not keep.
    """

    unit: Tensor | None

    learned: ClassVar[tuple[str, ...]] = ()
    powers_of_two: ClassVar[bool] = False

    def __init__(self, *, scheme: QScheme, observer: Observer, where: str = "") -> None:
        super().__init__(scheme=scheme, observer=observer, where=where)
        name = type(self).__name__
        if isinstance(scheme.granularity, PerToken):
            raise QuantizationError(
                f"layer {where!r}: {name} can't learn {scheme.describe()}: rows come and go with "
                "the batch; use per_tensor, per_channel, per_group or per_block"
            )
        if scheme.power_of_two and not self.powers_of_two:
            raise QuantizationError(
                f"layer {where!r}: {name} learns any scale, and {scheme.describe()} asks for "
                "powers of two; use fake_quant 'tqt', or leave power_of_two out of the scheme"
            )
        self._known: tuple[tuple[int, int], ...] = ()
        self._known_unit: Tensor | None = None
        self.register_buffer("unit", None)
        for parameter in self.learned:
            self.register_parameter(parameter, None)

    # What an author writes.

    @abstractmethod
    def start(self, qparams: QParams) -> Mapping[str, Tensor]:
        """First value of each parameter, float32, shaped like ``qparams.scale``."""

    @abstractmethod
    def current(self) -> tuple[Tensor, Tensor]:
        """Positive float32 scale, and zero point as integers in any dtype."""

    @abstractmethod
    def simulate(self, x: Tensor) -> Tensor:
        """Values of ``x`` on the lattice of :meth:`current`, with the method's gradients by ``x``
        and by the parameters."""

    # What the base class does with it.

    @property
    def started(self) -> bool:
        """Whether the parameters exist."""
        return all(self._parameters[name] is not None for name in self.learned)

    @property
    def calibrated(self) -> bool:
        return self.started or self.observer.seen

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.fake_quant_enabled and self.started):
            return super().forward(x)
        # Without the qparams: checking them would wait for the device at every step.
        if self.observer_enabled:
            self.observe(x)
        return self._simulate(x)

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return self._simulate(x)

    def _simulate(self, x: Tensor) -> Tensor:
        if self.unit is None:
            return self.simulate(x)
        unit = expand(self.unit, self.scheme.granularity, x.shape)
        return self.simulate(x / unit) * unit

    def set_unit(self, unit: Tensor) -> None:
        """Says what the values to come were multiplied by, on top of what the parameters are about.

        Where the scheme asks for powers of two this changes nothing: scales that follow a factor
        are none.

        Args:
            unit: positive float32, shaped like the scale; gets no gradient.
        """
        if not self.scheme.power_of_two:
            self.unit = unit.detach()

    @torch.no_grad()
    def qparams(self) -> QParams:
        """What the parameters stand for now; detached.

        Raises:
            QuantizationError: nothing was set and nothing observed, or training has made a
                parameter NaN or infinite; names the layer.
        """
        if not self.started:
            self.observer.require_seen()
            self.set_qparams(self.observer.calculate_qparams())
        parameters = [self._parameters[name] for name in self.learned]
        sources = [t for t in (*parameters, self.zero_point) if t is not None]
        known = tuple((id(t), t._version) for t in sources)
        # By identity: a new unit may lie where an old one did.
        same = known == self._known and self.unit is self._known_unit
        if self._current is None or not same:
            scale, zero_point = self.current()
            if self.unit is not None:
                scale = scale * self.unit
            if not bool(torch.isfinite(scale).all()):
                raise QuantizationError(
                    f"layer {self.where!r}: training made the learned scale NaN or infinite; use a "
                    "smaller learning rate for the scales, or look for NaN and Inf in the loss"
                )
            self._current = QParams(
                scale=scale.detach().clone(),
                zero_point=zero_point.detach().to(torch.int32, copy=True),
                scheme=self.scheme,
            )
            self._known = known
            self._known_unit = self.unit
        return self._current

    @torch.no_grad()
    def set_qparams(self, qparams: QParams) -> None:
        """Starts the parameters from qparams; see :meth:`FakeQuantize.set_qparams`."""
        super().set_qparams(qparams)
        self.scale = None
        if self.unit is not None:
            qparams = attrs.evolve(qparams, scale=qparams.scale / self.unit)
        for name, value in self.start(qparams).items():
            old = self._parameters[name]
            if old is None or old.shape != value.shape:
                self._parameters[name] = nn.Parameter(value.detach().clone())
            else:
                old.copy_(value)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        names = (*self._buffers, *self.learned, "_extra_state")
        if any(prefix + name in state_dict for name in names):
            for name in self.learned:
                saved, old = state_dict.get(prefix + name), self._parameters[name]
                if not isinstance(saved, Tensor):
                    # Saved before it was started: loading it means to forget.
                    self._parameters[name] = None
                elif old is None or old.shape != saved.shape:
                    device = self._device() if old is None else old.device
                    empty = torch.empty_like(saved, device=device, dtype=torch.float32)
                    self._parameters[name] = nn.Parameter(empty)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self._parameters[name] for name in self.learned}
        values = {name: p.detach() for name, p in before.items() if p is not None}
        super()._apply(fn, recurse)
        for name, old in values.items():
            new = self._parameters[name]
            if new is not None and new.dtype != old.dtype:
                new.data = old.to(new.device)
        self._current = None
        return self
