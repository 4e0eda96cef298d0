"""Random changes of a batch of images that keep their labels.

Pure functions of images and random numbers; every image of a batch is changed by itself.
"""

import torch

__all__ = ["random_flip", "random_shift"]


def random_flip(images: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: shape ``[N, C, H, W]``, any dtype.
        generator: source of randomness.

    Returns:
        A new tensor of the same shape and dtype.

    >>> images = torch.arange(4.0).reshape(2, 1, 1, 2)
    >>> random_flip(images, generator=torch.Generator().manual_seed(3)).flatten().tolist()
    [1.0, 0.0, 3.0, 2.0]
    """
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, images.flip(3), images)


def random_shift(
    images: torch.Tensor, *, pixels: int, fill: float, generator: torch.Generator
) -> torch.Tensor:
    """Move each image by up to ``pixels`` in both directions; the same as padding and cropping.

    Args:
        images: shape ``[N, C, H, W]``, floating point.
        pixels: largest shift; each of ``-pixels..pixels`` is equally likely, down and right apart.
        fill: value of what moves in from outside, usually that of the background.
        generator: source of randomness.

    Returns:
        A new tensor of the same shape and dtype.

    >>> images = torch.ones(1, 1, 2, 3)
    >>> random_shift(images, pixels=1, fill=0.0, generator=torch.Generator().manual_seed(0))
    tensor([[[[0., 1., 1.],
              [0., 0., 0.]]]])

    References:
        He et al., 2016, section 4.2 (4 pixels for CIFAR) <https://arxiv.org/abs/1512.03385>
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pixels,) * 4, value=fill)
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height))[:, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, :]
    # Channels last while indexing: the three index tensors then gather whole pixels.
    pixels_last = padded.permute(0, 2, 3, 1)
    return pixels_last[torch.arange(count)[:, None, None], rows, columns].permute(0, 3, 1, 2)
