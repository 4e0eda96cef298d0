"""QFloat and Q of whole trained networks over the whole Fashion-MNIST test set, integer for
integer.

Each network is trained by its recipe (kept in the cache, so only once) and quantized after training
with each preset: a row is what ``qcore run RECIPE --set preset=PRESET`` does. Prints accuracies,
the number of values compared in all quantized layers, and how many differ. Exits 1 if any does.
With ``--corrected`` the stage ``bias_correction`` follows calibration.

    python benchmarks/fidelity_networks.py [--recipes ...] [--presets int8 uint8 int4] [--corrected]
"""

import argparse
import sys
import tempfile
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
    parser.add_argument("--corrected", action="store_true")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print("| recipe | preset | Float % | QFloat % | Q % | values compared | differing |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    worst = 0
    for name in args.recipes:
        recipe = qcore.Recipe.load(RECIPES / f"{name}.toml")
        if args.corrected:
            stages = (*recipe.algorithms, qcore.Stage(name="bias_correction"))
            recipe = attrs.evolve(recipe, algorithms=stages)
        for preset in args.presets:
            with tempfile.TemporaryDirectory() as folder:
                chosen = attrs.evolve(recipe, preset=preset)
                result = qcore.run_recipe(chosen, folder=Path(folder) / "run")
            scores = " | ".join(f"{result.accuracy[p]:.2f}" for p in ("float", "qfloat", "q"))
            compared, differing = result.integers["compared"], result.integers["differing"]
            print(f"| {name} | {preset} | {scores} | {compared:,} | {differing:,} |", flush=True)
            worst = max(worst, differing)
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
