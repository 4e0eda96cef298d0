"""QFloat and Q of whole trained networks over the whole Fashion-MNIST test set, integer for
integer.

Each network is trained by its recipe (kept in the cache, so only once) and quantized after training
with each preset. Prints accuracies, the number of values compared in all quantized layers, and how
many differ. Exits 1 if any does.

    python benchmarks/fidelity_networks.py [--recipes ...] [--presets int8 uint8 int4] [--images
    10000]
"""

import argparse
import sys
import time
from pathlib import Path

import attrs
import torch

import qcore

RECIPES = Path(__file__).parent.parent / "recipes"
NETWORKS = ("fashion-resnet20-int8", "fashion-mobilenet-int8", "fashion-vit-int8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(NETWORKS))
    parser.add_argument("--presets", nargs="+", default=["int8", "uint8", "int4"])
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(
        "network                 preset  Float %  QFloat %     Q %       compared  differing  "
        "seconds"
    )
    worst = 0
    for name in args.recipes:
        recipe = qcore.Recipe.load(RECIPES / f"{name}.toml")
        model, data = qcore.float_model(recipe)
        base = qcore.accuracy(model, data)
        for preset in args.presets:
            start = time.perf_counter()
            qfloat = qcore.prepare(
                model, data.train_inputs[:2], attrs.evolve(recipe, preset=preset)
            )
            calibration = data.batches("train", 64, shuffle=True, limit=512)
            qcore.calibrate(qfloat, calibration)
            q = qcore.convert(qfloat)
            right = [0, 0]

            def count(batch: object, *outputs: torch.Tensor, right: list[int] = right) -> None:
                _, labels = batch  # type: ignore[misc]
                for i, logits in enumerate(outputs):
                    right[i] += int((logits.argmax(1) == labels).sum())

            batches = data.batches("test", 250, limit=args.images)
            fidelity = qcore.count_differences(qfloat, q, batches, watch=count)
            worst = max(worst, fidelity.differing)
            qfloat_accuracy, q_accuracy = (100 * n / args.images for n in right)
            print(
                f"{name:22s}  {preset:6s}  {base:7.2f}  {qfloat_accuracy:8.2f}  {q_accuracy:6.2f}  "
                f"{fidelity.compared:13,}  {fidelity.differing:9,}  "
                f"{time.perf_counter() - start:7.1f}",
                flush=True,
            )
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
