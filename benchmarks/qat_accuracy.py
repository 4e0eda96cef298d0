"""What quantization costs a trained network at 8 to 2 bits, after training and with training.

ResNet-20 on Fashion-MNIST: one float checkpoint (trained by ``recipes/fashion-resnet20-int8.toml``,
kept in the cache), quantized at each bit width by each method, then accuracy of Float, QFloat and Q
on the test split and the number of integers at which QFloat and Q differ. Methods that train do so
for one epoch. The first and the last layer have 8 bits; weights have a scale a channel.

A cell is ``BITS:METHOD:RESIDUAL``, such as ``w4a4:lsq:float``. With the residual ``float`` the
additions of the network stay in float, as other tools have it; with ``fused`` they are part of the
convolutions and run on integers, which is the default of qcore.

    python benchmarks/qat_accuracy.py [--cells w4a4:lsq,w2a4] [--residual float] [--seeds 0,1,2]
        [--write]
    python benchmarks/qat_accuracy.py --print-recipe w4a4:lsq:float > cell.json; qcore run cell.json

Each finished cell is a file in ``--results``, named by the content of its recipe. What is there
already does not run again, so a run that was stopped goes on where it was. A part of a cell's name
stands for all that begin with it. Exits 1 if any integer differs.
"""

import argparse
import hashlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

import qcore

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "recipes" / "fashion-resnet20-int8.toml"
RESULTS = ROOT / "benchmarks" / "results" / "qat_accuracy"
PAGE = ROOT / "docs" / "results.md"

BITS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a4")
RESIDUALS = ("float", "fused")
ENDS = ("conv1", "fc")
"""The layers that have 8 bits everywhere."""

BATCH_SIZE = 128
CALIBRATION = 512
"""Images in a step of a training, and images for calibration."""

TRAINING: Mapping[str, Any] = {"epochs": 1, "batch_size": BATCH_SIZE, "lr": 0.01}
"""Options of the stage ``qat``. One epoch is too short for augmentation to help: with it W2A4 ends
0.3 points lower."""

LEARNING: Mapping[str, Any] = {**TRAINING, "scale_optimizer": "adamw", "scale_lr": 0.001}
LEARNING_BY_SGD: Mapping[str, Any] = {**TRAINING, "scale_optimizer": "sgd", "scale_lr": 0.01}
"""The same with learned scales."""


@attrs.frozen(kw_only=True)
class Method:
    """A way to quantize.

    Args:
        title: its name in the table.
        weight, activation: fake quantizers.
        observers: of weights and of activations; of weights for 8 bits and for fewer.
        corrected: outputs of layers are corrected after calibration.
        training: options of the stage ``qat``; None for none.
    """

    title: str
    weight: str = "affine"
    activation: str = "affine"
    observers: tuple[str, str, str] = ("minmax", "mse", "histogram")
    corrected: bool = False
    training: Mapping[str, Any] | None = None


METHODS: Mapping[str, Method] = {
    "ptq_minmax": Method(title="PTQ, min-max", observers=("minmax", "minmax", "minmax")),
    "ptq_histogram": Method(title="PTQ, histogram"),
    "ptq_corrected": Method(title="PTQ, histogram, bias correction", corrected=True),
    "affine": Method(title="QAT, fixed scales", training=TRAINING),
    "lsq": Method(title="LSQ", weight="lsq", activation="lsq", training=LEARNING),
    "lsq_sgd": Method(
        title="LSQ, steps by SGD", weight="lsq", activation="lsq", training=LEARNING_BY_SGD
    ),
    "lsq_plus": Method(title="LSQ+", weight="lsq", activation="lsq_plus", training=LEARNING),
    "tqt": Method(title="TQT", weight="tqt", activation="tqt", training=LEARNING),
    "pact": Method(title="PACT", activation="pact", training=LEARNING),
}


@attrs.frozen(kw_only=True)
class Cell:
    """One place of the table.

    Args:
        bits: one of :data:`BITS`.
        method: one of :data:`METHODS`.
        residual: one of :data:`RESIDUALS`.
    """

    bits: str
    method: str
    residual: str

    @property
    def name(self) -> str:
        """``BITS:METHOD:RESIDUAL``."""
        return f"{self.bits}:{self.method}:{self.residual}"

    def recipe(self, seed: int) -> qcore.Recipe:
        """What makes its figures; ``seed`` is that of calibration and training, not of float."""
        method = METHODS[self.method]
        weight, activation = (int(n) for n in re.findall(r"\d", self.bits))
        table = qcore.Recipe.load(CHECKPOINT).to_table()
        table["name"] = f"fashion-resnet20-{self.name.replace(':', '-')}"
        table["qconfig"] = _quantizers(method, weight, activation)
        del table["preset"]
        table["override"] = [
            {"name": name, **_quantizers(method, 8, 8)}
            for name in ENDS
            if min(weight, activation) < 8
        ]
        if self.residual == "float":
            table["override"].append({"op": "add", "quantize": False})
        table["calibration"] = {"samples": CALIBRATION, "batch_size": 128, "seed": seed}
        if method.corrected:
            table["algorithm"].append({"name": "bias_correction", "seed": seed})
        if method.training is not None:
            table["algorithm"].append({"name": "qat", "seed": seed, **method.training})
        return qcore.Recipe.from_table(table, source=self.name)


def _quantizers(method: Method, weight: int, activation: int) -> dict[str, Any]:
    eight, fewer, observer = method.observers
    return {
        "weight": {
            "scheme": f"int{weight}_channel",
            "observer": eight if weight == 8 else fewer,
            "fake_quant": method.weight,
        },
        "activation": {
            # Below 8 bits the range is that of values behind a relu: from 0 on.
            "scheme": "int8_affine" if activation == 8 else f"uint{activation}",
            "observer": observer,
            "fake_quant": method.activation,
        },
    }


