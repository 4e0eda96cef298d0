"""Augmentation: each image is changed by itself, in the ways that are named and no other."""

import pytest
import torch
import torch.nn.functional as F

from qcore import random_flip, random_shift


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_about_half_of_the_images() -> None:
    """Each image is itself or its mirror image, and both happen about equally often."""
    images = torch.randn(1000, 2, 3, 4)
    flipped = random_flip(images, generator=_generator())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 400 < int(same.sum()) < 600


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_shift_is_a_crop_of_the_padded_image(channels_last: bool) -> None:
    """Each image is one of the crops of itself with a border, and every crop occurs."""
    images = torch.randn(300, 2, 4, 5)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    shifted = random_shift(images, pixels=1, fill=-7.0, generator=_generator())
    assert shifted.shape == images.shape
    padded = F.pad(images, (1, 1, 1, 1), value=-7.0)
    hits = torch.zeros(300, dtype=torch.int64)
    for row in range(3):
        for column in range(3):
            crop = padded[:, :, row : row + 4, column : column + 5]
            equal = (shifted == crop).flatten(1).all(1)
            assert equal.any()
            hits += equal
    assert torch.all(hits == 1)


def test_shift_by_nothing_keeps_the_images() -> None:
    """With ``pixels=0`` images come back as they were."""
    images = torch.randn(3, 1, 2, 2)
    assert torch.equal(random_shift(images, pixels=0, fill=0.0, generator=_generator()), images)


def test_generator_alone_decides() -> None:
    """The same generator state gives the same result, whatever torch's global state."""
    images = torch.randn(50, 1, 4, 4)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        generator = _generator(5)
        flipped = random_flip(images, generator=generator)
        results.append(random_shift(flipped, pixels=2, fill=0.0, generator=generator))
    assert torch.equal(*results)


def test_inputs_are_left_as_they_are() -> None:
    """Neither function writes to its input."""
    images = torch.randn(20, 1, 4, 4)
    before = images.clone()
    random_flip(images, generator=_generator())
    random_shift(images, pixels=2, fill=0.0, generator=_generator())
    assert torch.equal(images, before)
