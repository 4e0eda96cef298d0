"""The contracts of fake quantizers.

A fake quantizer is made as ``cls(scheme=..., observer=..., where=..., **options)``, for each scheme
that it takes, is given scales and zero points, and tried in training and in eval mode on values
inside of the range, beyond its ends and half-way between two integers. In eval mode, and by these
contracts in training too, its values are those of the one formula

    q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max)
    x_hat = (q - zero_point) * scale

A method that trains with other values, as stochastic rounding does, declares it.
"""

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Self

import attrs
import torch
from torch import Tensor

from ..config import QScheme
from ..errors import QcoreError
from ..fake_quantize import FakeQuantize
from ..granularity import PerChannel, PerTensor
from ..numerics import dequantize_tensor, quantize_tensor
from ..observer import Observer
from ..qparams import QParams, expand
from .contract import Contract, NotApplicable, Subject, contract, require
from .values import SHAPE, accepted, draw, layouts, one_of_each_granularity

__all__ = ["CONTRACTS"]

_WHERE = "block.fc"


class _Extremes(Observer):
    """The smallest and the largest value: an observer of no plug-in, for whatever is tried."""

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__(scheme=scheme, where=where)
        self.low: Tensor | None
        self.high: Tensor | None
        self.register_buffer("low", None)
        self.register_buffer("high", None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self.low = min_val if self.low is None else torch.minimum(self.low, min_val)
        self.high = max_val if self.high is None else torch.maximum(self.high, max_val)

    def combine(self, other: Self) -> None:
        assert other.low is not None
        assert other.high is not None
        self.update(other.low, other.low, other.high)

    def range(self) -> tuple[Tensor, Tensor]:
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


@attrs.frozen(kw_only=True)
class _Case:
    """A fake quantizer in training, its qparams, and values to try it on.

    Args:
        given: the case in words.
        fake: does not observe.
        qparams: what it says that its qparams are.
        x: float32 ``SHAPE``.
    """

    given: str
    fake: FakeQuantize
    qparams: QParams
    x: Tensor

    def due(self, x: Tensor) -> Tensor:
        """The value of the formula."""
        return dequantize_tensor(quantize_tensor(x, self.qparams), self.qparams).to(x.dtype)

    @property
    def scale(self) -> Tensor:
        """Of each value of ``x``."""
        scale = expand(self.qparams.scale, self.qparams.scheme.granularity, self.x.shape)
        return scale.expand_as(self.x)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest ``q - zero_point`` of each value of ``x``, float32."""
        scheme = self.qparams.scheme
        zero_point = expand(self.qparams.zero_point, scheme.granularity, self.x.shape)
        zero_point = zero_point.expand_as(self.x)
        return (
            (scheme.dtype.quant_min - zero_point).float(),
            (scheme.dtype.quant_max - zero_point).float(),
        )


def _fresh(subject: Subject, scheme: QScheme) -> FakeQuantize:
    observer = _Extremes(scheme=scheme, where=_WHERE)
    fake: FakeQuantize = subject.make(scheme=scheme, observer=observer, where=_WHERE)
    return fake


def _schemes(subject: Subject) -> list[QScheme]:
    return accepted(lambda scheme: _fresh(subject, scheme), f"fake_quant {subject.name}")


def _settings(scheme: QScheme) -> Iterator[QParams]:
    """Qparams of a scheme: with a power of two, at which ties are exact, and without; with odd
    zero points and with those at the ends."""
    shape = torch.Size(scheme.granularity.scale_shape(SHAPE))
    dtype, count = scheme.dtype, shape.numel()
    middle = (dtype.quant_min + dtype.quant_max) // 2 | 1
    points = [middle, dtype.quant_min, dtype.quant_max] if not scheme.symmetric else [0]
    factors = torch.rand(count, generator=torch.Generator().manual_seed(5)) + 0.5
    for first, scales in enumerate((torch.full((count,), 0.125), 0.1 * factors)):
        zero_points = [points[(first + i) % len(points)] for i in range(count)]
        yield QParams(
            scale=scales.reshape(shape),
            zero_point=torch.tensor(zero_points, dtype=torch.int32).reshape(shape),
            scheme=scheme,
        )


def _started(subject: Subject, qparams: QParams) -> FakeQuantize:
    fake = _fresh(subject, qparams.scheme)
    fake.observer_enabled = False
    fake.set_qparams(qparams)
    return fake.train()


def _cases(subject: Subject, schemes: list[QScheme] | None = None) -> Iterator[_Case]:
    for scheme in _schemes(subject) if schemes is None else schemes:
        for setting in _settings(scheme):
            fake = _started(subject, setting)
            qparams = fake.qparams()
            case = _Case(given="", fake=fake, qparams=qparams, x=torch.zeros(SHAPE))
            low, high = case.ends
            place = torch.rand(SHAPE, generator=torch.Generator().manual_seed(6)) * 1.4 - 0.2
            steps = low + place * (high - low)
            # Every other value is half-way between two integers.
            steps[:, ::2] = steps[:, ::2].floor() + 0.5
            steps[:, 1] = 0
            given = f"{scheme.describe()}, scale {_short(qparams.scale)}, zero point "
            given += _short(qparams.zero_point)
            yield attrs.evolve(case, given=given, x=steps * case.scale)


def _few(subject: Subject) -> Iterator[_Case]:
    """Cases of one scheme of each granularity."""
    return _cases(subject, one_of_each_granularity(_schemes(subject)))


def _values(fake: FakeQuantize, x: Tensor, *, training: bool) -> Tensor:
    """Values in a mode; those that are drawn at random are drawn alike each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        y: Tensor = fake.train(training)(x.clone())
    return y


def _gradient(fake: FakeQuantize, x: Tensor, incoming: Tensor, *, training: bool) -> Tensor:
    torch.manual_seed(3)
    x = x.detach().clone().requires_grad_()
    fake.train(training)(x).backward(incoming)
    require(x.grad is not None, "an input that requires a gradient got none")
    assert x.grad is not None
    return x.grad


def _mode(training: bool) -> str:
    return "in training" if training else "in eval mode"


def _short(value: Tensor) -> str:
    if value.numel() > 4:
        return f"{value.flatten()[:4].tolist()}... {list(value.shape)}"
    return str(value.tolist())


def _require_equal(given: str, x: Tensor, y: Tensor, due: Tensor) -> None:
    require(
        y.shape == due.shape and y.dtype == due.dtype,
        f"{given}: {y.dtype} {list(y.shape)} came; due is {due.dtype} {list(due.shape)}",
    )
    _require_all(given, x, y, due, y == due)


def _require_all(given: str, x: Tensor, y: Tensor, due: Tensor, good: Tensor) -> None:
    if bool(good.all()):
        return
    at = (~good).nonzero()[0].tolist()
    require(
        False,
        f"{given}: {x[tuple(at)].item()} becomes {y[tuple(at)].item()}; due is "
        f"{due[tuple(at)].item()} ({int((~good).sum())} of {good.numel()} values are wrong, the "
        f"first at {at})",
    )


@contract("fake_quant", "Scales from another tool or a checkpoint must be those that are used.")
def qparams_are_kept(subject: Subject) -> int:
    cases = 0
    for scheme in _schemes(subject):
        for setting in _settings(scheme):
            scale, zero_point = setting.scale.clone(), setting.zero_point.clone()
            found = _started(subject, setting).qparams()
            require(
                found.scheme == scheme
                and found.scale.shape == scale.shape
                and torch.allclose(found.scale, scale, rtol=1e-5, atol=0)
                and torch.equal(found.zero_point, zero_point),
                f"{scheme.describe()}: scale {_short(scale)} and zero point {_short(zero_point)} "
                f"were set, and it says {_short(found.scale)} and {_short(found.zero_point)}",
            )
            cases += 1
    return cases


@contract("fake_quant", "What calibration found is where simulation and training start.")
def qparams_come_from_the_observer(subject: Subject) -> int:
    cases = 0
    for scheme in _schemes(subject):
        fake = _fresh(subject, scheme).eval()
        fake(draw(0, *SHAPE))
        due, found = fake.observer.calculate_qparams(), fake.qparams()
        require(
            torch.allclose(found.scale, due.scale, rtol=1e-5, atol=0)
            and torch.equal(found.zero_point, due.zero_point),
            f"{scheme.describe()}: the observer answers scale {_short(due.scale)}, zero point "
            f"{_short(due.zero_point)}; it uses {_short(found.scale)}, {_short(found.zero_point)}",
        )
        cases += 1
    return cases


@contract("fake_quant", "A layer that was never calibrated must not get an invented scale.")
def uncalibrated_refuses(subject: Subject) -> int:
    cases = 0
    for scheme in _schemes(subject):
        for training in (True, False):
            fake = _fresh(subject, scheme).train(training)
            fake.observer_enabled = False
            given = f"{scheme.describe()}, {_mode(training)}, without scale or observed values"
            try:
                fake(draw(0, *SHAPE))
            except QcoreError as error:
                named = _WHERE in str(error)
                require(named, f"{given}: the error does not name the place {_WHERE!r}: {error}")
            else:
                require(False, f"{given}: it gave values; due is a QuantizationError")
            require(not fake.calibrated, f"{given}: `calibrated` is true")
            cases += 1
    return cases


@contract("fake_quant", "QFloat in eval mode must compute the integers that are deployed.")
def eval_equals_quantize_then_dequantize(subject: Subject) -> int:
    return _equals_the_formula(subject, training=False)


@contract("fake_quant", "A model trained on other values than it is deployed with loses accuracy.")
def training_equals_quantize_then_dequantize(subject: Subject) -> int:
    return _equals_the_formula(subject, training=True)


def _equals_the_formula(subject: Subject, *, training: bool) -> int:
    cases = 0
    for case in _cases(subject):
        y = _values(case.fake, case.x, training=training)
        _require_equal(f"{case.given}, {_mode(training)}", case.x, y, case.due(case.x))
        cases += 1
    return cases


@contract("fake_quant", "A value between two integers of the dtype can't be deployed.")
def values_lie_on_the_lattice(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        for training in (True, False):
            y = _values(case.fake, case.x, training=training)
            _require_on_lattice(f"{case.given}, {_mode(training)}", case, y)
            cases += 1
    return cases


def _require_on_lattice(given: str, case: _Case, y: Tensor) -> None:
    low, high = case.ends
    steps = y / case.scale
    due = torch.minimum(torch.maximum(steps.round(), low), high) * case.scale
    near = (y - due).abs() <= 1e-3 * case.scale
    _require_all(f"{given}, nearest value of the dtype", case.x, y, due, near)


@contract("fake_quant", "Padding and relu give exact zeros, which must stay what they are.")
def zero_is_exact(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        zero = torch.zeros(SHAPE)
        for training in (True, False):
            y = _values(case.fake, zero, training=training)
            _require_equal(f"{case.given}, {_mode(training)}", zero, y, zero)
            cases += 1
    return cases


@contract("fake_quant", "A value that wraps around instead of saturating ruins a layer.")
def values_outside_are_clipped(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        low, high = (end * case.scale for end in case.ends)
        for far in (1e4, torch.inf):
            for x, due in ((-far * torch.ones(SHAPE), low), (far * torch.ones(SHAPE), high)):
                for training in (True, False):
                    y = _values(case.fake, x, training=training)
                    _require_equal(f"{case.given}, {_mode(training)}", x, y, due)
                    cases += 1
    return cases


@contract("fake_quant", "A larger error than that of rounding is a bias of every layer.")
def error_is_at_most_half_a_step(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        low, high = case.ends
        x = torch.minimum(torch.maximum(case.x / case.scale, low), high) * case.scale
        for training in (True, False):
            y = _values(case.fake, x, training=training)
            most = case.scale / 2 * (1 + 1e-5) + x.abs() * 2.0**-22
            near = (y - x).abs() <= most
            given = f"{case.given}, {_mode(training)}, values within the range"
            _require_all(given, x, y, case.due(x), near)
            cases += 1
    return cases


@contract("fake_quant", "An order of values that quantization turns round turns decisions round.")
def quantizing_is_monotone(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        for training in (True, False):
            before = _values(case.fake, case.x, training=training)
            for part in (0.01, 0.5, 1.0, 30.0):
                larger = case.x + part * case.scale
                y = _values(case.fake, larger, training=training)
                given = f"{case.given}, {_mode(training)}, values {part} steps larger, which must "
                given += "not become smaller"
                _require_all(given, larger, y, before, y >= before)
                cases += 1
    return cases


@contract("fake_quant", "Values that cross two quantizers of one scale must not drift.")
def quantizing_is_idempotent(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        for training in (True, False):
            once = _values(case.fake, case.x, training=training)
            twice = _values(case.fake, once, training=training)
            given = f"{case.given}, {_mode(training)}, values that are quantized already"
            _require_equal(given, once, twice, once)
            cases += 1
    return cases


@contract(
    "fake_quant",
    "Training needs the gradient of the identity inside of the range, and none where it clips.",
)
def gradient_is_clipped_straight_through(subject: Subject) -> int:
    cases = 0
    for case in _cases(subject):
        low, high = case.ends
        u = case.x / case.scale
        # Methods differ in the half step beyond the last integer, which still rounds to it.
        inside = (u > low + 0.01) & (u < high - 0.01)
        outside = (u < low - 0.51) | (u > high + 0.51)
        incoming = draw(8, *SHAPE)
        due = torch.where(inside, incoming, 0.0)
        for training in (True, False):
            found = _gradient(case.fake, case.x, incoming, training=training)
            good = (found == due) | ~(inside | outside)
            given = f"{case.given}, {_mode(training)}, gradient by x of {_short(incoming)}"
            _require_all(given, case.x, found, due, good)
            cases += 1
    return cases


def _learned(subject: Subject) -> Iterator[_Case]:
    cases = [case for case in _few(subject) if list(case.fake.parameters())]
    if not cases:
        raise NotApplicable("it has no parameters")
    yield from cases


@contract("fake_quant", "A parameter without a gradient is not learned; NaN in one ends training.")
def learned_parameters_get_gradients(subject: Subject) -> int:
    cases = 0
    for case in _learned(subject):
        x = case.x.detach().clone().requires_grad_()
        (case.fake.train()(x) * draw(8, *SHAPE)).sum().backward()
        for name, parameter in case.fake.named_parameters():
            grad = parameter.grad
            given = f"{case.given}: the gradient by {name!r}"
            require(grad is not None, f"{given} is missing")
            assert grad is not None
            require(bool(torch.isfinite(grad).all()), f"{given} is {_short(grad)}; due are numbers")
            require(
                bool((grad != 0).any()),
                f"{given} is zero, though values lie inside and outside of the range",
            )
            cases += 1
    return cases


@contract("fake_quant", "What is deployed must be what was trained.")
def qparams_follow_learned_parameters(subject: Subject) -> int:
    cases = 0
    for case in _learned(subject):
        with torch.no_grad():
            for parameter in case.fake.parameters():
                parameter.mul_(1.1).add_(0.05)
        new = attrs.evolve(case, qparams=case.fake.qparams())
        given = f"{case.given}, parameters 1.1 times as large and 0.05 more"
        require(
            not torch.equal(new.qparams.scale, case.qparams.scale)
            or not torch.equal(new.qparams.zero_point, case.qparams.zero_point),
            f"{given}: the qparams are what they were",
        )
        y = _values(case.fake, case.x, training=False)
        _require_equal(f"{given}, in eval mode", case.x, y, new.due(case.x))
        _require_on_lattice(f"{given}, in training", new, _values(case.fake, case.x, training=True))
        cases += 1
    return cases


@contract("fake_quant", "The float value may be used elsewhere, as in a residual connection.")
def input_stays_unchanged(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        for training in (True, False):
            x = case.x.clone()
            with torch.no_grad():
                case.fake.train(training)(x)
            given = f"{case.given}, {_mode(training)}: the input itself, afterwards"
            _require_equal(given, case.x, x, case.x)
            cases += 1
    return cases


@contract("fake_quant", "Inference that moves scales gives another answer the second time.")
def forward_keeps_the_state(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        for training in (True, False):
            before = copy.deepcopy(case.fake.state_dict())
            first = _values(case.fake, case.x, training=training)
            _values(case.fake, case.x * 100, training=training)
            given = f"{case.given}, {_mode(training)}, observer off"
            for name, value in case.fake.state_dict().items():
                require(
                    torch.equal(value, before[name]),
                    f"{given}: forward changed {name!r} from {_short(before[name])} to "
                    f"{_short(value)}",
                )
            again = _values(case.fake, case.x, training=training)
            _require_equal(f"{given}, the same input after others", case.x, again, first)
            cases += 1
    return cases


@contract("fake_quant", "Half and double precision models keep their dtype from layer to layer.")
def other_float_dtypes_are_kept(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            x = case.x.to(dtype)
            due, given = case.due(x), f"{case.given}, {dtype}"
            y = _values(case.fake, x, training=False)
            _require_equal(f"{given}, in eval mode", x, y, due)
            y = _values(case.fake, x, training=True)
            require(y.dtype == dtype, f"{given}, in training: {y.dtype} came; due is {dtype}")
            most = case.scale * 1.01 + due.abs() * 2.0**-7
            near = (y.double() - due.double()).abs() <= most
            _require_all(f"{given}, in training, to a step", x, y, due, near)
            grad = _gradient(case.fake, x, torch.ones_like(x), training=True)
            require(grad.dtype == dtype, f"{given}: a gradient of {grad.dtype}; due is {dtype}")
            cases += 1
    return cases


@contract("fake_quant", "Views and channels-last tensors hold the same values.")
def memory_layout_does_not_matter(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        incoming = draw(8, *SHAPE)
        grad = _gradient(case.fake, case.x, incoming, training=True)
        for name, x in layouts(case.x):
            given = f"{case.given}, a {name} tensor"
            # Cloned they would be contiguous, so they are given as they are.
            with torch.no_grad():
                y, trained = case.fake.eval()(x), case.fake.train()(x)
            _require_equal(f"{given}, in eval mode", case.x, y, case.due(case.x))
            # Random rounding may fall otherwise, but not by more than a step.
            near = (trained - case.due(case.x)).abs() <= case.scale * 1.01
            _require_all(
                f"{given}, in training, to a step", case.x, trained, case.due(case.x), near
            )
            leaf = x.detach().requires_grad_()
            case.fake(leaf).backward(incoming)
            assert leaf.grad is not None
            _require_equal(f"{given}, gradient by x", case.x, leaf.grad, grad)
            cases += 1
    return cases


@contract("fake_quant", "An empty batch, the last of a shard, must pass like any other.")
def empty_tensors_pass(subject: Subject) -> int:
    fitting = [
        scheme
        for scheme in _schemes(subject)
        if isinstance(scheme.granularity, PerTensor) or scheme.granularity == PerChannel(-1)
    ]
    if not fitting:
        raise NotApplicable("it takes no scheme whose scales an empty batch fits")
    cases = 0
    for case in _cases(subject, fitting):
        for training in (True, False):
            for observing in (True, False):
                case.fake.observer_enabled = observing
                x = torch.empty(0, SHAPE[1], requires_grad=True)
                y = case.fake.train(training)(x)
                y.sum().backward()
                require(
                    y.shape == x.shape and y.dtype == x.dtype,
                    f"{case.given}, {_mode(training)}, an empty tensor {list(x.shape)}: "
                    f"{y.dtype} {list(y.shape)} came",
                )
                cases += 1
    return cases


@contract("fake_quant", "Calibration, float baselines and training each need their own switches.")
def switches_are_obeyed(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        for training in (True, False):
            for observing in (False, True):
                for quantizing in (False, True):
                    fake = copy.deepcopy(case.fake).train(training)
                    fake.observer_enabled, fake.fake_quant_enabled = observing, quantizing
                    y = fake(case.x)
                    given = f"{case.given}, {_mode(training)}, observer_enabled={observing}, "
                    given += f"fake_quant_enabled={quantizing}"
                    require(
                        fake.observer.seen == observing,
                        f"{given}: the observer has {'' if fake.observer.seen else 'not '}seen it",
                    )
                    changed = not torch.equal(y, case.x)
                    require(
                        changed == quantizing,
                        f"{given}: the values are {'' if changed else 'not '}changed",
                    )
                    cases += 1
    return cases


@contract("fake_quant", "A model in training with frozen observers must keep them frozen.")
def train_and_eval_keep_the_switches(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(_schemes(subject)):
        fake = _fresh(subject, scheme)
        require(
            fake.observer_enabled and fake.fake_quant_enabled,
            f"{scheme.describe()}: a new one must have both switches on",
        )
        for switches in ((True, True), (True, False), (False, True), (False, False)):
            fake.observer_enabled, fake.fake_quant_enabled = switches
            for call in (fake.train, fake.eval, fake.train):
                call()
                found = fake.observer_enabled, fake.fake_quant_enabled
                require(
                    found == switches,
                    f"{scheme.describe()}: {call.__name__}() moved observer_enabled and "
                    f"fake_quant_enabled from {switches} to {found}",
                )
            cases += 1
    return cases


@contract("fake_quant", "A checkpoint must restore the scales, the statistics and the switches.")
def state_dict_round_trip(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        old = case.fake
        old.observe(case.x)
        # Learned ones go on with their parameters, others with what was observed last.
        old.qparams()
        for switches in ((False, True), (True, True), (True, False)):
            old.observer_enabled, old.fake_quant_enabled = switches
            new = _sent(old, _fresh(subject, old.scheme))
            found = new.observer_enabled, new.fake_quant_enabled
            given = f"{case.given}, a fresh one with the saved state"
            require(found == switches, f"{given}: switches {found}; due are {switches}")
        _require_behaves_alike(given, case.x, old, new)
        forgotten = _sent(_fresh(subject, old.scheme), new)
        require(
            not forgotten.calibrated,
            f"{case.given}: the state of an uncalibrated one was loaded, and `calibrated` is true",
        )
        cases += 1
    return cases


def _sent(old: FakeQuantize, new: FakeQuantize) -> FakeQuantize:
    stream = io.BytesIO()
    torch.save(old.state_dict(), stream)
    stream.seek(0)
    new.load_state_dict(torch.load(stream, weights_only=True))
    return new


def _require_behaves_alike(given: str, x: Tensor, due: FakeQuantize, found: FakeQuantize) -> None:
    for fake in (due, found):
        fake.observer_enabled, fake.fake_quant_enabled = False, True
    p, q = due.qparams(), found.qparams()
    require(
        torch.equal(p.scale, q.scale) and torch.equal(p.zero_point, q.zero_point),
        f"{given}: scale {_short(q.scale)}, zero point {_short(q.zero_point)}; due are "
        f"{_short(p.scale)}, {_short(p.zero_point)}",
    )
    for training in (True, False):
        wanted, y = (_values(fake, x, training=training) for fake in (due, found))
        _require_equal(f"{given}, {_mode(training)}", x, y, wanted)


@contract("fake_quant", "A copy of a model that is trained further must not change the first.")
def deepcopy_is_independent(subject: Subject) -> int:
    cases = 0
    for case in _few(subject):
        other, kept = copy.deepcopy(case.fake), _sent(case.fake, _fresh(subject, case.fake.scheme))
        _require_behaves_alike(f"{case.given}, a deep copy", case.x, case.fake, other)
        doubled = QParams(
            scale=case.qparams.scale * 2,
            zero_point=case.qparams.zero_point,
            scheme=case.qparams.scheme,
        )
        other.observe(case.x * 10)
        other.set_qparams(doubled)
        _values(other, case.x, training=True)
        given = f"{case.given}, after its deep copy was given other scales"
        _require_behaves_alike(given, case.x, kept, case.fake)
        require(not case.fake.observer.seen, f"{given}: its observer has seen what the copy saw")
        cases += 1
    return cases


@contract("fake_quant", "Training and inference under torch.compile must give the same numbers.")
def compiles(subject: Subject) -> int:
    import torch._dynamo

    if not torch._dynamo.is_dynamo_supported():
        raise NotApplicable("torch.compile does not work on this machine")
    cases = 0
    case = next(_cases(subject))
    incoming = draw(8, *SHAPE)
    try:
        # What torch's compiler itself uses and deprecates is not the plug-in's doing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for training in (True, False):
                torch._dynamo.reset()
                compiled = torch.compile(case.fake.train(training), backend="eager")
                x = case.x.clone().requires_grad_(training)
                torch.manual_seed(3)
                y = compiled(x)
                given = f"{case.given}, {_mode(training)}, compiled"
                plain = _values(case.fake, case.x, training=training)
                _require_equal(given, case.x, y.detach(), plain)
                if training:
                    y.backward(incoming)
                    assert x.grad is not None
                    due = _gradient(case.fake, case.x, incoming, training=True)
                    _require_equal(f"{given}, gradient by x", case.x, x.grad, due)
                cases += 1
    finally:
        torch._dynamo.reset()
    return cases


CONTRACTS: tuple[Contract, ...] = (
    qparams_are_kept,
    qparams_come_from_the_observer,
    uncalibrated_refuses,
    eval_equals_quantize_then_dequantize,
    training_equals_quantize_then_dequantize,
    values_lie_on_the_lattice,
    zero_is_exact,
    values_outside_are_clipped,
    error_is_at_most_half_a_step,
    quantizing_is_monotone,
    quantizing_is_idempotent,
    gradient_is_clipped_straight_through,
    learned_parameters_get_gradients,
    qparams_follow_learned_parameters,
    input_stays_unchanged,
    forward_keeps_the_state,
    other_float_dtypes_are_kept,
    memory_layout_does_not_matter,
    empty_tensors_pass,
    switches_are_obeyed,
    train_and_eval_keep_the_switches,
    state_dict_round_trip,
    deepcopy_is_independent,
    compiles,
)
