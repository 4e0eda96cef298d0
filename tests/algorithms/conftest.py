"""A small classification task, and a calibrated QFloat model of it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import qcore


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints go to a folder of the test."""
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data() -> qcore.Dataset:
    """Images whose class is the brightest of three channels."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        base = torch.randn(count, 3, 1, 1, generator=generator)
        images = base + 0.5 * torch.randn(count, 3, 6, 6, generator=generator)
        return images, base[:, :, 0, 0].argmax(1)

    train, test = draw(256), draw(128)
    return qcore.Dataset(
        name="brightest",
        train_inputs=train[0],
        train_labels=train[1],
        test_inputs=test[0],
        test_labels=test[1],
        num_classes=3,
    )


@pytest.fixture
def qfloat(data: qcore.Dataset) -> Callable[..., nn.Module]:
    """Makes the same calibrated model every time it is called."""

    def make(preset: str = "w4a4", *, dropout: float = 0.0) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 3),
        )  # fmt: skip
        prepared = qcore.prepare(model, data.train_inputs[:2], preset)
        return qcore.calibrate(prepared, [data.train_inputs[:64]])

    return make
