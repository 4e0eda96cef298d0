"""qadd, qsub, qmul, qrequantize, qcat and qtable against the oracle, in every value."""

import numpy as np
import pytest
import torch

from . import oracle
from .cases import CONTRACTS, Activation, Q, Target, ints, wide

PAIRS = {
    "equal": ((2, 3, 4, 4), (2, 3, 4, 4)),
    "channel": ((2, 3, 4, 4), (1, 3, 1, 1)),
    "channel-first": ((1, 3, 1, 1), (2, 3, 4, 4)),
    "row": ((2, 3, 4), (4,)),
    "both": ((2, 1, 4), (3, 1)),
    "scalar": ((2, 3), ()),
    "empty": ((0, 3), (0, 3)),
    "one-element": ((1,), (1,)),
    "sliced": ((40, 1000), (40, 1000)),
    "sliced-broadcast": ((40, 1000), (1, 1000)),
}


def expected_sum(a: Activation, b: Activation, y: Target) -> np.ndarray:
    left, right = np.broadcast_arrays(a.centred(), b.centred())
    step = np.float32(a.scale)
    return oracle.finish(left, step, y.contract, other=right, other_scale=b.scale)


def expected_difference(a: Activation, b: Activation, y: Target) -> np.ndarray:
    left, right = np.broadcast_arrays(a.centred(), b.centred())
    step = np.float32(a.scale)
    return oracle.finish(left, step, y.contract, other=-right, other_scale=b.scale)


def expected_product(a: Activation, b: Activation, y: Target) -> np.ndarray:
    return oracle.finish(
        a.centred() * b.centred(), np.float32(a.scale) * np.float32(b.scale), y.contract
    )


EXPECTED = {"qadd": expected_sum, "qsub": expected_difference, "qmul": expected_product}


def check(name: str, a: Activation, b: Activation, y: Target) -> np.ndarray:
    args = (a.q, a.scale, a.zero_point, b.q, b.scale, b.zero_point, *y.args)
    actual = getattr(Q, name)(*args)
    expected = EXPECTED[name](a, b, y)
    assert actual.dtype == y.dtype
    np.testing.assert_array_equal(actual.numpy(), expected)
    return expected


@pytest.mark.parametrize("shapes", [k for k in PAIRS if "sliced" not in k])
@pytest.mark.parametrize("name", EXPECTED)
def test_shapes(name: str, shapes: str) -> None:
    """Operands broadcast as in torch, whichever is larger."""
    left, right = PAIRS[shapes]
    a = Activation(q=ints(left), scale=0.05, zero_point=3)
    b = Activation(q=ints(right, torch.uint8), scale=0.031, zero_point=101)
    check(name, a, b, Target(scale=0.07, zero_point=-5))


@pytest.mark.parametrize("shapes", [k for k in PAIRS if "sliced" in k])
@pytest.mark.parametrize("name", EXPECTED)
def test_slices_of_a_large_tensor(name: str, shapes: str, small_slices: int) -> None:
    """Computed by slices, rows are what they are by themselves."""
    left, right = PAIRS[shapes]
    a, b = ints(left), ints(right, seed=1)
    operation, y = getattr(Q, name), Target(scale=0.07, zero_point=-5).args
    whole = operation(a, 0.05, 3, b, 0.031, -7, *y)
    assert whole.numel() > 4 * small_slices
    for row in range(40):
        other = b[row] if len(b) > 1 else b[0]
        assert torch.equal(whole[row], operation(a[row], 0.05, 3, other, 0.031, -7, *y))


