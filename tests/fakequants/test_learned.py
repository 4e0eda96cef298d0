"""The life of every learned fake quantizer: a new one is one more row of ``KINDS``."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcore
from qcore import (
    INT4,
    UINT8,
    LearnedFakeQuantize,
    PerChannel,
    PerToken,
    QParams,
    QScheme,
    QuantizationError,
    dequantize_tensor,
    quantize_tensor,
)
from qcore_observers.minmax import MinMaxObserver

AFFINE = QScheme(dtype=UINT8, symmetric=False)
CHANNEL = QScheme(dtype=INT4, granularity=PerChannel(0))

KINDS = {"lsq": "step", "lsq_plus": "step", "tqt": "log2_threshold", "pact": "alpha"}
"""Name, and the parameter that sets the scale."""

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).abs() * 2


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fresh(kind: str, scheme: QScheme = AFFINE, where: str = "block.1") -> Any:
    cls = qcore.default_host().get("fake_quant", kind)
    assert issubclass(cls, LearnedFakeQuantize)
    return cls(scheme=scheme, observer=MinMaxObserver(scheme=scheme, where=where), where=where)


def started(kind: str, scheme: QScheme = AFFINE) -> Any:
    """One that has seen X and no longer observes."""
    fake = fresh(kind, scheme)
    fake(X)
    fake.observer_enabled = False
    return fake


def scale_parameter(kind: str, fake: nn.Module) -> nn.Parameter:
    return fake.get_parameter(KINDS[kind])


def test_it_starts_where_the_observer_is(kind: str) -> None:
    """Untrained it quantizes as the affine one does, and its parameters exist from then on."""
    fake = fresh(kind)
    assert not list(fake.parameters())
    assert not fake.calibrated
    fake(X)
    assert {name for name, _ in fake.named_parameters()} == set(fake.learned)
    expected = fake.observer.calculate_qparams()
    torch.testing.assert_close(fake.qparams().scale, expected.scale, rtol=1e-6, atol=0)
    assert torch.equal(fake.qparams().zero_point, expected.zero_point)


def test_training_and_eval_give_the_same_values(kind: str) -> None:
    """Bit for bit those of the integers, inside the range and outside."""
    fake = started(kind)
    for x in (X, -3 * X, 5 * X):
        trained = fake.train()(x)
        assert torch.equal(trained, fake.eval()(x))
        qparams = fake.qparams()
        assert torch.equal(trained, dequantize_tensor(quantize_tensor(x, qparams), qparams))


def test_training_moves_the_scale(kind: str) -> None:
    """The optimizer sees the parameters; eval follows them."""
    fake = started(kind)
    optimizer = torch.optim.SGD(fake.parameters(), lr=0.05)
    before = fake.qparams().scale.clone()
    losses = []
    for _ in range(20):
        # Half the values: the best range is half as wide.
        loss = (fake.train()(3 * X) - 3 * X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = fake.qparams()
    assert after.scale > before
    assert torch.equal(fake.eval()(X), dequantize_tensor(quantize_tensor(X, after), after))


def test_what_the_observer_sees_later_changes_nothing(kind: str) -> None:
    """A learned scale is not overwritten, in training and in eval, with the observer on."""
    fake = started(kind)
    before = fake.qparams().scale.clone()
    fake.observer_enabled = True
    for mode in (True, False):
        fake.train(mode)(100 * X)
        assert torch.equal(fake.qparams().scale, before)
    assert fake.observer.calculate_qparams().scale > 50 * before


def test_setting_qparams_starts_it_anew(kind: str) -> None:
    """In the same parameters, so an optimizer goes on knowing them."""
    fake = started(kind)
    identity = {name: id(p) for name, p in fake.named_parameters()}
    given = QParams(
        scale=torch.tensor(0.5), zero_point=torch.tensor(7, dtype=torch.int32), scheme=AFFINE
    )
    fake.set_qparams(given)
    assert fake.qparams().scale.item() == pytest.approx(0.5)
    assert fake.qparams().zero_point.item() == 7
    assert {name: id(p) for name, p in fake.named_parameters()} == identity
    with pytest.raises(QuantizationError, match="int4 symmetric"):
        fake.set_qparams(
            QParams(
                scale=torch.ones(1), zero_point=torch.zeros(1, dtype=torch.int32), scheme=CHANNEL
            )
        )


def test_a_state_dict_restores_a_fresh_one(kind: str) -> None:
    """Strictly, though the fresh one has no parameters yet."""
    old = started(kind)
    with torch.no_grad():
        scale_parameter(kind, old).add_(0.123)
    new = fresh(kind)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.train()(X), old.train()(X))
    assert torch.equal(new.qparams().scale, old.qparams().scale)
    assert not new.observer_enabled
    # And into parameters that an optimizer knows.
    parameter = scale_parameter(kind, new)
    with torch.no_grad():
        scale_parameter(kind, old).add_(0.5)
    new.load_state_dict(old.state_dict())
    assert scale_parameter(kind, new) is parameter
    assert torch.equal(new.eval()(X), old.eval()(X))


def test_a_state_from_before_calibration_makes_it_forget(kind: str) -> None:
    """Loading what had seen nothing gives what has seen nothing."""
    fake = started(kind)
    fake.load_state_dict(fresh(kind).state_dict())
    assert not fake.calibrated
    assert not list(fake.parameters())


def test_a_copy_is_independent(kind: str) -> None:
    """deepcopy copies the parameters."""
    fake = started(kind)
    fake.qparams()
    twin = copy.deepcopy(fake)
    with torch.no_grad():
        scale_parameter(kind, twin).add_(1.0)
    assert twin.qparams().scale != fake.qparams().scale
    assert torch.equal(fake.qparams().scale, started(kind).qparams().scale)


def test_an_optimizer_step_below_zero_leaves_a_positive_scale(kind: str) -> None:
    """Any value of the parameter is a valid scale; NaN is an error that names the layer."""
    fake = started(kind)
    for value in (-0.5, 0.0, -1e-30, 3e38, -3e38):
        with torch.no_grad():
            scale_parameter(kind, fake).fill_(value)
        scale = fake.qparams().scale
        assert scale > 0
        assert torch.isfinite(fake.train()(X)).all()
    with torch.no_grad():
        scale_parameter(kind, fake).fill_(float("nan"))
    with pytest.raises(QuantizationError, match=r"'block\.1'.*NaN or infinite.*learning rate"):
        fake.qparams()
    assert fake(X).isnan().all()


def test_half_keeps_the_parameters_in_float32(kind: str) -> None:
    """A model in half precision has the integers that it had."""
    fake = started(kind)
    before = fake.qparams().scale.clone()
    nn.Sequential(fake).half()
    assert scale_parameter(kind, fake).dtype == torch.float32
    assert torch.equal(fake.qparams().scale, before)
    assert fake.train()(X.half()).dtype == torch.float16


def test_a_frozen_parameter_gets_no_gradient(kind: str) -> None:
    """requires_grad_(False) stops learning; the input still has its gradient."""
    fake = started(kind).train()
    for parameter in fake.parameters():
        parameter.requires_grad_(False)
    x = X.clone().requires_grad_()
    fake(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in fake.parameters())
    fake.set_qparams(fake.qparams())
    assert not any(p.requires_grad for p in fake.parameters())


def test_gradients_reach_the_parameters_in_eval_mode(kind: str) -> None:
    """As those of weights do."""
    fake = started(kind).eval()
    fake(5 * X.clone().requires_grad_()).sum().backward()
    assert all(p.grad is not None for p in fake.parameters())


def test_uncalibrated_is_an_error_that_names_the_layer(kind: str) -> None:
    """In training too."""
    fake = fresh(kind).train()
    fake.observer_enabled = False
    with pytest.raises(QuantizationError, match=r"'block\.1'.*seen no values"):
        fake(X)


def test_schemes_that_can_not_be_learned_are_refused(kind: str) -> None:
    """A scale for each row of a batch; powers of two, except by TQT."""
    with pytest.raises(QuantizationError, match=r"'block\.1'.*per_token.*use per_tensor"):
        fresh(kind, QScheme(dtype=INT4, granularity=PerToken(), symmetric=False))
    scheme = QScheme(dtype=UINT8, symmetric=False, power_of_two=True)
    if kind == "tqt":
        fresh(kind, scheme)
    else:
        with pytest.raises(QuantizationError, match="powers of two; use fake_quant 'tqt'"):
            fresh(kind, scheme)


# In a model


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, 8, 8, generator=g) + torch.randn(32, 3, 1, 1, generator=g)
    return x, x.mean((2, 3)).argmax(1)


def recipe(kind: str, weight: str, activation: str) -> qcore.QConfig:
    return qcore.QConfig(
        weight=qcore.QuantizerConfig(
            scheme=weight,
            observer="mse",
            # LSQ+ has no symmetric form; its paper takes LSQ for weights.
            fake_quant="lsq" if kind == "lsq_plus" else kind,
        ),
        activation=qcore.QuantizerConfig(scheme=activation, observer="minmax", fake_quant=kind),
    )


@pytest.mark.parametrize(
    ("weight", "activation"),
    [
        ("int8_channel", "int8_affine"),
        ("int4_channel", "uint4"),
        ("int3_channel", "uint3"),
        ("int2_channel", "uint4"),
        ("int4", "int8_affine"),
    ],
    ids=str,
)
def test_a_plain_loop_trains_and_the_program_is_equal(
    kind: str, weight: str, activation: str
) -> None:
    """A user's own loop: the loss falls, every scale has moved, and QFloat equals Q after it."""
    x, y = data()
    qfloat = qcore.prepare(network(), x, recipe(kind, weight, activation))
    qcore.calibrate(qfloat, [x])
    quantizers = qcore.quantizers(qfloat)
    before = {name: q.qparams().scale.clone() for name, q in quantizers}
    known = {id(p) for p in qfloat.parameters()}
    assert all(id(p) in known for _, q in quantizers for p in q.parameters())
    optimizer = torch.optim.SGD(qfloat.train().parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(qfloat(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    moved = [not torch.equal(before[name], q.qparams().scale) for name, q in quantizers]
    # PACT moves where a value is clipped, which min-max leaves few of.
    assert all(moved) if kind != "pact" else any(moved)
    q = qcore.convert(qfloat)
    fidelity = qcore.count_differences(qfloat, q, [x, x[:3] * 2])
    assert fidelity.compared > 0
    assert fidelity.differing == 0


def test_calibrating_again_starts_anew(kind: str) -> None:
    """calibrate is the one way in which what an observer sees replaces what was learned."""
    x, _ = data()
    qfloat = qcore.prepare(network(), x, recipe(kind, "int8_channel", "int8_affine"))
    qcore.calibrate(qfloat, [x])
    before = {name: q.qparams().scale.clone() for name, q in qcore.quantizers(qfloat)}
    known = [id(p) for p in qfloat.parameters()]
    with torch.no_grad():
        for _, quantizer in qcore.quantizers(qfloat):
            for parameter in quantizer.parameters():
                parameter.mul_(1.5)
    qcore.calibrate(qfloat, [x])
    for name, quantizer in qcore.quantizers(qfloat):
        assert torch.equal(quantizer.qparams().scale, before[name])
    assert [id(p) for p in qfloat.parameters()] == known


def test_a_whole_model_is_restored(kind: str) -> None:
    """A prepared model that loads a trained one's state computes the same integers."""
    x, _ = data()
    config = recipe(kind, "int4_channel", "uint4")
    old = qcore.calibrate(qcore.prepare(network(), x, config), [x])
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.mul_(1.1)
    new = qcore.prepare(network(), x, config)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.eval()(x), old.eval()(x))
    assert qcore.count_differences(old, qcore.convert(new), [x]).differing == 0


def compiled_gradients(kind: str, backend: str) -> None:
    # What was compiled before in this process counts towards a limit.
    torch._dynamo.reset()
    x, y = data()
    config = recipe(kind, "int4_channel", "uint4") if kind != "affine" else "int8_minmax"
    qfloat = qcore.calibrate(qcore.prepare(network(), x, config), [x]).train()
    start = copy.deepcopy(qfloat.state_dict())
    compiled = torch.compile(qfloat, fullgraph=True, backend=backend)
    found = []
    for model in (qfloat, compiled):
        qfloat.load_state_dict(start)
        qfloat.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found.append([p.grad.clone() for p in qfloat.parameters()])
    for a, b in zip(*found, strict=True):
        # The bias in front of a BatchNorm has no gradient but rounding noise.
        small = max(a.abs().max(), b.abs().max()) < 1e-6
        assert small or F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


# torch.compile makes an instance of an autograd function, which torch itself warns about.
compiling = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@compiling
@pytest.mark.parametrize("name", ["affine", *KINDS])
def test_a_training_step_is_one_graph(name: str) -> None:
    """torch.compile takes the whole model without a break, with the gradients of eager."""
    compiled_gradients(name, "aot_eager")


@pytest.mark.slow
@compiling
@pytest.mark.parametrize("name", ["affine", *KINDS])
def test_a_compiled_training_step(name: str) -> None:
    """The same through inductor, whose rounding differs in the last place."""
    compiled_gradients(name, "inductor")


def test_parameters_are_about_values_without_the_unit(kind: str) -> None:
    """With a unit a quantizer does to a multiple what it does to the values without one."""
    symmetric = kind != "lsq_plus"
    scheme = QScheme(dtype=INT4, granularity=PerChannel(0), symmetric=symmetric)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    unit = torch.tensor([0.25, 1.0, 8.0])

    def with_unit(factor: Tensor) -> Any:
        fake = fresh(kind, scheme)
        fake.set_unit(factor)
        fake(x * factor[:, None])
        fake.observer_enabled = False
        return fake.train()

    plain, scaled = with_unit(torch.ones(3)), with_unit(unit)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(scaled.qparams().scale, plain.qparams().scale * unit)
    torch.testing.assert_close(scaled(x * unit[:, None]), plain(x) * unit[:, None])
    # A new unit moves the scale, and no parameter.
    scaled.set_unit(torch.ones(3))
    torch.testing.assert_close(scaled.qparams().scale, plain.qparams().scale)


def test_scales_that_are_powers_of_two_have_no_unit() -> None:
    """A factor between powers of two would leave none of them."""
    scheme = QScheme(dtype=INT4, granularity=PerChannel(0), power_of_two=True)
    fake = fresh("tqt", scheme)
    fake.set_unit(torch.tensor([0.3]))
    assert fake.unit is None
