"""Compiles every kernel of the CUDA backend for real GPUs, on a machine that may have none.

    TRITON_INTERPRET=0 python tests/backends/cuda/compiling.py 90 [--all]

Layers run with kernels that are compiled for the given compute capability by Triton and ptxas, as a
GPU would have them compiled, and not started. Printed is a JSON line for each: kernel, tile,
registers that spilled, bytes of shared memory, and which of the instructions of interest its PTX
has. With ``--all`` every tile that the backend chooses from is compiled, else the first.
"""

import argparse
import json
import re
import sys
import types
from typing import Any

import torch
import triton
from torch import Tensor, fx
from triton.backends.compiler import GPUTarget

import qcore
from qcore_backends.cuda import backend as backend_module
from qcore_backends.cuda import launch as launch_module
from qcore_backends.cuda.device import Gpu

KEY = qcore.Numerics().key
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}
"""Kibibytes of shared memory for a block, by compute capability."""
PATTERNS = {
    "int8 tensor core": r"(?:wgmma\.mma_async|mma)\.sync\.\S*\.s32\.s8\.s8|mma\.sync\S*s8\.s8\.s32",
    "fma": r"\bfma\.rn\.f32",
    "approximate division": r"\bdiv\.(?:full|approx)",
    "exact division": r"\bdiv\.rn\.f32",
}


