"""Cost of calibration over plain float inference of the same batches, interleaved.

ResNet-20 on Fashion-MNIST images; the histogram observer on every activation. Prints the ratio of
the medians, for each observer that is asked for.

    python benchmarks/calibration_cost.py [--observers minmax ema histogram] [--batches 4]
"""

import argparse
import os
import statistics
import time

import attrs
import torch

import qcore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--observers", nargs="+", default=["minmax", "ema", "histogram"])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ["QCORE_PROGRESS"] = "off"
    host = qcore.default_host()
    data = host.get("dataset", "fashion_mnist")()
    model = host.get("model", "resnet20")(in_channels=1, num_classes=10).eval()
    batches = [
        x for x, _ in data.batches("train", args.batch_size, limit=args.batches * args.batch_size)
    ]
    preset = host.find("preset", "int8").qconfig  # type: ignore[attr-defined]
    prepared = {}
    for name in args.observers:
        activation = attrs.evolve(preset.activation, observer=name, observer_options={})
        recipe = qcore.QConfig(weight=preset.weight, activation=activation)
        prepared[name] = qcore.prepare(model, batches[0], recipe)

    def plain() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for x in batches:
                model(x)
        return time.perf_counter() - start

    def calibrate(name: str) -> float:
        for _, quantizer in qcore.quantizers(prepared[name]):
            quantizer.observer.reset()
        start = time.perf_counter()
        qcore.calibrate(prepared[name], batches)
        return time.perf_counter() - start

    plain()
    times: dict[str, list[float]] = {name: [] for name in ("float", *args.observers)}
    for _ in range(args.rounds):
        times["float"].append(plain())
        for name in args.observers:
            times[name].append(calibrate(name))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}; {args.batches} batches of {args.batch_size}"
    )
    base = statistics.median(times["float"])
    for name, values in times.items():
        ratios = [v / f for v, f in zip(values, times["float"], strict=True)]
        print(
            f"{name:10s} {statistics.median(values) / base:5.2f} x float "
            f"({min(ratios):.2f} to {max(ratios):.2f} by round)"
        )


if __name__ == "__main__":
    main()
