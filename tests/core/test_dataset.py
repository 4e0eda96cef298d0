"""Data sets: what they refuse, the order of their batches, and their fingerprint."""

from typing import Any

import pytest
import torch

from qcore import Dataset, DatasetError, QcoreError


def _dataset(**changes: Any) -> Dataset:
    values: dict[str, Any] = {
        "name": "toy",
        "train_inputs": torch.arange(20.0).reshape(10, 1, 1, 2),
        "train_labels": torch.arange(10) % 3,
        "test_inputs": torch.zeros(2, 1, 1, 2),
        "test_labels": torch.tensor([0, 2]),
        "num_classes": 3,
    }
    return Dataset(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_inputs": torch.zeros(10, 2, dtype=torch.float64)},
            "train_inputs is torch.float64",
        ),
        ({"test_labels": torch.zeros(2)}, "test_labels is torch.float32"),
        ({"train_labels": torch.zeros(9, dtype=torch.int64)}, r"\[10, 1, 1, 2\].*\[9\]"),
        ({"test_inputs": torch.zeros(2, 1, 2, 2)}, r"test_inputs \[2, 1, 2, 2\] differ"),
        ({"num_classes": 2}, r"train_labels span 0\.\.2; use 0\.\.1"),
        ({"test_labels": torch.tensor([0, -1])}, r"test_labels span -1\.\.0"),
        (
            {"test_inputs": torch.zeros(0, 1, 1, 2), "test_labels": torch.zeros(0).long()},
            "test has no examples",
        ),
    ],
    ids=["inputs_dtype", "labels_dtype", "number", "shape", "label_high", "label_low", "empty"],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """Each way in which tensors don't fit has an error that names the tensor and what it is."""
    with pytest.raises(DatasetError, match=message):
        _dataset(**changes)


def test_stored_order_and_last_batch() -> None:
    """Without shuffle the order is the stored one; the last batch is smaller, or dropped."""
    data = _dataset()
    sizes = [len(labels) for _, labels in data.batches("train", 4)]
    assert sizes == [4, 4, 2]
    inputs = torch.cat([x for x, _ in data.batches("train", 4)])
    assert torch.equal(inputs, data.train_inputs)
    assert [len(y) for _, y in data.batches("train", 4, drop_last=True)] == [4, 4]


def test_shuffle_is_a_permutation_fixed_by_the_seed() -> None:
    """The same seed gives the same permutation, another seed another; pairs stay together."""
    data = _dataset()
    state = torch.get_rng_state()
    runs = [
        torch.cat([x[:, 0, 0, 0] for x, _ in data.batches("train", 3, shuffle=True, seed=seed)])
        for seed in (5, 5, 6)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(runs[0].sort().values, data.train_inputs[:, 0, 0, 0])
    for x, y in data.batches("train", 3, shuffle=True, seed=1):
        assert torch.equal((x[:, 0, 0, 0] / 2).long() % 3, y)
    assert torch.equal(state, torch.get_rng_state())


def test_limit_counts_examples() -> None:
    """A limit cuts the permutation, not the data: shuffled batches draw from everything."""
    data = _dataset()
    assert [len(y) for _, y in data.batches("train", 4, limit=5)] == [4, 1]
    assert [len(y) for _, y in data.batches("train", 4, limit=99)] == [4, 4, 2]
    drawn = {
        float(x[0, 0, 0, 0])
        for seed in range(30)
        for x, _ in data.batches("train", 1, shuffle=True, seed=seed, limit=1)
    }
    assert len(drawn) > 5


@pytest.mark.parametrize("arguments", [("valid", 4), ("train", 0)], ids=str)
def test_wrong_batches_are_refused_at_the_call(arguments: tuple[Any, int]) -> None:
    """An unknown split and an empty batch are errors before the first batch is asked for."""
    with pytest.raises(DatasetError, match="use"):
        _dataset().batches(*arguments)
    with pytest.raises(QcoreError, match="limit=0"):
        _dataset().batches("train", 4, limit=0)


def test_fingerprint_is_of_the_content() -> None:
    """Equal content has one fingerprint whatever its name and memory layout; any change another."""
    base = _dataset().fingerprint()
    strided = (torch.arange(40.0) / 2).reshape(10, 1, 1, 4)[..., ::2]
    assert torch.equal(strided, torch.arange(20.0).reshape(10, 1, 1, 2))
    assert not strided.is_contiguous()
    assert base == _dataset(name="other", train_inputs=strided).fingerprint()
    changed = torch.arange(20.0).reshape(10, 1, 1, 2)
    changed[9, 0, 0, 1] += 1e-6 * 19
    others = [
        _dataset(num_classes=4),
        _dataset(train_inputs=changed),
        _dataset(test_labels=torch.tensor([2, 0])),
        _dataset(
            train_inputs=torch.arange(20.0).reshape(10, 1, 2, 1),
            test_inputs=torch.zeros(2, 1, 2, 1),
        ),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 5
