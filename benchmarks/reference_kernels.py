"""Time of the reference kernels over torch's own float32 operations, interleaved.

The reference kernels are also the simulation, so this is what evaluating a quantized network costs.
The layers are those of ResNet-20 with int8 in and out, int32 bias and, where it has one, the
residual; then a linear layer and an addition. Prints the ratio for each, and of the layers' sums.
Other work on the same cores falsifies it: both sides wait for each other's threads.

    python benchmarks/reference_kernels.py [--batch 256] [--threads 2] [--rounds 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import qcore.ops

OPS = torch.ops.qcore
Y = (0.1, -7, -128, 127, torch.int8, qcore.Numerics().key)
# Input channels, output channels, size, stride, residual.
LAYERS = [
    (3, 16, 32, 1, False),
    (16, 16, 32, 1, False),
    (16, 16, 32, 1, True),
    (16, 32, 32, 2, False),
    (32, 32, 16, 1, False),
    (32, 32, 16, 1, True),
    (32, 64, 16, 2, False),
    (64, 64, 8, 1, False),
    (64, 64, 8, 1, True),
]


def ints(*shape: int) -> Tensor:
    """Random int8."""
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def medians(runs: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Median seconds of each, run in turn."""
    times: list[list[float]] = [[] for _ in runs]
    for round_ in range(rounds + 2):
        for run, seconds in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if round_ > 1:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def convolution(
    batch: int, c: int, n: int, size: int, stride: int, residual: bool, fmt: torch.memory_format
) -> list[Callable[[], Tensor]]:
    """A float32 convolution and the quantized one."""
    x = ints(batch, c, size, size).contiguous(memory_format=fmt)
    w, w_scale = ints(n, c, 3, 3), torch.rand(n) * 0.01 + 0.001
    bias = torch.randint(-5000, 5000, (n,), dtype=torch.int32)
    out = size // stride
    other = ints(batch, n, out, out).contiguous(memory_format=fmt) if residual else None
    xf, wf, bf = x.float(), w.float(), bias.float()
    window = ([stride, stride], [1, 1])
    args = (x, 0.02, 3, w, w_scale, None, bias, *window, [1, 1], 1, other, 0.03, 5, *Y)
    return [lambda: F.conv2d(xf, wf, bf, *window), lambda: OPS.qconv(*args)]


def linear(rows: int) -> list[Callable[[], Tensor]]:
    """A float32 linear layer and the quantized one."""
    x, w, w_scale = ints(rows, 768), ints(768, 768), torch.rand(768) * 0.01 + 0.001
    xf, wf = x.float(), w.float()
    args = (x, 0.02, 3, w, w_scale, None, None, *Y)
    return [lambda: F.linear(xf, wf), lambda: OPS.qlinear(*args)]


def addition(batch: int) -> list[Callable[[], Tensor]]:
    """A float32 addition and the quantized one."""
    a, b = ints(batch, 16, 32, 32), ints(batch, 16, 32, 32)
    af, bf = a.float(), b.float()
    args = (a, 0.02, 3, b, 0.03, 5, *Y)
    return [lambda: af + bf, lambda: OPS.qadd(*args)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    for name, fmt in (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    ):
        totals = [0.0, 0.0]
        for c, n, size, stride, residual in LAYERS:
            both = medians(convolution(args.batch, c, n, size, stride, residual, fmt), args.rounds)
            totals = [t + b for t, b in zip(totals, both, strict=True)]
            what = f"{c:2} -> {n:2} at {size:2}, stride {stride}" + (", residual" * residual)
            print(f"{name:13} {what:35} {both[1] / both[0]:6.2f}")
        print(f"{name:13} {'all':35} {totals[1] / totals[0]:6.2f}")
    for name, runs in (
        ("linear 768 -> 768", linear(args.batch * 8)),
        ("addition", addition(args.batch)),
    ):
        both = medians(runs, args.rounds)
        print(f"{name:49} {both[1] / both[0]:6.2f}")


if __name__ == "__main__":
    main()
