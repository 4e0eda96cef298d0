"""qembedding and qembedding_bag against slow loops over rows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qcore import QuantizationError, pack

from .cases import Q, ints


def rows(q: Tensor, scale: Tensor, zero_point: Tensor | None, index: Tensor) -> np.ndarray:
    """``(q - z) * s`` of each row that is asked for, value by value in float32."""
    groups = scale.shape[1] if scale.ndim == 2 else 1
    size = q.shape[1] // groups
    out = np.zeros((index.numel(), q.shape[1]), np.float32)
    for i, r in enumerate(index.flatten().tolist()):
        for k in range(q.shape[1]):
            place = {0: (), 1: (r,), 2: (r, k // size)}[scale.ndim]
            z = 0 if zero_point is None else int(zero_point[place])
            out[i, k] = np.float32(int(q[r, k]) - z) * np.float32(scale[place])
    return out.reshape(*index.shape, q.shape[1])


SCALES = {
    "tensor": torch.tensor(0.03),
    "row": torch.linspace(0.01, 0.05, 6),
    "group": torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) + 0.01,
}
INDEX = torch.tensor([[0, 5, 3], [3, 3, 1]])


@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_rows(bits: int, signed: bool, scale: Tensor, with_zero: bool) -> None:
    """Rows of any width, with a scale for all, a row, or a group of a row."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    q = ints((6, 12), torch.int8 if signed else torch.uint8, low=low, high=high)
    zero = ints(tuple(scale.shape), torch.int32, low=low, high=high, seed=1) if with_zero else None
    stored = pack(q, bits) if bits < 8 else q
    actual = Q.qembedding(INDEX, stored, scale, zero, bits, signed, 12)
    np.testing.assert_array_equal(actual.numpy(), rows(q, scale, zero, INDEX))
    assert actual.dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_indices_of_any_shape(shape: tuple[int, ...]) -> None:
    """One index, none, and many; strided and of 32 bits too."""
    q, index = ints((6, 12)), ints(shape, torch.int64, low=0, high=5)
    args = (SCALES["row"], None, 8, True, 12)
    actual = Q.qembedding(index, q, *args)
    np.testing.assert_array_equal(actual.numpy(), rows(q, SCALES["row"], None, index))
    assert torch.equal(Q.qembedding(index.to(torch.int32), q, *args), actual)
    assert torch.equal(Q.qembedding(index[..., ::2] if shape else index, q, *args),
                       actual[..., ::2, :] if shape else actual)  # fmt: skip


BAGS = {
    "lists": (torch.tensor([[0, 5, 3], [2, 2, 1]]), None, False),
    "offsets": (torch.tensor([0, 5, 3, 2, 1]), torch.tensor([0, 3, 3]), False),
    "last-offset": (torch.tensor([0, 5, 3, 2, 1]), torch.tensor([0, 3, 5]), True),
    "empty": (torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0]), False),
}


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", BAGS)
def test_bags(name: str, mode: str, padding: int | None) -> None:
    """Bags are those of torch over the dequantized table, rows that are left out included."""
    index, offsets, last = BAGS[name]
    q, scale = ints((6, 12)), SCALES["group"]
    table = torch.from_numpy(rows(q, scale, None, torch.arange(6)))
    actual = Q.qembedding_bag(
        index, offsets, None, q, scale, None, 8, True, 12, mode, last, padding
    )
    expected = torch.nn.functional.embedding_bag(
        index, table, offsets, mode=mode, include_last_offset=last, padding_idx=padding
    )
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert (actual.abs().sum() > 0) == (index.numel() > 0)


def test_weighted_sums() -> None:
    """Each row times its weight."""
    index, weights = BAGS["lists"][0], torch.rand(2, 3)
    q, scale = ints((6, 12)), SCALES["row"]
    actual = Q.qembedding_bag(index, None, weights, q, scale, None, 8, True, 12, "sum", False, None)
    expected = (rows(q, scale, None, index).astype(np.float64) * weights.numpy()[..., None]).sum(1)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "float-index": (INDEX.float(), ints((6, 12)), SCALES["row"], None, 8, True, 12),
    "columns": (INDEX, ints((6, 12)), SCALES["row"], None, 8, True, 11),
    "bytes": (INDEX, ints((6, 12), torch.uint8), SCALES["row"], None, 4, True, 12),
    "rows-of-scale": (INDEX, ints((6, 12)), SCALES["row"][:5], None, 8, True, 12),
    "groups": (INDEX, ints((6, 12)), torch.rand(6, 5), None, 8, True, 12),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_together(name: str) -> None:
    """Shapes and dtypes that do not fit are refused in words."""
    with pytest.raises(QuantizationError, match="qembedding: "):
        Q.qembedding(*REFUSED[name])


def test_row_that_is_not_there() -> None:
    """An index beyond the table is an error of the lookup."""
    with pytest.raises(IndexError):
        Q.qembedding(torch.tensor([6]), ints((6, 12)), SCALES["row"], None, 8, True, 12)
