"""Training: it learns, repeats itself, leaves its model alone, and refuses what can't work."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from qcore import Dataset, RecipeError
from qcore_zoo.digits import digits
from qcore_zoo.training import learning_rate, train


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCORE_PROGRESS", "off")


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8 * 7 * 7, 10),
    )


def _dataset(size: int = 96) -> Dataset:
    data = digits()
    return Dataset(
        name="few",
        train_inputs=data.train_inputs[:size],
        train_labels=data.train_labels[:size],
        test_inputs=data.test_inputs[:10],
        test_labels=data.test_labels[:10],
        num_classes=10,
    )


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def _accuracy(model: nn.Module, data: Dataset) -> float:
    with torch.no_grad():
        right = model.eval()(data.test_inputs).argmax(1) == data.test_labels
    return 100 * float(right.double().mean())


def test_small_network_learns_the_digits() -> None:
    """Three epochs bring the accuracy on digits that it has not seen from chance to over 90 %."""
    data = digits()
    assert _accuracy(_model(), data) < 40
    trained = train(_model(), dataset=data, epochs=3, batch_size=32, lr=0.05)
    assert _accuracy(trained, data) > 90


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine"},
        {"precision": "bfloat16", "channels_last": False, "label_smoothing": 0.1},
        {"augment": ("flip", "shift"), "shift_pixels": 1},
    ],
    ids=["sgd", "adamw", "bfloat16", "augmented"],
)
def test_seed_decides_the_result(options: dict[str, Any]) -> None:
    """The same seed gives the same weights bit for bit, another seed others, under any options."""
    data = _dataset()
    runs = []
    for seed, noise in ((1, 11), (1, 12), (2, 11)):
        model = _model()
        torch.manual_seed(noise)
        runs.append(
            _weights(train(model, dataset=data, epochs=2, batch_size=32, seed=seed, **options))
        )
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], _weights(_model()))


def test_model_and_random_state_are_left_alone() -> None:
    """Training works on a copy; weights, modes, layout and torch's random state stay."""
    model = _model().eval()
    before, state, threads = _weights(model), torch.get_rng_state(), torch.get_num_threads()
    trained = train(model, dataset=_dataset(), epochs=1, batch_size=32, threads=1)
    assert torch.equal(before, _weights(model))
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not any(module.training for module in trained.modules())
    assert all(parameter.is_contiguous() for parameter in trained.parameters())


def test_each_epoch_has_its_own_permutation() -> None:
    """Every epoch shows each example once, in another order."""
    seen: list[torch.Tensor] = []
    model = _model()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).sum(1)))
    data = _dataset()
    train(model, dataset=data, epochs=3, batch_size=32)
    epochs = torch.cat(seen).reshape(3, 96)
    stored = data.train_inputs.flatten(1).sum(1)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, stored.sort().values)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_seed_decides_the_augmentation() -> None:
    """On copies of one example, where the order says nothing, the seed still changes the result."""
    data = _dataset(64)
    copies = Dataset(
        name="copies",
        train_inputs=data.train_inputs[:1].repeat(64, 1, 1, 1),
        train_labels=data.train_labels[:1].repeat(64),
        test_inputs=data.test_inputs,
        test_labels=data.test_labels,
        num_classes=10,
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for name in ("flip", "shift"):
        runs = [
            _weights(train(model, dataset=copies, epochs=1, batch_size=16, seed=s, augment=[name]))
            for s in (0, 0, 1)
        ]
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])


def test_weight_decay_spares_biases_and_norms() -> None:
    """With a gradient of zero, weights shrink by decay and one-dimensional parameters stay."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.ones_(model[1].weight)
    nn.init.ones_(model[1].bias)
    data = _dataset(32)
    blank = Dataset(
        name="blank",
        train_inputs=torch.zeros_like(data.train_inputs),
        train_labels=data.train_labels,
        test_inputs=data.test_inputs,
        test_labels=data.test_labels,
        num_classes=10,
    )
    options: dict[str, Any] = {"epochs": 1, "batch_size": 32, "lr": 0.5, "schedule": "cosine"}
    trained = train(model, dataset=blank, weight_decay=0.1, momentum=0.0, **options)
    torch.testing.assert_close(trained[1].weight, torch.full((10, 64), 1 - 0.5 * 0.1))
    plain = train(model, dataset=blank, weight_decay=0.0, momentum=0.0, **options)
    assert torch.equal(trained[1].bias, plain[1].bias)


def test_split_smaller_than_a_batch_is_one_batch() -> None:
    """A training split with fewer examples than the batch size still trains."""
    model = _model()
    trained = train(model, dataset=_dataset(20), epochs=1, batch_size=64)
    assert not torch.equal(_weights(model), _weights(trained))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer='adam'; use 'sgd' or 'adamw'"),
        ({"schedule": "step"}, "schedule='step'; use 'onecycle' or 'cosine'"),
        ({"precision": "fp16"}, "precision='fp16'; use 'float32' or 'bfloat16'"),
        ({"augment": ["crop"]}, "augment='crop'; use 'flip' or 'shift'"),
        ({"augment": "flip"}, r"augment='flip'; use a list"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"shift_pixels": -1}, "shift_pixels=-1"),
        ({"label_smoothing": 1.5}, r"label_smoothing=1\.5"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"threads": 0}, "threads=0"),
        ({"lr": 1e30}, r"the loss is (nan|inf) at step \d of 6; use a smaller lr than 1e\+30"),
    ],
    ids=str,
)
def test_what_can_not_work_is_refused(options: dict[str, Any], message: str) -> None:
    """A wrong option, and a training that diverges, are errors that say what to change."""
    with pytest.raises(RecipeError, match=message):
        train(_model(), **{"dataset": _dataset(), "epochs": 2, "batch_size": 32, **options})


def test_progress_shows_epoch_and_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line of the progress names the last epoch and the loss."""
    monkeypatch.setenv("QCORE_PROGRESS", "plain")
    train(_model(), dataset=_dataset(), epochs=3, batch_size=32, label="fit")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fit: 9/9 in ")
    assert ", epoch 3/3, loss " in last


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_learning_rate_is_positive_and_ends_at_zero(schedule: Any) -> None:
    """The rate reaches its peak, never passes it, is positive before the end, and 0 there."""
    rates = [learning_rate(step / 1000, peak=0.3, schedule=schedule) for step in range(1001)]
    assert max(rates) == pytest.approx(0.3)
    assert min(rates[:-1]) > 0
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.01
