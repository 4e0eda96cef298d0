"""Learned fake quantizers start from every observer, and work from 8 to 2 bits, per tensor and
channel."""

import math

import pytest
import torch
from torch import nn

import qcore

LEARNED = ("lsq", "lsq_plus", "tqt", "pact")
OBSERVERS = tuple(spec.name for spec in qcore.default_host().specs("observer"))
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def made(kind, observer, scheme):
    host = qcore.default_host()
    seen = host.get("observer", observer)(scheme=scheme)
    if observer == "passive":
        seen.set_qparams(qcore.choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), scheme=scheme))
    fake = host.get("fake_quant", kind)(scheme=scheme, observer=seen)
    fake.of_weight = isinstance(scheme.granularity, qcore.PerChannel)
    return fake


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("kind", LEARNED)
def test_the_start_is_what_the_observer_answers(kind, observer):
    """Scale and zero point, with every observer that is installed."""
    scheme = qcore.QScheme(dtype=qcore.UINT4, symmetric=False)
    fake = made(kind, observer, scheme)
    fake(X)
    answer = fake.observer.calculate_qparams()
    assert fake.started
    torch.testing.assert_close(fake.qparams().scale, answer.scale, rtol=1e-6, atol=0)
    assert torch.equal(fake.qparams().zero_point, answer.zero_point)


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("granularity", [qcore.PerTensor(), qcore.PerChannel(0)], ids=str)
@pytest.mark.parametrize("kind", LEARNED)
def test_every_width(kind, granularity, bits):
    """Few steps of a plain optimizer bring the rounded tensor nearer to the float one; training
    and eval agree, and no value leaves the integers of the width."""
    if kind == "pact":
        # Its clip only grows by what it clips, so it starts too small; behind a relu.
        scheme = qcore.QScheme(
            dtype=qcore.QDtype.custom(bits=bits, signed=False),
            granularity=granularity,
            symmetric=False,
        )
        x, start = X.relu(), 0.3
    else:
        scheme = qcore.QScheme(
            dtype=qcore.QDtype.custom(bits=bits, signed=True),
            granularity=granularity,
            symmetric=kind != "lsq_plus",
        )
        x, start = X, 3.0
    fake = made(kind, "minmax", scheme).train()
    fake(start * x)
    fake.observer_enabled = False
    # A step of 1 % of the scale; the other two learn a logarithm and a range.
    lr = 0.01 * fake.qparams().scale.mean().item() if kind in ("lsq", "lsq_plus") else 0.05
    optimizer = torch.optim.Adam(fake.parameters(), lr=lr)

    def error():
        return (fake(x) - x).square().mean()

    before = error().item()
    for _ in range(60):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < before
    qparams = fake.qparams()
    integers = qcore.quantize_tensor(x, qparams)
    assert integers.amin() >= scheme.dtype.quant_min
    assert integers.amax() <= scheme.dtype.quant_max
    assert integers.unique().numel() <= 2**bits
    trained = fake(x)
    # The quotient of training and that of the formula may differ in the last bit of float32.
    near = (trained - fake.eval()(x)).abs() < 1e-5 * qparams.scale.max()
    assert near.float().mean() > 0.98
    shape = () if granularity == qcore.PerTensor() else (32,)
    assert qparams.scale.shape == shape


@pytest.mark.parametrize("bits", [8, 5, 3, 2])
def test_a_loop_of_the_users_own_at_every_width(bits):
    """Weights a channel and activations a tensor: a plain module and a plain optimizer; the loss
    falls, and Q is QFloat on every integer."""
    torch.manual_seed(0)
    dtype = qcore.QDtype.custom(bits=bits, signed=True)
    unsigned = qcore.QDtype.custom(bits=bits, signed=False)
    qconfig = qcore.QConfig(
        weight=qcore.QuantizerConfig(
            scheme=qcore.QScheme(dtype=dtype, granularity=qcore.PerChannel(0)),
            observer="mse",
            fake_quant="lsq",
        ),
        activation=qcore.QuantizerConfig(
            scheme=qcore.QScheme(dtype=unsigned, symmetric=False),
            observer="histogram",
            fake_quant="lsq_plus",
        ),
    )
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    target = torch.randint(0, 4, (32,))
    qfloat = qcore.calibrate(qcore.prepare(model, X, qconfig), [X]).train()
    optimizer = torch.optim.Adam(qfloat.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(qfloat(X), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0] - 0.1
    q = qcore.convert(qfloat.eval())
    assert qcore.count_differences(qfloat, q, [X]).differing == 0
