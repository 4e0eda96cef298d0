"""The observer that answers with what it was given."""

import copy

import pytest
import torch

from qcore import INT8, UINT8, PerChannel, QParams, QScheme, QuantizationError
from qcore_observers.passive import PassiveObserver

SCHEME = QScheme(dtype=UINT8, symmetric=False)


def qparams(scale: float, zero_point: int = 3) -> QParams:
    return QParams(
        scale=torch.tensor(scale),
        zero_point=torch.tensor(zero_point, dtype=torch.int32),
        scheme=SCHEME,
    )


def given(scale: float = 0.5) -> PassiveObserver:
    observer = PassiveObserver(scheme=SCHEME)
    observer.set_qparams(qparams(scale))
    return observer


def test_values_do_not_matter() -> None:
    """Not even NaN; the input passes."""
    observer, x = given(), torch.tensor([float("nan"), 1e30])
    assert observer(x) is x
    assert observer.calculate_qparams().scale.item() == 0.5
    assert observer.calculate_qparams().zero_point.item() == 3


def test_before_anything_was_given_it_says_so() -> None:
    """Observing does not help; set_qparams does."""
    observer = PassiveObserver(scheme=SCHEME, where="stem")
    observer(torch.ones(3))
    assert not observer.seen
    with pytest.raises(QuantizationError, match="layer 'stem', PassiveObserver: .*set_qparams"):
        observer.calculate_qparams()


def test_resetting_keeps_what_was_given() -> None:
    """Calibration resets observers of weights; it must not undo the user's choice."""
    observer = given()
    observer.reset()
    assert observer.calculate_qparams().scale.item() == 0.5


def test_given_again_replaces() -> None:
    """The last ones count."""
    observer = given()
    observer.set_qparams(qparams(0.25))
    assert observer.calculate_qparams().scale.item() == 0.25


def test_state_and_copies() -> None:
    """Round trip into a fresh one; copies and the given tensors are independent."""
    source = qparams(0.5)
    observer = PassiveObserver(scheme=SCHEME)
    observer.set_qparams(source)
    source.scale.fill_(9.0)
    fresh = PassiveObserver(scheme=SCHEME)
    fresh.load_state_dict(observer.state_dict())
    other = copy.deepcopy(observer)
    other.set_qparams(qparams(0.1))
    for one in (observer, fresh):
        assert one.calculate_qparams().scale.item() == 0.5


def test_merging_needs_agreement() -> None:
    """Equal ones merge, and one without qparams takes the other's."""
    assert given().merge(given()).calculate_qparams().scale.item() == 0.5
    empty = PassiveObserver(scheme=SCHEME)
    assert empty.merge(given()).calculate_qparams().scale.item() == 0.5
    assert given().merge(empty).calculate_qparams().scale.item() == 0.5
    with pytest.raises(QuantizationError, match="given different qparams"):
        given().merge(given(0.25))


def test_qparams_of_another_scheme_are_refused() -> None:
    """The error names both schemes."""
    with pytest.raises(QuantizationError, match="uint8 affine per_tensor given to an observer of"):
        PassiveObserver(scheme=QScheme(dtype=INT8)).set_qparams(qparams(0.5))


def test_scales_of_channels() -> None:
    """Any granularity."""
    scheme = QScheme(dtype=INT8, granularity=PerChannel(0))
    scale, zero_point = torch.tensor([0.1, 0.2]), torch.zeros(2, dtype=torch.int32)
    observer = PassiveObserver(scheme=scheme)
    observer.set_qparams(QParams(scale=scale, zero_point=zero_point, scheme=scheme))
    assert torch.equal(observer.calculate_qparams().scale, scale)
