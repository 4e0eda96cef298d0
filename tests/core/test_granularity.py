"""Granularities: which values share a scale, and the shape of the scale."""

import pytest
import torch

from qcore import (
    INT8,
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QScheme,
    QuantizationError,
    as_rows,
    expand,
)


@pytest.mark.parametrize(
    ("granularity", "shape", "scale", "block"),
    [
        (PerTensor(), (3, 4), (), (3, 4)),
        (PerTensor(), (), (), ()),
        (PerChannel(0), (3, 4), (3,), (1, 4)),
        (PerChannel(-1), (3, 4), (4,), (3, 1)),
        (PerChannel(1), (2, 3, 4, 5), (3,), (2, 1, 4, 5)),
        (PerGroup(32), (8, 128), (8, 4), (1, 32)),
        (PerGroup(4), (4,), (1,), (4,)),
        (PerToken(), (2, 3, 4), (2, 3, 1), (1, 1, 4)),
        (PerBlock((8, 8)), (64, 32), (8, 4), (8, 8)),
        (PerBlock((1, 2, 3)), (2, 2, 3), (2, 1, 1), (1, 2, 3)),
    ],
    ids=str,
)
def test_shapes_of_scales_and_blocks(
    granularity: Granularity, shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, ...]
) -> None:
    """The scale has one entry for each block of values."""
    assert granularity.scale_shape(shape) == scale
    assert granularity.block_shape(shape) == block


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerTensor(), (2, 3, 4)),
        (PerChannel(0), (2, 3, 4)),
        (PerChannel(1), (2, 3, 4)),
        (PerChannel(-1), (2, 3, 4)),
        (PerGroup(2), (2, 3, 4)),
        (PerToken(), (2, 3, 4)),
        (PerBlock((2, 1, 2)), (2, 3, 4)),
    ],
    ids=str,
)
def test_rows_and_expanded_scales_mean_the_same_values(
    granularity: Granularity, shape: tuple[int, ...]
) -> None:
    """Entry ``i`` of the scale multiplies exactly the values of row ``i``."""
    scheme = QScheme(dtype=INT8, granularity=granularity)
    x = torch.arange(24.0).reshape(shape)
    number = torch.arange(as_rows(x, scheme).shape[0]).reshape(granularity.scale_shape(shape))
    of_value = expand(number, granularity, x.shape).expand(shape)
    for i, row in enumerate(as_rows(x, scheme)):
        assert sorted(row.tolist()) == x[of_value == i].tolist()


def test_a_row_of_the_whole_tensor_is_a_view_in_any_dense_layout() -> None:
    """One scale for the tensor: neither channels-last nor a transposed tensor is copied."""
    scheme = QScheme(dtype=INT8)
    for x in (
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(3, 4).t(),
    ):
        rows = as_rows(x, scheme)
        assert rows.data_ptr() == x.data_ptr()
        assert sorted(rows[0].tolist()) == sorted(x.flatten().tolist())


def test_a_group_that_does_not_divide_names_the_ones_that_do() -> None:
    """The error lists every group size that fits."""
    with pytest.raises(QuantizationError, match="64 does not divide 100 columns; use one of 1, 2,"):
        PerGroup(64).scale_shape((256, 100))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerGroup(0), "group_size=0"),
        (lambda: PerBlock((2, 0)), r"block shape \(2, 0\)"),
        (lambda: PerBlock(()), r"block shape \(\)"),
        (lambda: PerChannel(2).scale_shape((3, 4)), "2 dimensions has no such axis"),
        (lambda: PerChannel(0).scale_shape(()), "0 dimensions has no such axis"),
        (lambda: PerGroup(2).scale_shape(()), "without dimensions has no groups"),
        (lambda: PerToken().scale_shape(()), "without dimensions has no tokens"),
        (lambda: PerBlock((2,)).scale_shape((4, 4)), "does not tile"),
        (lambda: PerBlock((3, 4)).scale_shape((4, 4)), "does not tile"),
    ],
)
def test_impossible_granularities_are_errors(make: object, message: str) -> None:
    """A size that can't be is refused with the reason."""
    with pytest.raises(QuantizationError, match=message):
        make()  # type: ignore[operator]


def test_descriptions_name_dtype_mode_and_granularity() -> None:
    """A scheme says in one line what it is."""
    assert QScheme(dtype=INT8).describe() == "int8 symmetric per_tensor"
    scheme = QScheme(dtype=INT8, granularity=PerBlock((8, 8)), symmetric=False, power_of_two=True)
    assert scheme.describe() == "int8 affine per_block((8, 8)) power_of_two"
