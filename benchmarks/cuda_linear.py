"""Linear layers of language models on a GPU, against torch's own and against the limit.

For each layer and number of tokens: how many times as fast as bfloat16 under ``torch.compile`` each
engine is; and for the layers of qcore, which share of the limit they reach, that is the time of
moving their bytes at the measured bandwidth or of their operations at the measured int8 rate,
whichever is longer. Every call meets weights that no cache holds.

    python benchmarks/cuda_linear.py [--sizes 4096x4096 4096x14336] [--tokens 1 32 2048] [--write]
    python benchmarks/cuda_linear.py --dry-run
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import cuda_measuring as measuring
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import qcore

GROUP = 32
COLD = 2**28
"""Bytes of weights that no cache holds."""

QCORE = {
    "W8A8 static": (8, 1, 1),
    "W8A8 dynamic": (8, 4, 4),
    "W8": (8, 4, 4),
    "W4 g32": (4 + 32 / GROUP, 4, 4),
}
"""Layers of qcore: bits of a weight, bytes of an input and of an output."""


def static(layer: nn.Linear, where: torch.device) -> nn.Module:
    """The int8 layer alone: int8 in, int8 out."""
    from qcore_backends.cuda.linear import Linear

    key = qcore.Numerics().key
    graph = fx.Graph()
    given = (graph.placeholder("x"), 1.0, 0, 1.0, 0, -128, 127, torch.int8, key)
    x = graph.call_function(torch.ops.qcore.qrequantize.default, given)
    w = layer.weight.detach()
    scale = w.abs().amax(1).cpu() / 127
    names = [graph.get_attr(name) for name in ("w", "scale")]
    output = (0.1, 0, -128, 127, torch.int8, key)
    node = graph.call_function(
        torch.ops.qcore.qlinear.default, (x, 0.02, 3, *names, None, None, *output)
    )
    integers = (w.cpu() / scale[:, None]).round().to(torch.int8)
    program = fx.GraphModule({"w": integers, "scale": scale}, graph)
    node = next(n for n in program.graph.nodes if n.name == node.name)
    return Linear(qcore.schema_arguments(node)).to(where)


def lowered(layer: nn.Linear, preset: str, where: torch.device) -> nn.Module:
    """A layer that takes and gives float32."""
    x = torch.randn(2, layer.in_features)
    weight = qcore.QuantizerConfig(
        scheme="int8_channel" if "int8" in preset else f"int4_group{GROUP}"
    )
    recipe = qcore.Recipe(preset=preset, weight=weight)
    model = nn.Sequential(nn.Linear(layer.in_features, layer.out_features, bias=False))
    model.load_state_dict({"0.weight": layer.weight.detach().cpu()})
    q = qcore.convert(qcore.calibrate(qcore.prepare(model.eval(), x, recipe)))
    return qcore.lower(q.to(where), "cuda")


def peers(
    layer: nn.Linear, tokens: int, where: torch.device, compiled: Callable[..., Tensor]
) -> dict[str, Callable[[], object]]:
    """torch's own layers, of which ``compiled`` is the float one, and torchao's where it is
    installed."""
    n, k = layer.weight.shape
    x = torch.randn(tokens, k, device=where)
    half = layer.weight.detach().to(where)
    calls: dict[str, Callable[[], object]] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        calls[name] = partial(compiled, x.to(dtype), half.to(dtype))
    integers = torch.randint(-127, 128, (n, k), device=where).to(torch.int8)
    if tokens > 16:
        rows = torch.randint(-128, 128, (tokens, k), device=where).to(torch.int8)
        calls["torch._int_mm, sums alone"] = partial(torch._int_mm, rows, integers.t())
    if measuring.DRY:
        return calls
    nibbles = torch.randint(0, 256, (n, k // 2), device=where).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(nibbles, 8)
    table = torch.rand(k // GROUP, n, 2, device=where, dtype=torch.bfloat16)
    calls["torch int4pack bf16"] = partial(
        torch.ops.aten._weight_int4pack_mm, x.bfloat16(), packed, GROUP, table
    )
    calls.update(torchao(layer, x.bfloat16()))
    return calls


def torchao(layer: nn.Linear, x: Tensor) -> dict[str, Callable[[], object]]:
    """torchao's int8 layers, compiled; none without it."""
    try:
        from torchao import quantization as ao
    except ImportError:
        return {}
    configs = {
        "torchao W8A8 dynamic": "Int8DynamicActivationInt8WeightConfig",
        "torchao W8": "Int8WeightOnlyConfig",
    }
    calls = {}
    for name, config in configs.items():
        if hasattr(ao, config):
            model = nn.Sequential(nn.Linear(layer.in_features, layer.out_features, bias=False))
            model = model.to(x.device, torch.bfloat16)
            ao.quantize_(model, getattr(ao, config)())
            calls[name] = partial(torch.compile(model, mode="max-autotune-no-cudagraphs"), x)
    return calls


