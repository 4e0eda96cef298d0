"""The digits data set: its split, its normalisation, and the missing extra."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore import MissingExtraError
from qcore_zoo.digits import digits, stratified_split


def test_split_is_stratified_and_complete() -> None:
    """1,437 and 360 examples; each class has a fifth of its images, rounded, in the test split."""
    data = digits()
    train, test = data.train_labels.bincount(), data.test_labels.bincount()
    assert (int(train.sum()), int(test.sum())) == (1437, 360)
    assert torch.all((test - (train + test) * 360 / 1797).abs() < 1)
    everything = torch.cat((data.train_inputs, data.test_inputs)).flatten(1)
    assert len(everything.unique(dim=0)) == 1797


def test_split_is_fixed_by_its_seed() -> None:
    """The default split is the same on every machine; another seed gives another."""
    data = digits()
    assert data.fingerprint() == digits().fingerprint()
    assert data.fingerprint() != digits(seed=1).fingerprint()
    assert data.test_labels[:12].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]


def test_pixels_are_normalised() -> None:
    """Over all images mean and standard deviation are 0 and 1, and black is the same everywhere."""
    data = digits()
    everything = torch.cat((data.train_inputs, data.test_inputs))
    assert abs(float(everything.mean())) < 1e-3
    assert abs(float(everything.std()) - 1) < 1e-3
    torch.testing.assert_close(everything.min(), torch.tensor(-0.3053 / 0.3761))
    torch.testing.assert_close(everything.max(), torch.tensor((1 - 0.3053) / 0.3761))


def test_missing_scikit_learn_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the error says what to install."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qcore-quant\[zoo\]'"):
        digits()


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_law(labels: list[int], share: float, seed: int) -> None:
    """Every row is in one split, the number is exact, and each class is off by less than one."""
    values = np.array(labels)
    number = round(share * len(labels))
    train, test = stratified_split(values, number, seed=seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(test) == number
    for label in range(5):
        count = int((values == label).sum())
        assert abs(int((values[test] == label).sum()) - count * number / len(labels)) < 1