CELLS = tuple(
    Cell(bits=bits, method=method, residual=residual)
    for residual in RESIDUALS
    for bits in BITS
    for method in METHODS
)


def chosen(words: str) -> list[Cell]:
    """The cells that any of the words between the commas stands for, in the order of the words.

    Raises:
        argparse.ArgumentTypeError: one stands for none.
    """
    found: dict[str, Cell] = {}
    for word in words.split(","):
        cells = [cell for cell in CELLS if f"{cell.name}:".startswith(f"{word}:")]
        if not cells:
            raise argparse.ArgumentTypeError(
                f"{word!r} is no cell; write BITS:METHOD:RESIDUAL or the beginning of it, of "
                f"{', '.join(BITS)}; {', '.join(METHODS)}; {', '.join(RESIDUALS)}"
            )
        found |= {cell.name: cell for cell in cells}
    return list(found.values())


class Store:
    """The folder of finished cells.

    Args:
        folder: made when the first one is finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell, seed: int) -> Path:
        """File of a cell: another recipe or another torch is another file."""
        words = {"recipe": cell.recipe(seed).to_table(), "torch": torch.__version__.split("+")[0]}
        digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{cell.name.replace(':', '-')}-{seed}-{digest[:12]}.json"

    def read(self, cell: Cell, seed: int) -> dict[str, Any] | None:
        """The figures of a cell; None if it is not finished."""
        path = self.path(cell, seed)
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return found

    def write(self, cell: Cell, seed: int, figures: Mapping[str, Any]) -> None:
        """Keeps the figures of a cell; a run that is killed meanwhile leaves no half of them."""
        path = self.path(cell, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(figures, indent=1) + "\n")
        partial.replace(path)


def measure(cell: Cell, seed: int) -> dict[str, Any]:
    """Runs a cell from the float checkpoint to the comparison of QFloat and Q."""
    recipe = cell.recipe(seed)
    with tempfile.TemporaryDirectory() as folder:
        result = qcore.run_recipe(recipe, folder=Path(folder) / "run")
    return {
        "cell": cell.name,
        "seed": seed,
        "accuracy": dict(result.accuracy),
        "integers": dict(result.integers),
        "seconds": dict(result.seconds),
        "torch": torch.__version__,
        "recipe": recipe.to_table(),
    }


def table(store: Store, seeds: Iterable[int]) -> list[str]:
    """The rows of all cells that are finished, with mean and standard deviation over the seeds."""
    lines = [
        "| bits | method | additions | Float % | QFloat % | Q % | Q - Float | seeds | "
        "values compared | differing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kept = list(seeds)
    for cell in CELLS:
        found = [figures for seed in kept if (figures := store.read(cell, seed)) is not None]
        if not found:
            continue
        scores = {
            phase: [figures["accuracy"][phase] for figures in found]
            for phase in ("float", "qfloat", "q")
        }
        loss = [q - f for q, f in zip(scores["q"], scores["float"], strict=True)]
        compared, differing = (
            sum(figures["integers"][key] for figures in found) for key in ("compared", "differing")
        )
        title = METHODS[cell.method].title
        lines.append(
            f"| {cell.bits.upper()} | {title} | {cell.residual} | {scores['float'][0]:.2f} | "
            f"{spread(scores['qfloat'])} | {spread(scores['q'])} | {spread(loss, '+')} | "
            f"{len(found)} | {compared:,} | {differing:,} |"
        )
    return lines


def spread(values: Sequence[float], sign: str = "") -> str:
    """The mean of figures in percent, with the standard deviation if there are several."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def with_figures(page: str, name: str, lines: Sequence[str]) -> str:
    """A page with new lines between the markers of a table.

    Raises:
        ValueError: the markers are not there.
    """
    begin, end = f"<!-- figures:begin {name} -->\n", "<!-- figures:end -->"
    head, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"the page has no place {begin.strip()!r}")
    return head + begin + "".join(f"{line}\n" for line in lines) + end + rest.partition(end)[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=chosen, default=list(CELLS), metavar="CELL,...")
    parser.add_argument("--residual", choices=RESIDUALS, help="only the cells that have it")
    parser.add_argument(
        "--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0], metavar="N,..."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument(
        "--write", action="store_true", help="write the table of all finished cells"
    )
    parser.add_argument("--list", action="store_true", help="say what is finished; run nothing")
    parser.add_argument("--print-recipe", type=chosen, metavar="CELL", help="print it; run nothing")
    args = parser.parse_args(argv)
    if args.print_recipe:
        print(json.dumps(args.print_recipe[0].recipe(args.seeds[0]).to_table(), indent=2))
        return 0
    store = Store(args.results)
    differing = 0
    cells = [c for c in args.cells if args.residual in (None, c.residual)]
    for cell in cells:
        for seed in args.seeds:
            figures = store.read(cell, seed)
            if figures is None and not args.list:
                start = time.perf_counter()
                figures = measure(cell, seed)
                store.write(cell, seed, figures)
                took = f", {time.perf_counter() - start:.0f} s"
            else:
                took = ""
            print(f"{cell.name} seed {seed}: {_line(figures)}{took}", flush=True)
            differing += figures["integers"]["differing"] if figures else 0
    if args.write:
        text = with_figures(PAGE.read_text(encoding="utf-8"), "qat", table(store, range(10)))
        PAGE.write_text(text, encoding="utf-8")
    return int(differing > 0)


def _line(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "not finished"
    scores = ", ".join(f"{phase} {value:.2f}" for phase, value in figures["accuracy"].items())
    return f"{scores}; {figures['integers']['differing']:,} differ"


if __name__ == "__main__":
    sys.exit(main())
