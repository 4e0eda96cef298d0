"""qconv_transpose against the oracle, in every value."""

import attrs
import numpy as np
import pytest
import torch

from qcore import BackendError, QuantizationError

from .cases import CONTRACTS, Activation, Conv, Target, assert_equal, ints

SHAPES = {
    "1d": ((2, 4, 6), (4, 3, 3), (1,), (0,), (0,), (1,), 1),
    "1d-output-padding": ((2, 4, 6), (4, 3, 4), (3,), (1,), (2,), (2,), 1),
    "2d": ((2, 3, 4, 5), (3, 4, 3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
    "2d-uneven": ((2, 3, 4, 5), (3, 4, 2, 3), (1, 3), (0, 2), (0, 1), (2, 1), 1),
    "2d-groups": ((2, 6, 4, 4), (6, 2, 3, 3), (2, 1), (1, 0), (1, 0), (1, 1), 3),
    "2d-depthwise": ((2, 5, 4, 4), (5, 1, 2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 5),
    "3d": ((1, 2, 3, 2, 3), (2, 3, 2, 3, 2), (2, 1, 2), (0, 1, 0), (1, 0, 0), (1, 1, 2), 1),
    "3d-groups": ((1, 4, 2, 2, 3), (4, 2, 2, 2, 2), (1, 2, 1), (0, 0, 1), (0, 1, 0), (1, 1, 1), 2),
    "one-element": ((1, 1, 1), (1, 1, 1), (1,), (0,), (0,), (1,), 1),
}


def make(shape: str = "2d", **changes: object) -> Conv:
    """A case of a shape: int8, odd zero points, weight scales along dimension 1, int32 bias."""
    x, w, stride, padding, output_padding, dilation, groups = SHAPES[shape]
    values: dict[str, object] = {
        "x": Activation(q=ints(x), scale=0.0213, zero_point=-11),
        "w": ints(w, low=-127, seed=1),
        "w_scale": torch.linspace(0.004, 0.011, w[1]),
        "bias": ints((w[1] * groups,), torch.int32, low=-9000, high=9000),
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "dilation": dilation,
        "groups": groups,
        "y": Target(scale=0.21, zero_point=5),
    }
    return Conv(**{**values, **changes})


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    """Every dimension, stride, padding, output padding, dilation and group."""
    expected = assert_equal(make(shape))
    assert expected.size < 8 or len(np.unique(expected)) > 5


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("shape", ["1d", "2d-groups", "3d-groups"])
def test_affine_weights(shape: str, per_channel: bool) -> None:
    """Weight zero points lie along dimension 1 of the weight, the same in every group."""
    w = SHAPES[shape][1]
    zero_point = ints((w[1],), torch.uint8, seed=3).to(torch.int32)
    w_scale = torch.linspace(0.004, 0.011, w[1])
    assert_equal(
        make(
            shape,
            w=ints(w, torch.uint8, seed=2),
            w_scale=w_scale if per_channel else w_scale[0],
            w_zero_point=zero_point if per_channel else zero_point[0],
        )
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16], ids=str)
def test_activation_dtypes(dtype: torch.dtype) -> None:
    """uint8 and int16 activations with an odd zero point."""
    q = ints((2, 3, 4, 5), dtype)
    info = torch.iinfo(dtype)
    y = Target(scale=0.2, zero_point=info.min + 77, low=info.min, high=info.max, dtype=dtype)
    assert_equal(make(x=Activation(q=q, scale=5 / info.max, zero_point=info.min + 101), y=y))


@pytest.mark.parametrize("numerics", [c for c in CONTRACTS if c.endswith(".int32")])
def test_every_contract(numerics: str) -> None:
    """Each contract with 32-bit accumulators, on scales that make ties."""
    float_bias = torch.tensor([0.5, -0.25, 1.0, 7.0])
    case = make(
        x=Activation(q=ints((2, 3, 4, 5), torch.uint8), scale=0.5, zero_point=77),
        w_scale=torch.tensor([0.25, 0.125, 0.5, 0.25]),
        bias=float_bias if ".float32." in numerics else (float_bias * 8).int(),
        y=Target(scale=0.5, zero_point=-5, low=-(2**15), high=2**15 - 1, dtype=torch.int16,
                 numerics=numerics),
    )  # fmt: skip
    assert len(np.unique(assert_equal(case))) > 50


def test_large_bias_and_float_output() -> None:
    """An int32 bias of any size; and the float result of the same sums."""
    bias = torch.tensor([2**30, -(2**31) + 1, 2**24 + 1, 0], dtype=torch.int32)
    assert_equal(make(bias=bias, y=Target(scale=2.0**16, zero_point=1)))
    assert_equal(make(bias=bias, y=Target(dtype=torch.float32)))
    assert_equal(make(bias=None, y=Target(dtype=torch.float32)))


def test_memory_formats_and_batches(small_slices: int) -> None:
    """channels_last stays; an empty batch works; slices of a large batch are its samples."""
    case = make()
    q = case.x.q.contiguous(memory_format=torch.channels_last)
    last = make(x=attrs.evolve(case.x, q=q))
    assert_equal(last)
    assert last.actual().is_contiguous(memory_format=torch.channels_last)
    assert make(x=attrs.evolve(case.x, q=q[:0])).actual().shape == (0, 4, 8, 10)
    many = ints((23, 3, 10, 9))
    whole = make(x=attrs.evolve(case.x, q=many)).actual()
    assert whole.numel() > 4 * small_slices
    for i in range(23):
        one = make(x=attrs.evolve(case.x, q=many[i : i + 1])).actual()
        assert torch.equal(whole[i : i + 1], one)


def test_refusals() -> None:
    """What does not fit is refused, by name."""
    with pytest.raises(BackendError, match="int16_pairs"):
        make(y=Target(numerics="half_even.multiplier.int32.after.int16_pairs")).actual()
    with pytest.raises(QuantizationError, match="output_padding"):
        make(output_padding=(0,)).actual()
    with pytest.raises(QuantizationError, match="x must be"):
        make(x=Activation(q=ints((2, 4, 4, 5)))).actual()
    with pytest.raises(QuantizationError, match="groups=2 does not divide 3"):
        make(groups=2).actual()
