"""Training with quantization by other tools, on the checkpoint and the batches of qcore's table.

    python benchmarks/peers/qat.py [--tools brevitas brevitas_corrected fx] [--seeds 0,1,2]
        [--bits w8a8 w4a4 w2a4] [--steps N] [--write]

The first run makes an environment of its own (``.venv-qat`` beside this file). The tools get what
``benchmarks/qat_accuracy.py`` gives qcore: the float ResNet-20, 512 images for calibration, one
epoch of the same batches with the same learning rate, 8 bits in the first and the last layer,
weights with a scale a channel, additions in float.

- ``brevitas``: learned scales that start at the least squared error, trained by Adam; a quantizer
  at the input of each layer. There is no integer form to deploy it in, so only its simulation is
  measured.
- ``brevitas_corrected``: the same untrained, after brevitas' correction of biases.
- ``fx``: ``torch.ao.quantization.quantize_fx`` with moving averages of the extremes. With 8 bits it
  is also converted to torch's integer kernels and measured there; these know no fewer bits.

Finished runs are files in ``benchmarks/results/qat_peers``, and do not run again. With ``--steps``
a training ends early and nothing is kept: a check of the script.
"""

import argparse
import copy
import hashlib
import json
import operator
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment

if TYPE_CHECKING:
    import torch
    from torch import nn

    import qcore

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results" / "qat_peers"
_TITLES = {
    "brevitas_corrected": "brevitas, bias correction",
    "brevitas": "brevitas, learned scales",
    "fx": "torch.ao FX",
}
_OURS = {
    "ptq_corrected": "qcore, bias correction",
    "lsq": "qcore, LSQ",
    "affine": "qcore, fixed scales",
}
_BITS = ("w8a8", "w4a4", "w2a4")
_SEEDS = range(10)


def brevitas_model(model: "nn.Module", images: "torch.Tensor", bits: str) -> "nn.Module":
    """A copy with brevitas' layers, calibrated."""
    import brevitas.nn as qnn
    import torch
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.quant import (
        Int8ActPerTensorFloatMSE,
        Int8WeightPerChannelFloatMSE,
        Uint8ActPerTensorFloatMSE,
    )
    from torch import nn

    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        weight, activation = _bits_of(name, bits)
        # The image has both signs; what other layers get has gone through a relu.
        of_input = Int8ActPerTensorFloatMSE if name == "conv1" else Uint8ActPerTensorFloatMSE
        options: dict[str, Any] = {
            "weight_quant": Int8WeightPerChannelFloatMSE,
            "weight_bit_width": weight,
            "input_quant": of_input,
            "input_bit_width": activation,
            "bias": layer.bias is not None,
        }
        if isinstance(layer, nn.Linear):
            new = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
        else:
            options |= {"stride": layer.stride, "padding": layer.padding}
            new = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, **options
            )
        # What is quantized on the way (scales) is no part of the float layer.
        new.load_state_dict(layer.state_dict(), strict=False)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    model.eval()
    with torch.no_grad():
        with calibration_mode(model):
            model(images)
        model(images[:2])  # weight scales are found by the first forward
    return model


def corrected_model(model: "nn.Module", images: "torch.Tensor", bits: str) -> "nn.Module":
    """The same after brevitas' correction of biases."""
    import torch
    from brevitas.graph.calibrate import bias_correction_mode

    quantized = brevitas_model(model, images, bits)
    with torch.no_grad(), bias_correction_mode(quantized):
        for batch in images.split(128):
            quantized(batch)
    return quantized


