"""Linear layers on NumPy."""

import itertools

import pytest
import torch
from qcore_acme.numpy_backend import linear
from torch import nn

import qcore

KEY = qcore.Numerics().key


@pytest.mark.parametrize("bias", [None, "int32", "float32"])
@pytest.mark.parametrize("zero_point", [None, 3])
@pytest.mark.parametrize("output", [torch.int8, torch.uint8, torch.float32], ids=str)
def test_every_integer_is_the_reference_s(bias, zero_point, output):
    """Equal to the operation's definition, ties, odd zero points and saturation included."""
    generator = torch.Generator().manual_seed(0)

    def integers(low, high, *shape, dtype=torch.int8):
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)

    # With the step 2.0 many outputs are ties; with 1.7 every step of the arithmetic rounds.
    for x_zero, per_channel, step in itertools.product((0, -7), (True, False), (2.0, 1.7)):
        x, w = integers(-128, 127, 64, 48), integers(-127, 127, 32, 48)
        scale = 2.0 ** -integers(4, 6, *([32] if per_channel else [])).float()
        zero = None if zero_point is None else torch.full(scale.shape, zero_point).int()
        offset = None if bias is None else integers(-3000, 3000, 32, dtype=torch.int32)
        offset = offset.float() / 8 if bias == "float32" else offset
        low, high = (0, 255) if output == torch.uint8 else (-128, 127)
        args = (x, 0.5, x_zero, w, scale, zero, offset, step, 5, low, high, output, KEY)
        expected = torch.ops.qcore.qlinear.default(*args)
        assert torch.equal(linear(*args), expected)
        if output != torch.float32:
            assert (expected == high).any()
            assert len(expected.unique()) > 50


def test_a_network_runs_on_it():
    """Linear layers run on NumPy, the rest on the reference; nothing differs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 32), nn.ReLU()
    )
    model = nn.Sequential(*model, nn.Linear(32, 10)).eval()
    data = [torch.randn(16, 1, 8, 8) for _ in range(4)]
    recipe = qcore.Recipe.from_table({"preset": "int8", "backend": "acme_numpy"})
    qfloat = qcore.calibrate(qcore.prepare(model, data[0], recipe), data)
    lowered = qcore.lower(qcore.convert(qfloat), "acme_numpy")
    assert qcore.count_differences(qfloat, lowered, data).differing == 0
    table = qcore.lowered_info(lowered)[""]
    assert list(table.kernels.values()) == ["numpy linear"] * 2
    assert set(table.reference.values()) == {"it has a kernel for linear layers only"}


@pytest.mark.parametrize(
    "scheme", ["int4_group32", "uint4_group32", "int8_channel", "uint8_channel"]
)
def test_schemes_of_weights(scheme):
    """Groups, zero points of weights and packed weights are computed too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    data = [torch.randn(16, 64) for _ in range(2)]
    recipe = qcore.Recipe.from_table({"preset": "int8", "weight": {"scheme": scheme}})
    qfloat = qcore.calibrate(qcore.prepare(model, data[0], recipe), data)
    lowered = qcore.lower(qcore.convert(qfloat), "acme_numpy")
    assert qcore.count_differences(qfloat, lowered, data).differing == 0
    assert list(qcore.lowered_info(lowered)[""].kernels.values()) == ["numpy linear"] * 2
