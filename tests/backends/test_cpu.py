"""The CPU backend computes exactly what its declared contract says, or refuses with the reason."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qcore

from .forcing import run_forced

CPU = qcore.default_host().get("backend", "cpu")
pytestmark = pytest.mark.skipif(CPU.unavailable() is not None, reason=str(CPU.unavailable()))


def program(model, x, preset="uint8", **changes):
    """A calibrated program for the backend's contract."""
    weight = changes.pop("weight", None)
    recipe = qcore.Recipe(preset=preset, backend="cpu", weight=weight, **changes)
    qfloat = qcore.prepare(model.eval(), x[:2], recipe)
    return qcore.convert(qcore.calibrate(qfloat, [x])), qfloat.eval()


def own_layers(lowered):
    """Nodes that run on the backend's own kernels."""
    return [n for n in qcore.lowered_info(lowered)[""].kernels if "qconv" in n or "qlinear" in n]


class Block(nn.Module):
    """A residual block between two convolutions, then a classifier."""

    def __init__(self, conv=nn.Conv2d, pool=nn.AdaptiveAvgPool2d, channels=8, groups=1):
        super().__init__()
        self.first = conv(3, channels, 3, stride=2, padding=1)
        self.second = conv(channels, channels, 3, padding=1, groups=groups)
        self.third = conv(channels, channels, 1)
        self.pool = pool(1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.third(nn.functional.relu6(self.second(x))) + x)
        return self.fc(self.pool(x).flatten(1))


