"""What the base class of fake quantizers does for every author of one."""

import copy
from typing import Self

import pytest
import torch
from torch import Tensor, nn

from qcore import (
    INT8,
    UINT8,
    FakeQuantize,
    Observer,
    PerChannel,
    QParams,
    QScheme,
    QuantizationError,
    dequantize_tensor,
    quantize_tensor,
    straight_through,
)

SCHEME = QScheme(dtype=UINT8, symmetric=False)


class Largest(Observer):
    """Range from 0 to the largest value; counts how often it is asked."""

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__(scheme=scheme, where=where)
        self.register_buffer("largest", None)
        self.asked = 0

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self.largest = max_val if self.largest is None else torch.maximum(self.largest, max_val)

    def combine(self, other: Self) -> None:
        self.largest = torch.maximum(self.largest, other.largest)

    def range(self) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return torch.zeros_like(self.largest), self.largest


class Doubling(FakeQuantize):
    """Returns the double, so that its work can be told from the formula's; gradient 2."""

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return 2 * x


def fresh(*, scheme: QScheme = SCHEME, where: str = "block.1") -> Doubling:
    return Doubling(scheme=scheme, observer=Largest(scheme=scheme, where=where), where=where)


def calibrated(largest: float = 25.5) -> Doubling:
    """One with scale 0.1 that no longer observes."""
    fake = fresh()
    fake(torch.tensor([largest]))
    fake.observer_enabled = False
    return fake


def qparams(scale: float, scheme: QScheme = SCHEME) -> QParams:
    return QParams(
        scale=torch.tensor(scale), zero_point=torch.tensor(0, dtype=torch.int32), scheme=scheme
    )


X = torch.tensor([-1.0, 0.04, 0.06, 3.33, 99.0])


def formula(x: Tensor, p: QParams) -> Tensor:
    return dequantize_tensor(quantize_tensor(x, p), p)


def test_eval_is_the_one_formula_whatever_the_method() -> None:
    """In eval mode the values are those of the integers, not of the author's method."""
    fake = calibrated().eval()
    assert torch.equal(fake(X), formula(X, fake.qparams()))


def test_training_is_the_method() -> None:
    """In training the author's method decides value and gradient."""
    fake = calibrated().train()
    x = X.clone().requires_grad_()
    y = fake(x)
    y.sum().backward()
    assert torch.equal(y, 2 * x)
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 5