def engines(size: tuple[int, int], tokens: int, where: torch.device) -> dict[str, list]:
    """The calls of every engine, each with copies of its own weights."""
    # torch compiles a function for a few sizes only, and then runs it as it is, without a word.
    torch.compiler.reset()
    k, n = size
    copies = 1 if measuring.DRY else max(2, COLD // (n * k // 2))
    calls: dict[str, list[Callable[[], object]]] = {}
    layers = [nn.Linear(k, n, bias=False) for _ in range(min(copies, 2))]
    x = torch.randn(tokens, k, device=where)
    rows = torch.randint(-128, 128, (tokens, k), device=where).to(torch.int8)
    compiled = F.linear if measuring.DRY else torch.compile(F.linear, dynamic=False)
    for index in range(copies):
        layer = layers[index % len(layers)]
        for name, call in peers(layer, tokens, where, compiled).items():
            calls.setdefault(name, []).append(call)
    presets = {
        "W8A8 dynamic": "int8_dynamic",
        "W8": "int8_weight_only",
        "W4 g32": "int4_weight_only",
    }
    originals = {"W8A8 static": static(layers[0], where)}
    originals |= {name: lowered(layers[0], preset, where) for name, preset in presets.items()}
    for name, module in originals.items():
        given = rows if name == "W8A8 static" else x
        for _ in range(copies):
            calls.setdefault(name, []).append(partial(copy.deepcopy(module), given))
    return calls


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["4096x4096", "4096x14336", "14336x4096"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 32, 2048])
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny layers, on any machine")
    args = parser.parse_args()
    where = measuring.device()
    if args.dry_run:
        args.sizes, args.tokens = ["64x32"], [1, 20]
    torch.manual_seed(0)
    found: dict[tuple[str, int], dict[str, float]] = {}
    bound: dict[tuple[str, int], dict[str, float]] = {}
    limit = measuring.limits()
    for size in args.sizes:
        k, n = map(int, size.split("x"))
        for tokens in args.tokens:
            found[size, tokens] = measuring.medians(engines((k, n), tokens, where))
            bound[size, tokens] = {
                name: limit.seconds(
                    memory=n * k * bits / 8 + tokens * (k * x_bytes + n * y_bytes),
                    operations=2.0 * tokens * n * k if "A8" in name else 0.0,
                )
                for name, (bits, x_bytes, y_bytes) in QCORE.items()
            }
    names = list(
        dict.fromkeys(name for row in found.values() for name in row if name != "bfloat16")
    )
    lines = [
        measuring.machine(),
        "",
        f"Measured: {limit.bytes_per_second / 1e9:.0f} GB/s, {limit.int8_per_second / 1e12:.0f} "
        "int8 TOPS. In brackets: % of the limit.",
        "",
        f"| layer | tokens | {' | '.join(names)} |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for (size, tokens), row in found.items():
        cells = []
        for name in names:
            measured = name in row and "bfloat16" in row
            cell = f"{row['bfloat16'] / row[name]:.2f}" if measured else ""
            if measured and name in QCORE:
                cell += f" ({100 * bound[size, tokens][name] / row[name]:.0f})"
            cells.append(cell)
        lines.append(f"| {size} | {tokens} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if args.write and not args.dry_run:
        measuring.write("cuda linear", lines)


if __name__ == "__main__":
    main()