@pytest.mark.parametrize("preset", ["uint8", "int8_minmax", "int4"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_network_gives_the_same_integers(preset, groups):
    """Convolution, residual, clamp and linear layer equal the reference, on any batch size."""
    torch.manual_seed(groups)
    q, qfloat = program(Block(groups=groups), torch.randn(8, 3, 12, 12), preset)
    lowered = qcore.lower(q, "cpu")
    assert len(own_layers(lowered)) == 4
    for batch in (1, 5):
        x = torch.randn(batch, 3, 12, 12)
        assert torch.equal(lowered(x), q(x))
        assert torch.equal(qfloat(x), q(x))


@pytest.mark.parametrize(
    ("conv", "pool", "shape"),
    [
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (4, 3, 20)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (4, 3, 6, 6, 6)),
    ],
)
def test_other_dimensions_give_the_same_integers(conv, pool, shape):
    """Convolutions in one and three dimensions equal the reference, wherever they run."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    q, _ = program(Block(conv, pool), x)
    assert torch.equal(qcore.lower(q, "cpu")(x), q(x))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_convolution_equals_its_definition(data):
    """Any geometry, zero points, extremes and scales with ties: 0 differing integers."""
    seed = data.draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel = data.draw(st.sampled_from([1, 3]))
    stride, padding = data.draw(st.integers(1, 2)), data.draw(st.integers(0, kernel // 2))
    y_dtype = data.draw(st.sampled_from([torch.int8, torch.uint8, torch.float32]))
    x_dtype = data.draw(st.sampled_from([torch.int8, torch.uint8]))
    # Powers of two put one output in two on a tie.
    x_scale = data.draw(st.sampled_from([0.5, 0.0217, 0.25]))
    y_scale = data.draw(st.sampled_from([1.0, 0.37, 32.0]))
    info = torch.iinfo(x_dtype)
    x_zero = data.draw(st.integers(info.min, info.max))
    y_info = torch.iinfo(torch.uint8 if y_dtype == torch.float32 else y_dtype)
    y_zero = data.draw(st.integers(y_info.min, y_info.max))
    low = data.draw(st.sampled_from([y_info.min, y_zero]))
    channels = 4 * groups
    x = torch.randint(info.min, info.max + 1, (2, channels, 6, 6)).to(x_dtype)
    w = torch.randint(-127, 128, (8, 4, kernel, kernel)).to(torch.int8)
    w_scale = torch.full((8,), 0.25) if seed % 2 else torch.rand(8) * 0.01 + 0.001
    bias = torch.randn(8)

    class Program(nn.Module):
        pass

    graph = torch.fx.Graph()
    arguments = (
        graph.placeholder("x"),
        x_scale,
        x_zero,
        graph.get_attr("w"),
        graph.get_attr("w_scale"),
        None,
        graph.get_attr("bias"),
        [stride, stride],
        [padding, padding],
        [1, 1],
        groups,
        None,
        1.0,
        0,
        y_scale,
        y_zero,
        low,
        y_info.max,
        y_dtype,
        CPU.numerics.key,
    )
    typed = graph.call_function(
        torch.ops.qcore.qrequantize.default,
        (arguments[0], 1.0, 0, 1.0, 0, info.min, info.max, x_dtype, CPU.numerics.key),
    )
    node = graph.call_function(torch.ops.qcore.qconv.default, (typed, *arguments[1:]))
    graph.output(node)
    root = {"w": w, "w_scale": w_scale, "bias": bias}
    module = torch.fx.GraphModule(root, graph)
    expected = module(x)
    backend = CPU()
    assert backend.why_not(node) is None
    assert torch.equal(backend.compile(module, frozenset({node.name}))(x), expected)


def test_another_contract_is_refused():
    """A program for the default contract is not run by a backend of another, unless asked."""
    q, _ = program(Block(), torch.randn(4, 3, 8, 8), numerics=qcore.Numerics().key)
    with pytest.raises(qcore.BackendError, match=r"prepared for numerics .* Prepare with backend"):
        qcore.lower(q, "cpu")
    lowered = qcore.lower(q, "cpu", allow_other_numerics=True)
    assert qcore.lowered_info(lowered)[""].may_differ
    x = torch.randn(6, 3, 8, 8)
    assert torch.allclose(lowered(x), q(x), atol=0.05 * float(q(x).abs().max()))


def test_what_it_can_not_run_is_left_to_the_reference_with_the_reason():
    """Grouped weights stay on the reference kernels, and the table says why."""
    weight = qcore.QuantizerConfig(scheme="int4_group32", observer="minmax")
    x = torch.randn(6, 64)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    q, _ = program(model, x, weight=weight)
    lowered = qcore.lower(q, "cpu")
    assert not own_layers(lowered)
    assert "the weight is quantized in groups" in qcore.lowered_info(lowered)[""].reference.values()
    assert torch.equal(lowered(x), q(x))


_FORCED = """
    import torch, qcore
    from torch import nn
    torch.manual_seed(0)
    torch.set_num_threads({threads})
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)).eval()
    x = torch.randn(4, 3, 12, 12)
    recipe = qcore.Recipe(preset={preset!r}, backend="cpu")
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, x, recipe), [x]))
    lowered = qcore.lower(q, "cpu")
    assert torch.equal(lowered(x), q(x))
    info = qcore.lowered_info(lowered)[""]
    print(sum("qconv" in n or "qlinear" in n for n in info.kernels))
    print({{r for n, r in info.reference.items() if "qconv" in n or "qlinear" in n}})
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="x86-64 only"
)
@pytest.mark.parametrize(
    ("isa", "preset", "own"),
    [
        ("AVX512_CORE_AMX", "uint8", 4),
        ("AVX512_CORE_VNNI", "uint8", 4),
        ("AVX512_CORE_VNNI", "int8_minmax", 4),
        ("AVX2", "uint8", 0),
        ("AVX2", "int4", 4),
    ],
)
def test_every_instruction_set_gives_the_same_integers(isa, preset, own):
    """Where 16-bit pairs could saturate the layer is refused; 4-bit weights can't saturate them."""
    script = _FORCED.format(preset=preset, threads=2 if own else 1)
    printed = run_forced(script, backend="cpu", forced={"ONEDNN_MAX_CPU_ISA": isa})
    count, reasons = printed.strip().splitlines()
    assert int(count) == own
    assert ("saturate" in reasons) == (own == 0)


def test_an_empty_batch_gives_an_empty_result():
    """A batch of no images passes through."""
    q, _ = program(Block(), torch.randn(4, 3, 8, 8))
    assert qcore.lower(q, "cpu")(torch.zeros(0, 3, 8, 8)).shape == (0, 5)