@pytest.mark.parametrize("right", [torch.int8, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("left", [torch.int8, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("name", EXPECTED)
def test_dtypes(name: str, left: torch.dtype, right: torch.dtype) -> None:
    """Any two dtypes with zero points at the ends; products of 16 bits exceed float32."""
    a_info, b_info = torch.iinfo(left), torch.iinfo(right)
    a = Activation(q=ints((3, 50), left), scale=2.0 / a_info.max, zero_point=a_info.max)
    b = Activation(q=ints((3, 50), right, seed=1), scale=2.0 / b_info.max, zero_point=b_info.min)
    check(name, a, b, Target(scale=0.1, zero_point=3))
    check(name, a, b, Target(dtype=torch.float32))
    # The one contract that does not round the product to float32 first.
    fixed = "half_even.fixed_point.int32.after.int32"
    y = Target(scale=1.9e-6, low=-(2**23), high=2**23, dtype=torch.int32, numerics=fixed)
    check(name, a, b, y)


@pytest.mark.parametrize("numerics", CONTRACTS)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_contract_on_ties(name: str, numerics: str) -> None:
    """Each contract where many outputs are ties and the zero point is odd."""
    a = Activation(q=ints((5, 40)), scale=0.25, zero_point=3)
    b = Activation(q=ints((5, 40), seed=1), scale=0.5, zero_point=-1)
    y = Target(scale=0.25 if name == "qmul" else 0.5, zero_point=7, low=-(2**15), high=2**15 - 1,
               dtype=torch.int16, numerics=numerics)  # fmt: skip
    check(name, a, b, y)
    left, right = a.centred(), b.centred()
    real = {"qadd": left / 2 + right, "qsub": left / 2 - right, "qmul": left * right / 2}[name]
    assert oracle.is_tie(real).mean() > 0.1


def test_add_and_clamp() -> None:
    """A fused relu is the clamp."""
    a, b = Activation(q=ints((5, 40))), Activation(q=ints((5, 40), seed=1))
    expected = check("qadd", a, b, Target(scale=0.02, zero_point=-9, low=-9, high=90))
    assert {expected.min(), expected.max()} == {-9, 90}


@pytest.mark.parametrize("numerics", CONTRACTS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16], ids=str)
def test_requantize(dtype: torch.dtype, numerics: str) -> None:
    """The same values under another scale, odd zero points and ties included."""
    info = torch.iinfo(dtype)
    x = Activation(q=ints((3, 100), dtype), scale=0.25, zero_point=info.min + 101)
    for scale in (0.5, 0.37):
        y = Target(scale=scale, zero_point=-3, numerics=numerics)
        actual = Q.qrequantize(x.q, x.scale, x.zero_point, *y.args)
        expected = oracle.finish(x.centred(), np.float32(x.scale), y.contract)
        np.testing.assert_array_equal(actual.numpy(), expected)


def test_requantize_to_itself_is_the_identity() -> None:
    """Equal scales and zero points change nothing."""
    q = torch.arange(-128, 128).to(torch.int8)
    y = Target(scale=0.3, zero_point=-11)
    assert torch.equal(Q.qrequantize(q, 0.3, -11, *y.args), q)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cat(dim: int) -> None:
    """Each input is brought to the output's scale; those that have it keep their integers."""
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    for i, size in enumerate((2, 5, 1)):
        shapes[i][dim] = size
    xs = [
        Activation(q=ints(shapes[0]), scale=0.1, zero_point=3),
        Activation(q=ints(shapes[1], torch.uint8), scale=0.033, zero_point=101),
        Activation(q=ints(shapes[2], torch.int16), scale=0.0005, zero_point=-77),
    ]
    y = Target(scale=0.1, zero_point=3)
    args = ([x.q for x in xs], [x.scale for x in xs], [x.zero_point for x in xs], dim)
    actual = Q.qcat(*args, *y.args)
    parts = [oracle.finish(x.centred(), np.float32(x.scale), y.contract) for x in xs]
    np.testing.assert_array_equal(actual.numpy(), np.concatenate(parts, axis=dim))
    assert torch.equal(actual.narrow(dim, 0, shapes[0][dim]), xs[0].q)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-128, 127, torch.int8), (0, 255, torch.uint8), (-8, 7, torch.int8), (0, 15, torch.uint8)],
    ids=["int8", "uint8", "int4", "uint4"],
)
@pytest.mark.parametrize("out", [torch.int8, torch.uint8, torch.int16, torch.float32], ids=str)
def test_table(low: int, high: int, dtype: torch.dtype, out: torch.dtype) -> None:
    """A table gives its entry for every input, from the smallest up."""
    table = torch.arange(high - low + 1).mul(7).remainder(101).to(out)
    q = torch.arange(low, high + 1).to(dtype)
    assert torch.equal(Q.qtable(q, table, low), table)
    shaped = ints((3, 4, 5), dtype, low=low, high=high)
    actual = Q.qtable(shaped, table, low)
    np.testing.assert_array_equal(actual.numpy(), table.numpy()[wide(shaped) - low])
    assert actual.dtype == out


@pytest.mark.usefixtures("small_slices")
def test_table_formats() -> None:
    """channels_last, transposed, empty and large inputs."""
    table = ints((256,))
    for q in (
        ints((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last),
        ints((4, 3, 2)).permute(2, 0, 1),
        ints((6, 8))[::2, 1::3],
        ints((0, 3)),
        ints(()),
        ints((70, 800)),
    ):
        actual = Q.qtable(q, table, -128)
        np.testing.assert_array_equal(actual.numpy(), table.numpy()[wide(q) + 128])
        assert actual.stride() == torch.empty_like(q).stride()


def test_table_refuses_what_it_does_not_hold() -> None:
    """An input outside of the table is an error, not a neighbour's entry."""
    with pytest.raises(IndexError):
        Q.qtable(torch.tensor([8], dtype=torch.int8), ints((16,)), -8)
    with pytest.raises(IndexError):
        Q.qtable(torch.tensor([-9], dtype=torch.int8), ints((16,)), -8)
