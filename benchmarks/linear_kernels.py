"""Linear layers on the CPU backend, as ratios to the float32 product.

For each size: float32 ``F.linear``; a layer that quantizes its input at run time, with weights of 8
bits a channel and of 4 bits in groups of 32, on the backend and by its reference; integer weights
with float arithmetic, dequantized at every call as the reference does and once as the backend does;
and torch's kernels for packed weights, which compute in bfloat16. The rounds of all are
interleaved; printed is the median of each over that of float32. The weights fit no cache where they
are large, so every round meets them cold.

    python benchmarks/linear_kernels.py [--sizes 384x1536 4096x4096] [--tokens 1 32 128]
                                        [--threads 1]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcore


def programs(layer: nn.Linear, x: Tensor, preset: str) -> tuple[nn.Module, nn.Module]:
    """The program of one layer on the reference kernels and on the backend."""
    recipe = qcore.Recipe(preset=preset, weight=qcore.QuantizerConfig(scheme=WEIGHTS[preset]))
    q = qcore.convert(qcore.calibrate(qcore.prepare(nn.Sequential(layer), x, recipe)))
    return q, qcore.lower(q, "cpu")


WEIGHTS = {
    "int8_dynamic": "int8_channel",
    "int4_dynamic": "int4_group32",
    "int4_weight_only": "int4_group32",
}


def packed_4_bits(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """torch's kernel for 4-bit weights in groups of 32, in bfloat16."""
    n, k = layer.weight.shape
    integers = torch.randint(0, 16, (n, k), dtype=torch.int32)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    parameters = torch.rand(k // 32, n, 2).bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.bfloat16(), weight, 32, parameters
    ).float()


def packed_8_bits(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """torch's kernel for 8-bit weights a channel, in bfloat16."""
    weight = torch.randint(-127, 128, layer.weight.shape, dtype=torch.int8)
    scale = torch.rand(layer.weight.shape[0]).bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x.bfloat16(), weight, scale).float()


def medians(
    calls: dict[str, Callable[[Tensor], Tensor]], x: Tensor, rounds: int
) -> dict[str, float]:
    """Median seconds of each, by turns; a short call is repeated within its turn."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, function in calls.items():
        function(x)
        start = time.perf_counter()
        function(x)
        repeats[name] = max(1, min(100, int(2e-3 / (time.perf_counter() - start))))
    for _ in range(rounds):
        for name, function in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function(x)
            spent[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(times) for name, times in spent.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["384x1536", "4096x4096"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 32, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ["QCORE_PROGRESS"] = "off"
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for size in args.sizes:
        k, n = map(int, size.split("x"))
        layer = nn.Linear(k, n)
        x = torch.randn(2, k)
        made = {preset: programs(layer, x, preset) for preset in WEIGHTS}
        for tokens in args.tokens:
            calls: dict[str, Callable[[Tensor], Tensor]] = {
                "float32": partial(F.linear, weight=layer.weight, bias=layer.bias),
                "W8A8 dynamic": made["int8_dynamic"][1],
                "its reference": made["int8_dynamic"][0],
                "W4A8 dynamic g32": made["int4_dynamic"][1],
                "W4, each call": made["int4_weight_only"][0],
                "W4, once": made["int4_weight_only"][1],
                "torch int4pack bf16": packed_4_bits(layer),
                "torch int8pack bf16": packed_8_bits(layer),
            }
            found = medians(calls, torch.randn(tokens, k), args.rounds)
            if tokens == args.tokens[0] and size == args.sizes[0]:
                print("size, tokens  " + "  ".join(calls))
            ratios = (f"{found[name] / found['float32']:{len(name)}.2f}" for name in calls)
            print(f"{size}, {tokens}  " + "  ".join(ratios), flush=True)


if __name__ == "__main__":
    main()
