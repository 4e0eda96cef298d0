"""Time of plan, prepare, calibrate and convert against the number of layers.

Chains of convolution-relu layers of 4 channels. Prints seconds and the time a layer relative to the
shortest chain: a figure near 1 means linear cost.

    python benchmarks/prepare_scaling.py [--layers 10 100 1000]
"""

import argparse
import os
import time

import torch
from torch import nn

import qcore


def chain(layers: int) -> nn.Sequential:
    """``layers`` convolutions, each with a relu."""
    torch.manual_seed(0)
    parts = [m for _ in range(layers) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*parts).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 100, 1000])
    args = parser.parse_args()
    os.environ["QCORE_PROGRESS"] = "off"
    x = torch.randn(2, 4, 8, 8)
    qcore.prepare(chain(2), x)
    base = 0.0
    print("layers  prepare s  calibrate s  convert s  prepare + convert a layer, relative")
    for n in args.layers:
        model = chain(n)
        t0 = time.perf_counter()
        qfloat = qcore.prepare(model, x)
        t1 = time.perf_counter()
        qcore.calibrate(qfloat, [x])
        t2 = time.perf_counter()
        qcore.convert(qfloat)
        t3 = time.perf_counter()
        a_layer = (t1 - t0 + t3 - t2) / n
        base = base or a_layer
        print(f"{n:6d}  {t1 - t0:9.2f}  {t2 - t1:11.2f}  {t3 - t2:9.2f}  {a_layer / base:.2f}")


if __name__ == "__main__":
    main()