def test_eval_with_a_gradient_has_the_values_of_eval_and_the_gradient_of_training() -> None:
    """Attribution and fine-tuning in eval mode see the deployed values."""
    fake = calibrated().eval()
    x = X.clone().requires_grad_()
    y = fake(x)
    assert torch.equal(y, formula(X, fake.qparams()))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 5
    with torch.no_grad():
        assert not fake(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_eval_keeps_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    """Values are computed as always and rounded to the input's dtype."""
    fake = calibrated().eval()
    y = fake(X.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, formula(X.to(dtype), fake.qparams()).to(dtype))


def test_the_four_combinations_of_the_switches() -> None:
    """Each switch does its part alone."""
    for observe in (False, True):
        for quantize in (False, True):
            fake = calibrated(25.5).eval()
            fake.observer_enabled, fake.fake_quant_enabled = observe, quantize
            y = fake(torch.tensor([51.0]))
            top = 51.0 if observe else 25.5
            assert y.item() == pytest.approx(top if quantize else 51.0)
            assert fake.qparams().scale.item() == pytest.approx(top / 255)


def test_without_quantization_the_input_itself_passes() -> None:
    """Neither a copy nor qparams are made; also before anything was calibrated."""
    fake = fresh()
    fake.observer_enabled = fake.fake_quant_enabled = False
    assert fake(X) is X
    assert not fake.calibrated


def test_the_observer_is_asked_once_after_it_has_seen_values() -> None:
    """Not at every forward: a search for the range may take long."""
    fake = fresh()
    fake.fake_quant_enabled = False
    for _ in range(3):
        fake(X)
    assert fake.observer.asked == 0
    fake.observer_enabled, fake.fake_quant_enabled = False, True
    for _ in range(3):
        fake(X)
    assert fake.observer.asked == 1
    fake.observe(torch.tensor([500.0]))
    assert fake.qparams().scale.item() == pytest.approx(500 / 255)
    assert fake.observer.asked == 2


def test_an_empty_batch_leaves_the_qparams() -> None:
    """Nothing was seen, so what was set from outside stays."""
    fake = calibrated()
    fake.set_qparams(qparams(0.5))
    fake.observer_enabled = True
    fake(torch.empty(0))
    assert fake.qparams().scale.item() == 0.5


def test_uncalibrated_is_an_error_that_names_the_layer() -> None:
    """No silent scale of 1."""
    fake = fresh(where="layer3.conv2")
    fake.observer_enabled = False
    with pytest.raises(QuantizationError, match=r"layer 'layer3\.conv2'.*seen no values"):
        fake(X)
    assert not fake.calibrated


def test_qparams_from_outside_count_until_something_is_observed() -> None:
    """set_qparams ends a pending refresh; a later observation starts another."""
    fake = fresh()
    fake.observe(torch.tensor([25.5]))
    fake.set_qparams(qparams(0.5))
    assert fake.calibrated
    assert fake.qparams().scale.item() == 0.5
    fake.observe(torch.tensor([51.0]))
    assert fake.qparams().scale.item() == pytest.approx(0.2)


def test_qparams_from_outside_are_copied() -> None:
    """Changing the given tensor later changes nothing."""
    fake, given = fresh(), qparams(0.5)
    fake.set_qparams(given)
    given.scale.fill_(9.0)
    assert fake.qparams().scale.item() == 0.5


def test_qparams_of_another_scheme_are_refused() -> None:
    """The error says which scheme was given and which is wanted."""
    with pytest.raises(QuantizationError, match=r"'block\.1'.*int8 symmetric.*uint8 affine"):
        fresh().set_qparams(qparams(0.5, QScheme(dtype=INT8)))


# State


def test_a_state_dict_restores_values_switches_and_statistics() -> None:
    """A fresh one that loads it computes the same and goes on the same."""
    old = calibrated()
    old.qparams()
    new = fresh()
    new.load_state_dict(old.state_dict())
    assert not new.observer_enabled
    assert torch.equal(new.eval()(X), old.eval()(X))
    assert torch.equal(new.observer.largest, old.observer.largest)


def test_a_pending_refresh_survives_saving() -> None:
    """Values seen since the qparams were found count after loading as they would have before."""
    old = calibrated(25.5)
    old.qparams()
    old.observe(torch.tensor([51.0]))
    new = fresh()
    new.load_state_dict(old.state_dict())
    assert new.qparams().scale.item() == pytest.approx(0.2)
    assert old.qparams().scale.item() == pytest.approx(0.2)


def test_an_uncalibrated_state_restores_an_uncalibrated_one() -> None:
    """Loading it forgets."""
    new = calibrated()
    new.load_state_dict(fresh().state_dict())
    assert not new.calibrated
    assert new.observer_enabled


def test_a_state_loaded_over_another_takes_effect() -> None:
    """Qparams that were used before loading are not kept."""
    a, b = calibrated(25.5).eval(), calibrated(51.0).eval()
    assert not torch.equal(a(X), b(X))
    a.load_state_dict(b.state_dict())
    assert torch.equal(a(X), b(X))


def test_a_bad_scale_in_a_state_dict_is_found() -> None:
    """What a checkpoint brings is checked like everything else."""
    fake = calibrated()
    fake.qparams()
    state = fake.state_dict()
    state["scale"] = torch.tensor(0.0)
    fake.load_state_dict(state)
    with pytest.raises(QuantizationError, match=r"scale 0\.0"):
        fake(X)


def test_half_keeps_the_scale_in_float32() -> None:
    """A model in half precision has the integers that it had."""
    model = nn.Sequential(nn.Linear(2, 2), calibrated()).eval()
    scale = model[1].qparams().scale.clone()
    model.half()
    assert model[1].qparams().scale.dtype == torch.float32
    assert torch.equal(model[1].qparams().scale, scale)


def test_a_copy_is_independent() -> None:
    """deepcopy copies qparams and observer."""
    a = calibrated()
    a.qparams()
    b = copy.deepcopy(a)
    b.set_qparams(qparams(0.5))
    b.observe(torch.tensor([1000.0]))
    assert a.qparams().scale.item() == pytest.approx(0.1)
    assert a.observer.largest.item() == 25.5


def test_scales_of_channels_have_the_shape_of_the_granularity() -> None:
    """Qparams come shaped by the scheme, from a fresh observer and from a state."""
    scheme = QScheme(dtype=INT8, granularity=PerChannel(0))
    fake, new = fresh(scheme=scheme), fresh(scheme=scheme)
    fake(torch.ones(3, 4))
    assert fake.qparams().scale.shape == (3,)
    new.load_state_dict(fake.state_dict())
    assert new.qparams().scale.shape == (3,)


# The straight-through estimator


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    """The value is exact, the gradient arrives unchanged, and only where it should."""
    value = torch.tensor([1.0, -0.0, float("inf")], requires_grad=True)
    source = torch.tensor([5.0, 6.0, 7.0], requires_grad=True)
    out = straight_through(value, source)
    assert torch.equal(out, value)
    assert torch.signbit(out).tolist() == [False, True, False]
    out.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert source.grad is not None
    assert source.grad.tolist() == [1.0, 2.0, 3.0]
    assert value.grad is None


def test_a_fake_quantizer_shows_its_scheme_and_switches() -> None:
    """repr says what it does."""
    assert "uint8 affine per_tensor, observer_enabled=True" in repr(fresh())
