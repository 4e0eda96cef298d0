"""Results that are computed a slice of the batch at a time."""

import pytest
import torch
from torch import Tensor

from qcore.ops.batches import fill, memory_format

pytestmark = pytest.mark.usefixtures("small_slices")


def test_slices_cover_the_batch_once() -> None:
    """Every sample is computed once, in order, and slices are as large as the cache allows."""
    seen: list[list[int]] = []

    def kernel(x: Tensor) -> Tensor:
        seen.append(x[:, 0].tolist())
        return x * 2.0

    x = torch.arange(10.0).reshape(10, 1).repeat(1, 2000)
    out = torch.empty(10, 2000, dtype=torch.int8)
    assert fill(out, kernel, x) is out
    assert torch.equal(out.float(), x * 2)
    assert [len(s) for s in seen] == [2, 2, 2, 2, 2]
    assert [i for part in seen for i in part] == list(range(10))


def test_other_operands_are_passed_whole() -> None:
    """None, tensors of fewer dimensions and tensors that broadcast along the batch."""
    shapes: list[tuple[int, ...]] = []

    def kernel(a: Tensor, b: Tensor, c: Tensor, d: None) -> Tensor:
        assert d is None
        shapes.append((len(a), len(b), len(c)))
        return a + b + c

    a, b, c = torch.randn(6, 1000), torch.randn(1, 1000), torch.randn(1000)
    out = torch.empty(6, 1000)
    fill(out, kernel, a, b, c, None)
    assert torch.equal(out, a + b + c)
    assert shapes == [(4, 1, 1000), (2, 1, 1000)]


def test_at_least() -> None:
    """Kernels with other large operands ask for slices that are worth reading those."""
    sizes: list[int] = []

    def kernel(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    x = torch.zeros(10, 2000)
    fill(torch.empty_like(x), kernel, x, at_least=8)
    assert sizes == [8, 2]


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (4,)], ids=str)
def test_small_and_empty_results_are_whole(shape: tuple[int, ...]) -> None:
    """No slices, no division by an empty batch."""
    x = torch.ones(shape)
    calls: list[int] = []

    def kernel(x: Tensor) -> Tensor:
        calls.append(1)
        return x + 1

    assert torch.equal(fill(torch.empty(shape), kernel, x), x + 1)
    assert len(calls) == 1


def test_a_result_keeps_its_strides() -> None:
    """The caller says where the output lies."""
    x = torch.randn(8, 16, 64, 64)
    out = torch.empty(x.shape, memory_format=torch.channels_last)
    fill(out, torch.neg, x)
    assert torch.equal(out, -x)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_memory_format() -> None:
    """channels_last only where the tensor can't be read as contiguous too."""
    image, volume = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5, 6)
    last, last_3d = torch.channels_last, torch.channels_last_3d
    assert memory_format(image) == torch.contiguous_format
    assert memory_format(image.contiguous(memory_format=last)) == last
    assert memory_format(volume.contiguous(memory_format=last_3d)) == last_3d
    assert memory_format(image[:, :1].contiguous(memory_format=last)) == torch.contiguous_format
    assert memory_format(image[:, :, ::2]) == torch.contiguous_format
    assert memory_format(image.permute(3, 2, 1, 0)) == torch.contiguous_format
    assert memory_format(image[0]) == torch.contiguous_format
