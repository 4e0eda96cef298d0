"""qmatmul against the oracle, in every value."""

import numpy as np
import pytest
import torch

from qcore import BackendError, QuantizationError

from . import oracle
from .cases import CONTRACTS, Activation, Q, Target, ints, wide

SHAPES = {
    "matrices": ((5, 7), (7, 4)),
    "square": ((6, 6), (6, 6)),
    "batch": ((3, 5, 7), (3, 7, 4)),
    "batch-of-one": ((1, 5, 7), (1, 7, 4)),
    "heads": ((2, 3, 5, 7), (2, 3, 7, 5)),
    "broadcast-left": ((5, 7), (2, 3, 7, 4)),
    "broadcast-right": ((2, 3, 5, 7), (7, 4)),
    "broadcast-both": ((2, 1, 5, 7), (3, 7, 4)),
    "vector-right": ((2, 5, 7), (7,)),
    "vector-left": ((7,), (2, 7, 4)),
    "vector-matrix": ((7,), (7, 4)),
    "vectors": ((7,), (7,)),
    "long": ((2, 3, 2000), (2, 2000, 3)),
    "empty-batch": ((0, 5, 7), (0, 7, 4)),
    "nothing-to-add": ((5, 0), (0, 4)),
    "one-element": ((1, 1), (1, 1)),
}


def check(a: Activation, b: Activation, y: Target) -> np.ndarray:
    actual = Q.qmatmul(a.q, a.scale, a.zero_point, b.q, b.scale, b.zero_point, *y.args)
    step = np.float32(a.scale) * np.float32(b.scale)
    expected = oracle.finish(np.matmul(a.centred(), b.centred()), step, y.contract)
    assert actual.dtype == y.dtype
    assert actual.is_contiguous()
    np.testing.assert_array_equal(actual.numpy(), expected)
    return expected


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    """All of torch.matmul's broadcasting."""
    left, right = SHAPES[shape]
    a = Activation(q=ints(left), scale=0.02, zero_point=3)
    b = Activation(q=ints(right, torch.uint8), scale=0.01, zero_point=117)
    check(a, b, Target(scale=0.2, zero_point=-5))


@pytest.mark.parametrize("right", [torch.int8, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("left", [torch.int8, torch.uint8, torch.int16], ids=str)
def test_dtypes(left: torch.dtype, right: torch.dtype) -> None:
    """Any two dtypes, with zero points at the ends."""
    a_info, b_info = torch.iinfo(left), torch.iinfo(right)
    a = Activation(q=ints((2, 4, 40), left), scale=2.0 / a_info.max, zero_point=a_info.max)
    b = Activation(q=ints((2, 40, 4), right), scale=2.0 / b_info.max, zero_point=b_info.min)
    check(a, b, Target(scale=0.7, zero_point=3))
    check(a, b, Target(dtype=torch.float32))


@pytest.mark.parametrize("numerics", [c for c in CONTRACTS if c.endswith(".int32")])
def test_every_contract_on_ties(numerics: str) -> None:
    """Each contract where many outputs are ties."""
    a = Activation(q=ints((2, 4, 9)), scale=0.5, zero_point=3)
    b = Activation(q=ints((2, 9, 4)), scale=0.5, zero_point=0)
    info = torch.iinfo(torch.int16)
    y = Target(scale=1.0, zero_point=-5, low=info.min, high=info.max, dtype=torch.int16,
               numerics=numerics)  # fmt: skip
    check(a, b, y)
    assert oracle.is_tie(np.matmul(a.centred(), b.centred()) / 4).mean() > 0.1


def test_transposed_operands() -> None:
    """As attention does it: queries times transposed keys."""
    q, k = ints((2, 5, 3, 8)).transpose(1, 2), ints((2, 6, 3, 8), seed=1).permute(0, 2, 3, 1)
    check(Activation(q=q, zero_point=1), Activation(q=k, zero_point=-7), Target(scale=0.05))


def test_extreme_values_of_both_operands() -> None:
    """The bound comes from the second operand's values; at the worst the sum is split."""
    a = Activation(q=torch.full((2, 3000), 127, dtype=torch.int8), zero_point=-128)
    b = Activation(q=torch.full((3000, 2), 127, dtype=torch.int8), zero_point=-127)
    a.q[1, ::7] = 126
    check(a, b, Target(dtype=torch.float32))
    assert wide(a.q).shape == (2, 3000)


def test_slices_of_a_large_batch(small_slices: int) -> None:
    """A product that is computed by slices of the batch gives what each part gives."""
    a, b = ints((40, 25, 4)), ints((40, 4, 25))
    args = (0.02, 3, -7, Target(scale=0.1).args)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return Q.qmatmul(a, args[0], args[1], b, args[0], args[2], *args[3])

    whole = product(a, b)
    assert whole.numel() > 4 * small_slices
    for i in range(40):
        assert torch.equal(whole[i], product(a[i], b[i]))
    assert torch.equal(product(a, b[0])[5], product(a[5], b[0]))
    assert torch.equal(product(a[0], b)[5], product(a[0], b[5]))


@pytest.mark.usefixtures("small_slices")
def test_square_matrices_have_no_batch() -> None:
    """Dimension 0 of the second matrix is K, also where it has the size of the batch."""
    a = Activation(q=ints((90, 90)), zero_point=3)
    check(a, Activation(q=ints((90, 90), seed=1)), Target(scale=0.9))


def test_refusals() -> None:
    """Shapes that do not fit and a contract that has no meaning here."""
    a, b, y = ints((3, 4)), ints((5, 3)), Target()
    with pytest.raises(QuantizationError, match=r"\[\.\.\., K, N\]"):
        Q.qmatmul(a, 0.1, 0, b, 0.1, 0, *y.args)
    y = Target(numerics="half_even.multiplier.int32.after.int16_pairs")
    with pytest.raises(BackendError, match="qmatmul"):
        Q.qmatmul(a, 0.1, 0, b.t(), 0.1, 0, *y.args)
