"""Whole networks on a GPU: speed against torch's own, and equality with the reference.

For each network and batch: how many times as fast as bfloat16 under ``torch.compile`` (channels
last) each engine is, which share of the measured int8 rate qcore reaches, and how many integers of
its quantized layers differ between QFloat, Q by its definition and the kernels. Weights are random.

    python benchmarks/cuda_networks.py [--networks resnet50 vit_b bert] [--batches 1 128] [--write]
    python benchmarks/cuda_networks.py --dry-run
"""

import argparse
import copy
from collections.abc import Callable

import attrs
import cuda_measuring as measuring
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import qcore


@attrs.frozen(kw_only=True)
class Network:
    """A float model and the shape of one sample of its input."""

    title: str
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]


def networks(dry: bool) -> dict[str, Network]:
    """The networks; tiny ones of the same kinds in a dry run."""
    from qcore_zoo.vit import VisionTransformer

    model = qcore.default_host().get
    pixels = 32 if dry else 224
    vit = (
        {"image_size": pixels, "patch_size": 16, "dim": 32, "depth": 1, "heads": 2}
        if dry
        else {"image_size": pixels, "patch_size": 16, "dim": 768, "depth": 12, "heads": 12}
    )
    bert = {"depth": 1, "dim": 32, "heads": 2} if dry else {"depth": 12, "dim": 768, "heads": 12}
    resnet = {"width": 8, "num_classes": 10} if dry else {}
    return {
        "resnet50": Network(
            title="ResNet-50",
            build=lambda: model("model", "resnet50")(**resnet),
            sample=(3, pixels, pixels),
        ),
        "vit_b": Network(
            title="ViT-B/16", build=lambda: VisionTransformer(**vit), sample=(3, pixels, pixels)
        ),
        "bert": Network(
            title="BERT-base encoder, 128 tokens",
            build=lambda: model("model", "bert")(**bert),
            sample=(8 if dry else 128, bert["dim"]),
        ),
    }


def formatted(x: Tensor) -> Tensor:
    """Images as channels last."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def engines(model: nn.Module, program: nn.Module, x: Tensor, mode: str) -> dict[str, list]:
    """A call of every engine; ``mode`` is that of ``torch.compile``."""
    # torch compiles a function for a few sizes only, and then runs it as it is, without a word.
    torch.compiler.reset()
    calls: dict[str, list[Callable[[], object]]] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        narrow = copy.deepcopy(model).to(x.device, dtype)
        if x.ndim == 4:
            narrow = narrow.to(memory_format=torch.channels_last)
        if not measuring.DRY:
            narrow = torch.compile(narrow, mode=mode, dynamic=False)
        given = formatted(x.to(dtype))
        calls[name] = [lambda f=narrow, g=given: f(g)]
    calls |= torchao(model, x, mode)
    images = formatted(x)
    calls["qcore int8"] = [lambda: program(images)]
    return calls


def torchao(model: nn.Module, x: Tensor, mode: str) -> dict[str, list]:
    """torchao's int8 linear layers, compiled; none without it, and none for convolutions."""
    if measuring.DRY or x.ndim == 4:
        return {}
    try:
        from torchao import quantization as ao
    except ImportError:
        return {}
    quantized = copy.deepcopy(model).to(x.device, torch.bfloat16)
    ao.quantize_(quantized, ao.Int8DynamicActivationInt8WeightConfig())
    run = torch.compile(quantized, mode=mode, dynamic=False)
    given = x.bfloat16()
    return {"torchao W8A8 dynamic": [lambda: run(given)]}


def operations(model: nn.Module, x: Tensor) -> int:
    """Multiplications and additions of one batch."""
    counter = FlopCounterMode(display=False)
    with counter:
        model(x[:1].cpu())
    return counter.get_total_flops() * len(x)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_b", "bert"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128])
    parser.add_argument(
        "--mode", default="max-autotune-no-cudagraphs", help="of torch.compile (%(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny networks, on any machine")
    args = parser.parse_args()
    where = measuring.device()
    if args.dry_run:
        args.batches = [2]
    limit = measuring.limits()
    rows = []
    names: list[str] = []
    for key in args.networks:
        network = networks(args.dry_run)[key]
        torch.manual_seed(0)
        model = network.build().eval()
        calibration = torch.randn(8, *network.sample)
        qfloat = qcore.calibrate(
            qcore.prepare(model, calibration[:2], "int8_minmax"), [calibration]
        )
        q = qcore.convert(qfloat).to(where)
        program = qcore.lower(q, "cuda")
        table = qcore.lowered_info(program)[""]
        print(f"{network.title}: {sorted(set(table.kernels.values()))}", flush=True)
        compared = qcore.count_differences(
            qfloat.to(where).eval(), program, [calibration[:4].to(where)]
        )
        for batch in args.batches:
            x = torch.randn(batch, *network.sample, device=where)
            found = measuring.medians(engines(model, program, x, args.mode))
            names = list(dict.fromkeys([*names, *found]))
            share = ""
            if "qcore int8" in found:
                rate = operations(model, x) / found["qcore int8"]
                share = f"{100 * rate / limit.int8_per_second:.0f}"
            rows.append((f"{network.title} | {batch}", found, f"{share} | {compared.differing}"))
    names = [name for name in names if name != "bfloat16"]
    lines = [
        measuring.machine(),
        "",
        f"| network | batch | {' | '.join(names)} | % of the int8 rate | differing |",
        "| --- " * (len(names) + 4) + "|",
    ]
    for title, found, rest in rows:
        base = found.get("bfloat16")
        ratios = [f"{base / found[n]:.2f}" if base and n in found else "" for n in names]
        lines.append(f"| {title} | {' | '.join(ratios)} | {rest} |")
    print("\n".join(lines))
    if args.write and not args.dry_run:
        measuring.write("cuda networks", lines)


if __name__ == "__main__":
    main()
