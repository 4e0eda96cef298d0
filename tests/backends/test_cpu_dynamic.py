"""Layers of the CPU backend that take and give float: each bit is that of the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import qcore

from .forcing import run_forced

CPU = qcore.default_host().get("backend", "cpu")
pytestmark = pytest.mark.skipif(CPU.unavailable() is not None, reason=str(CPU.unavailable()))

OP = torch.ops.qcore.qlinear_dynamic.default


def call(
    w: Tensor, w_scale: Tensor, bias: Tensor | None = None, span: tuple[int, int] = (-128, 127)
) -> tuple[fx.GraphModule, fx.Node]:
    """A program of one layer that quantizes its input at run time."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    stored = [graph.get_attr(name) for name in ("w", "w_scale")]
    last = None if bias is None else graph.get_attr("bias")
    node = graph.call_function(OP, (x, *span, *stored, None, last))
    graph.output(node)
    return fx.GraphModule({"w": w, "w_scale": w_scale, "bias": bias}, graph), node


def compiled(program: fx.GraphModule, node: fx.Node) -> nn.Module:
    """The program on the backend."""
    backend = CPU()
    assert backend.why_not(node) is None
    return backend.compile(program, frozenset({node.name}))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float tensors are equal bit by bit, NaN and the sign of 0 included."""
    both_nan = a.isnan() & b.isnan()
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | both_nan).all())


def assert_equal(
    x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, span: tuple[int, int]
) -> None:
    program, node = call(w, w_scale, bias, span)
    expected = program(x)
    actual = compiled(program, node)(x)
    assert actual.shape == expected.shape
    assert same_bits(actual, expected)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_layer_equals_its_definition(data: st.DataObject) -> None:
    """Any shape, groups, range, scales with ties, bias: 0 differing bits."""
    seed = data.draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    groups = data.draw(st.sampled_from([1, 1, 2, 5]))
    columns = groups * data.draw(st.sampled_from([1, 7, 16, 32, 64, 129]))
    n = data.draw(st.sampled_from([1, 3, 16, 33, 80]))
    rows = data.draw(st.sampled_from([(), (1,), (5,), (2, 3), (33,), (0,)]))
    x = torch.randn(*rows, columns)
    if data.draw(st.booleans()):
        # Multiples of a quarter of a power of two: many lie between two integers.
        x = (x * 16).round() / 4
    span = data.draw(st.sampled_from([(-128, 127), (-127, 127), (-8, 7)]))
    w = torch.randint(-127, 128, (n, columns)).to(torch.int8)
    shape = data.draw(st.sampled_from([(), (n,), (n, groups)]))
    w_scale = torch.rand(shape) * 0.1 + 0.001
    if data.draw(st.booleans()):
        w_scale = w_scale.log2().round().exp2()
    bias = torch.randn(n) if data.draw(st.booleans()) else None
    assert_equal(x, w, w_scale, bias, span)


@pytest.mark.parametrize("groups", [1, 3])
def test_extremes(groups: int) -> None:
    """The largest sums, tokens of zeros, tiny and huge ones, NaN and infinities in one batch."""
    k = 96
    x = torch.randn(12, k)
    x[0] = 0
    x[1] = -0.0
    x[2] = 127.5
    x[3] = -127.5
    x[4] *= 1e-44
    x[5] *= 1e37
    x[6] = 3.4e38
    x[7, 5] = float("nan")
    x[8, 0] = float("inf")
    x[9, -1] = float("-inf")
    w = torch.cat([torch.full((8, k), 127), torch.full((8, k), -128)]).to(torch.int8)
    w_scale = torch.rand(16, groups)
    assert_equal(x, w, w_scale if groups > 1 else w_scale[:, 0], torch.randn(16), (-128, 127))
    program, node = call(w, w_scale)
    y = compiled(program, node)(x)
    assert y[7:10].isnan().all()
    assert torch.isfinite(y[[0, 1, 2, 3, 4, 10, 11]]).all()


def test_inputs_of_any_layout_stay_as_they_are() -> None:
    """Transposed and sliced inputs are read as what they show, and not written to."""
    program, node = call(torch.randint(-9, 9, (5, 12)).to(torch.int8), torch.rand(5, 4))
    lowered = compiled(program, node)
    whole = torch.randn(12, 6, 4)
    for x in (whole.permute(1, 2, 0), whole.permute(2, 1, 0)[::2, 1:], torch.randn(3, 24)[:, ::2]):
        before = x.clone()
        assert same_bits(lowered(x), OP(x, -128, 127, *constants(program), None, None))
        assert torch.equal(x, before)


def constants(program: fx.GraphModule) -> tuple[Tensor, Tensor]:
    return program.w, program.w_scale


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.LayerNorm(96), nn.Linear(96, 64, bias=False), nn.GELU(),
        nn.Linear(64, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("preset", ["int8_dynamic", "int4_dynamic"])
def test_a_network_gives_the_same_bits(preset: str) -> None:
    """Every linear layer runs on oneDNN, and the program gives what the reference gives."""
    x = torch.randn(3, 7, 64)
    q = qcore.convert(qcore.calibrate(qcore.prepare(network(), x, preset)))
    lowered = qcore.lower(q, "cpu")
    kernels = list(qcore.lowered_info(lowered)[""].kernels.values())
    assert kernels.count("onednn.qlinear_dynamic") == 3
    for batch in (x, torch.randn(1, 7, 64), torch.randn(5, 7, 64)):
        assert same_bits(lowered(batch), q(batch))


def test_a_token_never_notices_its_batch() -> None:
    """The result of a token is the same in batches of any size, whatever kernel oneDNN takes."""
    program, node = call(torch.randint(-127, 128, (48, 64)).to(torch.int8), torch.rand(48))
    lowered = compiled(program, node)
    x = torch.randn(130, 64)
    whole = lowered(x)
    for size in (1, 2, 15, 16, 17, 64):
        assert same_bits(lowered(x[:size]), whole[:size])


def test_what_it_can_not_run_is_left_to_the_reference_with_the_reason() -> None:
    """Weights with zero points and tokens of more than 8 bits."""
    x = torch.randn(3, 64)
    affine = qcore.QConfig(
        weight=qcore.QuantizerConfig(scheme="uint4_group32"),
        activation=qcore.QuantizerConfig(scheme="int8_token"),
    )
    wide = qcore.QConfig(
        weight=qcore.QuantizerConfig(scheme="int8_channel"),
        activation=qcore.QuantizerConfig(
            scheme=qcore.QScheme(dtype=qcore.INT16, granularity=qcore.PerToken())
        ),
    )
    for qconfig, reason in ((affine, "zero point"), (wide, "more than 8 bits")):
        q = qcore.convert(qcore.calibrate(qcore.prepare(network(), x, qconfig)))
        lowered = qcore.lower(q, "cpu")
        reference = qcore.lowered_info(lowered)[""].reference
        assert sum(reason in why for why in reference.values()) == 3
        assert same_bits(lowered(x), q(x))


@pytest.mark.parametrize("preset", ["int8_weight_only", "int4_weight_only"])
def test_weights_are_dequantized_once(preset: str) -> None:
    """A layer with integer weights and float arithmetic gets the same float weight each time."""
    x = torch.randn(3, 64)
    q = qcore.convert(qcore.calibrate(qcore.prepare(network(), x, preset)))
    lowered = qcore.lower(q, "cpu")
    kernels = list(qcore.lowered_info(lowered)[""].kernels.values())
    assert kernels.count("dequantized once") == 3
    calls = [str(n.target) for n in lowered.graph.nodes if n.op == "call_function"]
    assert not any("dequantize" in name or "unpack" in name for name in calls)
    for batch in (x, torch.randn(1, 64), torch.randn(0, 64)):
        assert same_bits(lowered(batch), q(batch))


def test_weights_of_convolutions_are_dequantized_once() -> None:
    """So are those of any other float layer."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, x, "int8_weight_only")))
    lowered = qcore.lower(q, "cpu")
    assert same_bits(lowered(x), q(x))
    assert "dequantized once" in qcore.lowered_info(lowered)[""].kernels.values()