def fx_model(model: "nn.Module", images: "torch.Tensor", bits: str) -> "nn.Module":
    """A copy with the fake quantizers of torch.ao, whose averages have seen the images."""
    import torch
    from torch.ao.quantization import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        QConfig,
        QConfigMapping,
    )
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    def config(weight: int, activation: int) -> QConfig:
        low, high = -(2 ** (weight - 1)), 2 ** (weight - 1) - 1
        of_weight = FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver,
            quant_min=low,
            quant_max=high,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
        )
        of_input = FakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver,
            quant_min=0,
            quant_max=2**activation - 1,
            dtype=torch.quint8,
            reduce_range=False,
        )
        return QConfig(activation=of_input, weight=of_weight)

    mapping = QConfigMapping().set_global(config(*_bits_of("", bits)))
    for name in ("conv1", "fc"):
        mapping.set_module_name(name, config(8, 8))
    for function in (operator.add, operator.iadd, torch.add):
        mapping.set_object_type(function, None)
    prepared: nn.Module = prepare_qat_fx(copy.deepcopy(model).train(), mapping, (images[:2],))
    # In eval mode, so that only the averages of the quantizers move, and no BatchNorm.
    prepared.eval()
    with torch.no_grad():
        for batch in images.split(128):
            prepared(batch)
    return prepared


_MODELS: dict[str, Callable[["nn.Module", "torch.Tensor", str], "nn.Module"]] = {
    "brevitas_corrected": corrected_model,
    "brevitas": brevitas_model,
    "fx": fx_model,
}


def _bits_of(name: str, bits: str) -> tuple[int, int]:
    if name in ("conv1", "fc"):
        return 8, 8
    weight, activation = map(int, re.findall(r"\d", bits))
    return weight, activation


def train(model: "nn.Module", data: "qcore.Dataset", *, seed: int, steps: int | None) -> int:
    """One epoch, as the stage ``qat`` trains; learned scales by Adam.

    Returns:
        Number of steps.
    """
    import torch
    import torch.nn.functional as F
    from qat_accuracy import BATCH_SIZE, TRAINING

    from qcore_algorithms.qat import learning_rate

    scales = [p for n, p in model.named_parameters() if n.endswith("scaling_impl.value")]
    known = {id(p) for p in scales}
    others = [p for p in model.parameters() if id(p) not in known]
    rate = TRAINING["lr"]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, foreach=True), rate)
    ]
    if scales:
        optimizers.append((torch.optim.AdamW(scales, lr=1e-3, weight_decay=0.0), 1e-3))
    total = len(data.train_labels) // BATCH_SIZE
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    batches = data.batches("train", BATCH_SIZE, shuffle=True, seed=seed << 20, drop_last=True)
    for step, (images, labels) in enumerate(batches):
        if steps is not None and step >= steps:
            return step
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / total, peak=peak)
            optimizer.zero_grad()
        images = images.contiguous(memory_format=torch.channels_last)
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        for optimizer, _ in optimizers:
            optimizer.step()
    return total


def measure(tool: str, bits: str, seed: int, *, steps: int | None) -> dict[str, Any]:
    """One tool at one bit width: accuracies in percent, and seconds of the training."""
    import torch
    from qat_accuracy import CALIBRATION, CHECKPOINT

    import qcore

    model, data = qcore.float_model(qcore.Recipe.load(CHECKPOINT))
    drawn = data.batches("train", CALIBRATION, shuffle=True, seed=seed, limit=CALIBRATION)
    images = next(iter(drawn))[0]
    figures: dict[str, Any] = {"tool": tool, "bits": bits, "seed": seed}
    figures["float"] = qcore.accuracy(model, data)
    start = time.perf_counter()
    trained = _MODELS[tool](model, images, bits)
    figures["untrained"] = qcore.accuracy(trained, data)
    if tool == "brevitas_corrected":
        return {**figures, "seconds": None, "simulated": None, "deployed": None}
    begin = time.perf_counter()
    figures["steps"] = train(trained, data, seed=seed, steps=steps)
    figures["seconds"] = time.perf_counter() - begin
    figures["seconds_all"] = time.perf_counter() - start
    trained.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    figures["simulated"] = qcore.accuracy(trained.eval(), data)
    figures["deployed"] = None
    if tool == "fx" and bits == "w8a8":
        from torch.ao.quantization.quantize_fx import convert_fx

        torch.backends.quantized.engine = "onednn"
        figures["deployed"] = qcore.accuracy(convert_fx(copy.deepcopy(trained).eval()), data)
    figures["torch"] = torch.__version__
    return figures


