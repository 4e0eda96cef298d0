"""Float layers with integer weights: the weights are those of the definition, the sums near."""

import pytest
import torch
from torch import Tensor, fx, nn

import qcore

CUDA = qcore.default_host().get("backend", "cuda")
DEQUANTIZE = torch.ops.qcore.dequantize_block.default


def layer(q: Tensor, scale: Tensor, zero: Tensor | None, block: list[int], bias: Tensor | None):
    """A program of one layer, and its weight."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    names = {"q": q, "scale": scale, "zero": zero, "bias": bias}
    at = {name: None if t is None else graph.get_attr(name) for name, t in names.items()}
    w = graph.call_function(DEQUANTIZE, (at["q"], at["scale"], at["zero"], block))
    y = graph.call_function(torch.ops.aten.linear.default, (x, w, at["bias"]))
    graph.output(y)
    root = {name: t for name, t in names.items() if t is not None}
    return fx.GraphModule(root, graph), DEQUANTIZE(q, scale, zero, block)


def lowered(program, device):
    backend = CUDA()
    own = [n.name for n in program.graph.nodes if n.op == "call_function"]
    assert all(backend.why_not(n) is None for n in program.graph.nodes if n.name in own)
    return backend.compile(program.to(device), frozenset(own))


@pytest.mark.parametrize("bits", ["int8", "int4", "uint4"])
@pytest.mark.parametrize(
    ("depth", "block"),
    [(96, [1, 32]), (64, [1, 64]), (96, [1, 4]), (40, [1, 20]), (45, [1, 45]), (64, [7, 32])],
)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 32, 33])
def test_sums_are_within_the_bound(device, bits, depth, block, affine, rows):
    """The bound that the module states, for one row, a few and many, of any grouping."""
    torch.manual_seed(0)
    low, high = {"int8": (-128, 128), "int4": (-8, 8), "uint4": (0, 16)}[bits]
    q = torch.randint(low, high, (21, depth)).to(torch.uint8 if low == 0 else torch.int8)
    count = 21 // block[0] * (depth // block[1])
    zero = torch.randint(-3, 9, (count,), dtype=torch.int32) if affine else None
    bias = torch.randn(21) if rows != 5 else None
    program, w = layer(q, torch.rand(count) + 0.01, zero, block, bias)
    x = torch.randn(rows, depth) * torch.logspace(-6, 6, depth)
    y = lowered(program, device)(x.to(device)).cpu()
    exact = x.double() @ w.double().t()
    size = x.abs().double() @ w.abs().double().t()
    if bias is not None:
        exact, size = exact + bias, size + bias.abs()
    unit = (depth + 2) * 2.0**-24
    assert y.shape == exact.shape
    assert ((y - exact).abs() <= unit / (1 - unit) * size).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("affine", [False, True])
def test_each_weight_is_that_of_the_definition(device, bits, affine):
    """Seen through inputs of one 1 each, the weights are equal bit for bit, whoever makes them."""
    torch.manual_seed(0)
    q = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (19, 96)).to(torch.int8)
    zero = torch.randint(-3, 9, (19, 3), dtype=torch.int32) if affine else None
    program, w = layer(q, torch.rand(19, 3), zero, [1, 32], None)
    run = lowered(program, device)
    eye = torch.eye(96)
    # + 0.0: a product with 0 has a sign, which a sum loses.
    wanted = w.t() + 0.0
    assert torch.equal(run(eye.to(device)).cpu(), wanted)
    for rows in (1, 16):
        parts = [run(part.to(device)).cpu() for part in eye.split(rows)]
        assert torch.equal(torch.cat(parts), wanted)


def test_weights_of_other_operations(device):
    """A table of embeddings, say, is dequantized at each call, to the same bits."""
    graph = fx.Graph()
    index, q, scale = graph.placeholder("index"), graph.get_attr("q"), graph.get_attr("scale")
    w = graph.call_function(DEQUANTIZE, (q, scale, None, [1, 8]))
    graph.output(graph.call_function(torch.ops.aten.embedding.default, (w, index)))
    root = {"q": torch.randint(-128, 128, (11, 16)).to(torch.int8), "scale": torch.rand(22)}
    program = fx.GraphModule(root, graph)
    rows = torch.tensor([3, 0, 10])
    wanted = program(rows)
    node = next(n for n in program.graph.nodes if n.target is DEQUANTIZE)
    backend = CUDA()
    assert backend.kernel(node) == "triton dequantize blocks"
    run = backend.compile(program.to(device), frozenset({node.name}))
    assert torch.equal(run(rows.to(device)).cpu(), wanted)


@pytest.mark.parametrize("preset", ["int8_weight_only", "int4_weight_only"])
def test_a_network(device, preset):
    """No float weight is left in memory, and the table says where the integers went."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 8)).eval()
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, torch.randn(2, 64), preset)))
    run = qcore.lower(q.to(device), "cuda")
    kernels = list(qcore.lowered_info(run)[""].kernels.values())
    assert kernels.count("triton weight-only linear") == 2
    assert kernels.count("in the kernel of the layer") == 2
    most = 64 * 96 + 96 * 8
    integers = [t for t in run.buffers() if t.dtype in (torch.int8, torch.uint8)]
    assert sum(t.numel() for t in integers) == most // (1 if "8" in preset else 2)
    x = torch.randn(5, 64, device=device)
    assert torch.allclose(run(x), q(x), rtol=1e-5, atol=1e-5)