_FORCED = """
    import torch, qcore
    from torch import nn
    torch.manual_seed(0)
    torch.set_num_threads({threads})
    model = nn.Sequential(
        nn.Linear(160, 96), nn.ReLU(), nn.Linear(96, 64, bias=False), nn.Linear(64, 10)).eval()
    x = torch.randn(70, 160) * torch.exp(torch.randn(70, 1) * 3)
    x[3] = (x[3] * 4).round() / 4
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, x, {preset!r})))
    lowered = qcore.lower(q, "cpu")
    for rows in (1, 5, 70):
        assert torch.equal(lowered(x[:rows]), q(x[:rows])), rows
    info = qcore.lowered_info(lowered)[""]
    print(sum("qlinear_dynamic" in label for label in info.kernels.values()))
    print({{r for n, r in info.reference.items() if "qlinear_dynamic" in n}})
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="x86-64 only"
)
@pytest.mark.parametrize(
    ("isa", "preset", "own"),
    [
        ("AVX512_CORE_AMX", "int8_dynamic", 3),
        ("AVX512_CORE_AMX", "int4_dynamic", 3),
        ("AVX512_CORE_VNNI", "int8_dynamic", 3),
        ("AVX512_CORE_VNNI", "int4_dynamic", 3),
        ("AVX2", "int8_dynamic", 0),
        ("AVX2", "int4_dynamic", 3),
    ],
)
def test_every_instruction_set_gives_the_same_bits(isa: str, preset: str, own: int) -> None:
    """Where 16-bit pairs could saturate the layer is refused; 4-bit weights can't saturate them."""
    script = _FORCED.format(preset=preset, threads=2 if "int4" in preset else 1)
    printed = run_forced(script, backend="cpu", forced={"ONEDNN_MAX_CPU_ISA": isa})
    count, reasons = printed.strip().splitlines()
    assert int(count) == own
    assert ("saturate" in reasons) == (own == 0)