class Driver:
    """What Triton asks of a GPU before it compiles for it."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def integers(dtype: torch.dtype, *shape: int) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape).to(dtype)


def run(op: Any, inputs: list[Tensor], *args: Any) -> None:
    """Runs an operation on the backend; its arguments name the inputs "x0", "x1"."""
    graph = fx.Graph()
    places = {}
    nodes = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
    for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)):
        if not x.is_floating_point():
            info = torch.iinfo(x.dtype)
            given = (node, 1.0, 0, 1.0, 0, info.min, info.max, x.dtype, KEY)
            node = graph.call_function(torch.ops.qcore.qrequantize.default, given)
        places[f"x{i}"] = node
    root = {f"c{i}": a for i, a in enumerate(args) if isinstance(a, Tensor)}
    given = [
        graph.get_attr(f"c{i}") if isinstance(a, Tensor)
        else places.get(a, a) if isinstance(a, str) else a
        for i, a in enumerate(args)
    ]  # fmt: skip
    graph.output(graph.call_function(op, tuple(given)))
    lower(fx.GraphModule(root, graph), inputs)


def lower(module: fx.GraphModule, inputs: list[Tensor]) -> None:
    backend = backend_module.CudaBackend()
    own = [n for n in module.graph.nodes if n.op == "call_function"]
    supported = frozenset(n.name for n in own if backend.why_not(n) is None)
    assert own[-1].name in supported, backend.why_not(own[-1])
    backend.compile(module, supported)(*inputs)


def weight_only(rows: int, packed: bool, size: int, affine: bool) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    names = [graph.get_attr(name) for name in ("q", "scale", "zero")]
    block = (*names[:2], names[2] if affine else None, [1, size])
    w = graph.call_function(torch.ops.qcore.dequantize_block.default, block)
    bias = graph.get_attr("bias")
    graph.output(graph.call_function(torch.ops.aten.linear.default, (x, w, bias)))
    low, high = (-8, 8) if packed else (-128, 128)
    root = {
        "q": torch.randint(low, high, (256, 512)).to(torch.int8),
        "scale": torch.rand(256, 512 // size),
        "zero": torch.ones(256, 512 // size, dtype=torch.int32),
        "bias": torch.rand(256),
    }
    lower(fx.GraphModule(root, graph), [torch.randn(rows, 512)])


def layers() -> None:
    """Runs layers of every kernel, in the variants that are compiled differently."""
    ops = torch.ops.qcore
    i8, u8, f32 = torch.int8, torch.uint8, torch.float32
    int8_out = (0.25, 7, -128, 127, i8, KEY)
    float_out = (1.0, 0, 0, 0, f32, KEY)
    w, scale = integers(i8, 256, 512), torch.rand(256)
    bias = torch.randint(-99, 99, (256,), dtype=torch.int32)
    for dtype, rows in ((i8, 256), (u8, 256), (i8, 64), (i8, 4)):
        x = integers(dtype, rows, 512)
        run(ops.qlinear.default, [x], "x0", 0.5, 3, w, scale, None, bias, *int8_out)
    run(ops.qlinear.default, [x], "x0", 0.5, 3, w, scale, None, None, *float_out)
    narrow = torch.randint(-8, 8, (256, 512)).to(i8)
    groups = torch.rand(256, 16)
    for rows in (256, 4):
        x = torch.randn(rows, 512)
        run(ops.qlinear_dynamic.default, [x], "x0", -128, 127, w, scale, None, torch.rand(256))
        run(ops.qlinear_dynamic.default, [x], "x0", -128, 127, narrow, groups, None, None)
    x = integers(i8, 256, 512)
    run(ops.qlinear.default, [x], "x0", 0.5, 3, narrow, groups, None, None, *int8_out)
    for channels, groups_, size in ((64, 1, 3), (3, 1, 7), (64, 64, 3), (64, 1, 1)):
        for dtype in (i8, u8):
            x = integers(dtype, 2, channels, 16, 16)
            w = integers(i8, 64, channels // groups_, size, size)
            other = integers(dtype, 2, 64, 8, 8)
            geometry = ([2, 2], [size // 2] * 2, [1, 1], groups_, "x1", 0.5, 3)
            run(ops.qconv.default, [x, other], "x0", 0.5, 3, w, torch.rand(64), None,
                bias[:64], *geometry, *int8_out)  # fmt: skip
    for a_dtype, b_dtype in ((i8, i8), (u8, i8)):
        a, b = integers(a_dtype, 4, 128, 64), integers(b_dtype, 4, 128, 64).transpose(1, 2)
        run(ops.qmatmul.default, [a, b], "x0", 0.5, 3, "x1", 0.5, 1, *int8_out)
    run(ops.qmatmul.default, [a, integers(i8, 4, 64, 64)], "x0", 0.5, 3, "x1", 0.5, 0, *float_out)
    x = integers(i8, 2, 64, 16, 16)
    run(ops.quantize.default, [torch.randn(100)], "x0", 0.1, 3, -128, 127, i8, "half_even")
    run(ops.quantize.default, [torch.randn(99).half()], "x0", 0.1, 1, 0, 255, u8, "half_even")
    run(ops.dequantize.default, [x], "x0", 0.1, 3)
    run(ops.qadd.default, [x, x], "x0", 0.1, 3, "x1", 0.2, 1, *int8_out)
    run(ops.qmul.default, [x, x], "x0", 0.1, 3, "x1", 0.2, 1, *int8_out)
    run(ops.qtable.default, [x], "x0", integers(u8, 256), -128)
    run(ops.qmax_pool.default, [x], "x0", [3, 3], [2, 2], [1, 1], [1, 1], False)
    run(ops.qadaptive_avg_pool.default, [x], "x0", 0.1, 3, [1, 1], *int8_out)
    run(ops.qmean.default, [x], "x0", 0.1, 3, [2, 3], False, *float_out)
    for rows, packed, size, affine in (
        (1, True, 32, False), (1, True, 128, True), (1, False, 512, False), (1, True, 4, True),
        (8, True, 32, False), (64, True, 32, False),
    ):  # fmt: skip
        weight_only(rows, packed, size, affine)
    ones(int8_out)


def ones(output: tuple[Any, ...]) -> None:
    """Sizes, strides and zero points of 1, which Triton takes for constants of a kernel."""
    ops, i8 = torch.ops.qcore, torch.int8
    x, w = integers(i8, 1, 512), integers(i8, 1, 512)
    run(ops.qlinear.default, [x], "x0", 0.5, 1, w, torch.rand(1), None, None, *output)
    run(ops.qlinear.default, [x[:, :1]], "x0", 0.5, 1, w[:, :1], torch.rand(1), None, None, *output)
    one = integers(i8, 1, 1, 1, 1)
    for channels, size in ((1, 3), (40, 3), (1, 1)):
        w = integers(i8, 1, channels, size, size)
        geometry = ([1, 1], [size // 2] * 2, [1, 1], 1, "x1", 0.5, 1)
        pixel = integers(i8, 1, channels, 1, 1)
        run(ops.qconv.default, [pixel, one], "x0", 0.5, 1, w, torch.rand(1), None, None,
            *geometry, *output)  # fmt: skip
    run(ops.qmatmul.default, [one[0], one[0]], "x0", 0.5, 1, "x1", 0.5, 1, *output)
    run(ops.qadd.default, [one, one], "x0", 0.1, 1, "x1", 0.2, 1, *output)
    run(ops.qmax_pool.default, [one], "x0", [1, 1], [1, 1], [0, 0], [1, 1], False)
    run(ops.qmean.default, [one], "x0", 0.1, 1, [2, 3], False, *output)
    run(ops.quantize.default, [torch.randn(1)], "x0", 0.1, 1, -128, 127, i8, "half_even")
    w, scale = integers(i8, 1, 1), torch.rand(1)
    run(ops.qlinear_dynamic.default, [torch.randn(1, 1)], "x0", -128, 127, w, scale, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int)
    parser.add_argument("--all", action="store_true", help="every tile, not only the first")
    args = parser.parse_args()
    triton.runtime.driver.set_active(Driver(args.capability))
    torch.manual_seed(0)
    run_as_usual = triton.runtime.jit.JITFunction.run
    seen = set()

    def compiled(kernel: Any, *given: Any, grid: Any, warmup: bool, **meta: Any) -> None:
        found = run_as_usual(kernel, *given, grid=grid, warmup=True, **meta)
        if found.hash in seen:
            return
        seen.add(found.hash)
        ptx = found.asm["ptx"]
        tile = {k: v for k, v in meta.items() if k.startswith(("BLOCK", "num"))}
        line = {
            "kernel": kernel.__name__,
            "meta": {k: int(v) for k, v in meta.items()},
            "tile": tile,
            "shared": found.metadata.shared,
            "has": [name for name, pattern in PATTERNS.items() if re.search(pattern, ptx)],
        }
        print(json.dumps(line), flush=True)

    triton.runtime.jit.JITFunction.run = compiled

    def launch(kernel, grid, *given, on, warps=4, **meta):
        kernel[grid](*given, enable_fp_fusion=meta.pop("enable_fp_fusion", False),
                     num_warps=warps, **meta)  # fmt: skip

    here = Gpu(
        name="compiled for",
        capability=divmod(args.capability, 10),
        multiprocessors=100,
        shared_memory=SHARED[args.capability] * 1024,
    )
    launch_module.gpu = lambda index: here
    backend_module.interpreted = lambda: True

    def best(kernel, bucket, device, candidates, start):
        for candidate in candidates if args.all else candidates[:1]:
            start(candidate)
        return candidates[0]

    launch_module._TUNINGS = types.SimpleNamespace(best=best)
    backend_module._kernels()
    usual = launch_module.launch
    for name, module in list(sys.modules.items()):
        if name.startswith("qcore_backends.cuda.") and getattr(module, "launch", None) is usual:
            module.launch = launch
    layers()


if __name__ == "__main__":
    main()