def _path(tool: str, bits: str, seed: int) -> Path:
    """File of a finished run: named by what it depends on."""
    from qat_accuracy import TRAINING

    words = {"training": dict(TRAINING), "tools": _requirements()}
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    return _RESULTS / f"{tool}-{bits}-{seed}-{digest[:12]}.json"


def _requirements() -> list[str]:
    text = (Path(__file__).parent / "requirements-qat.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def rows() -> list[str]:
    """The table of all finished runs, beside those of qcore that are finished."""
    from qat_accuracy import spread

    names = "bits", "tool", "Float %", "untrained %", "simulated %", "- Float", "deployed %"
    titles = *names, "seconds", "seeds"
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for bits in _BITS:
        of_tools = {title: _ours(method, bits) for method, title in _OURS.items()}
        for tool, title in _TITLES.items():
            paths = [_path(tool, bits, seed) for seed in _SEEDS]
            of_tools[title] = [json.loads(path.read_text()) for path in paths if path.is_file()]
        for title, found in of_tools.items():
            if not found:
                continue
            runs: dict[str, list[float]] = {
                key: [run[key] for run in found if run[key] is not None]
                for key in ("untrained", "simulated", "deployed", "seconds")
            }
            change = [y - found[0]["float"] for y in runs["simulated"]]
            columns = [
                bits.upper(),
                title,
                f"{found[0]['float']:.2f}",
                spread(runs["untrained"]),
                spread(runs["simulated"]) if change else "",
                spread(change, "+") if change else "",
                spread(runs["deployed"]) if runs["deployed"] else "",
                f"{statistics.median(runs['seconds']):.0f}" if change else "",
                str(len(found)),
            ]
            lines.append(f"| {' | '.join(columns)} |")
    return lines


def _ours(method: str, bits: str) -> list[dict[str, Any]]:
    """Runs of qcore, from the files of ``benchmarks/qat_accuracy.py``."""
    from qat_accuracy import RESULTS, Cell, Store

    store = Store(RESULTS)

    def read(method: str, seed: int) -> dict[str, Any] | None:
        return store.read(Cell(bits=bits, method=method, residual="float"), seed)

    found: list[dict[str, Any]] = []
    for seed in _SEEDS:
        ours, untrained = read(method, seed), read("ptq_histogram", seed)
        if ours is None or untrained is None:
            continue
        run = {"float": ours["accuracy"]["float"], "deployed": ours["accuracy"]["q"]}
        if "qat" in ours["seconds"]:
            run["untrained"] = untrained["accuracy"]["qfloat"]
            run["simulated"] = ours["accuracy"]["qfloat"]
            run["seconds"] = ours["seconds"]["qat"]
        else:
            run |= {"untrained": ours["accuracy"]["qfloat"], "simulated": None, "seconds": None}
        found.append(run)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments say and is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tools", nargs="+", choices=_TITLES, default=list(_TITLES))
    parser.add_argument("--bits", nargs="+", choices=_BITS, default=["w8a8", "w4a4"])
    parser.add_argument("--seeds", default="0", help="numbers with commas between")
    parser.add_argument("--steps", type=int, help="end each training after so many, keep nothing")
    parser.add_argument("--write", action="store_true", help="write the table to docs/results.md")
    args = parser.parse_args(argv)
    environment.enter("qat")
    sys.path.insert(0, str(_ROOT / "benchmarks"))
    # torch.ao says at each call that it will move.
    warnings.simplefilter("ignore")
    for bits in args.bits:
        for tool in args.tools:
            for seed in map(int, args.seeds.split(",")):
                path = _path(tool, bits, seed)
                if path.is_file() and args.steps is None:
                    continue
                figures = measure(tool, bits, seed, steps=args.steps)
                print(json.dumps(figures), flush=True)
                if args.steps is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(figures, indent=1) + "\n")
    if args.write:
        from qat_accuracy import PAGE, with_figures

        text = with_figures(PAGE.read_text(encoding="utf-8"), "qat-peers", rows())
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
