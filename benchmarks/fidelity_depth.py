"""How far the simulation and the integer model part with depth: qcore beside torch.ao's FX
quantization and torchao's PT2E.

A chain of 3x3 convolution-relu layers with 32 channels and random weights that keep the variance.
All calibrate on the same images; then the integers of the simulated output are compared with those
of the integer model. For PT2E the simulation is the converted model, which computes in float
between quantize and dequantize, and the integer model is what inductor compiles of it. Prints one
row a depth. PT2E has a dash where torchao is not installed (``benchmarks/peers`` has an environment
that has it).

    python benchmarks/fidelity_depth.py [--depths 1 4 9 18 29]
"""

import argparse
import importlib.util
import platform
import sys
import warnings

import torch
from torch import Tensor, nn

import qcore

CHANNELS = 32


def chain(depth: int, seed: int) -> nn.Sequential:
    """Convolution and relu, ``depth`` times; weights scaled so that relu keeps the variance."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(1 if i == 0 else CHANNELS, CHANNELS, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.normal_(conv.bias, std=0.05)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers).eval()


def of_qcore(model: nn.Module, calibration: Tensor, test: Tensor) -> tuple[float, int]:
    """Share of differing output integers in percent, and the largest difference."""
    # An addition of zero at the end, so that the last layer too gives integers.
    qfloat = qcore.prepare(Watched(model), test[:2], "uint8")
    qcore.calibrate(qfloat, [calibration])
    q = qcore.convert(qfloat)
    name = next(reversed(q.meta["qcore"].layers)).name
    a = qcore.layer_values(qfloat.eval(), test)
    b = qcore.layer_values(q, test)
    last = next(n for n in a if n == name)
    difference = (a[last] - b[last].float()).abs()
    return 100.0 * float((difference > 0).float().mean()), int(difference.max())


class Watched(nn.Module):
    """The chain, followed by a pool that wants its integers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.last = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.model(x))


def of_torch_ao(model: nn.Module, calibration: Tensor, test: Tensor) -> tuple[float, int]:
    """The same for fake quantization and ``convert_fx``, with per-channel weights."""
    from torch.ao.quantization import (
        disable_fake_quant,
        disable_observer,
        enable_fake_quant,
        enable_observer,
        get_default_qat_qconfig_mapping,
    )
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    torch.backends.quantized.engine = "x86"
    mapping = get_default_qat_qconfig_mapping("x86")
    simulated = prepare_qat_fx(model.train(), mapping, (test[:2],))
    simulated.eval()
    simulated.apply(enable_observer).apply(disable_fake_quant)
    simulated(calibration)
    simulated.apply(disable_observer).apply(enable_fake_quant)
    converted = convert_fx(simulated, qconfig_mapping=mapping)
    quantizers = [
        m
        for m in simulated.modules()
        if hasattr(m, "calculate_qparams") and hasattr(m, "fake_quant_enabled")
    ]
    scale, zero_point = quantizers[-1].scale.item(), quantizers[-1].zero_point.item()
    with torch.no_grad():
        left = torch.round(simulated(test) / scale) + zero_point
        right = torch.round(converted(test) / scale) + zero_point
    difference = (left - right).abs()
    return 100.0 * float((difference > 0).float().mean()), int(difference.max())


def of_pt2e(model: nn.Module, calibration: Tensor, test: Tensor) -> tuple[float, int]:
    """The same for a model that torchao converted, before and after inductor compiled it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        exported = torch.export.export(Watched(model).eval(), (test,), strict=True).module()
        prepared = prepare_pt2e(exported, quantizer)
        prepared(calibration[: len(test)])
        converted = convert_pt2e(prepared)
        # The integers that the layer behind the chain reads become the result.
        last = [n for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target)][-2]
        assert str(last.target).startswith("quantized_decomposed.quantize_per_tensor"), last.target
        output = converted.graph.output_node()
        output.args = ((last,),)
        converted.graph.eliminate_dead_code()
        converted.recompile()
        left = converted(test)
        right = torch.compile(converted)(test)
    left, right = (y[0] if isinstance(y, tuple | list) else y for y in (left, right))
    assert left.dtype == right.dtype == torch.uint8
    difference = (left.int() - right.int()).abs()
    return 100.0 * float((difference > 0).float().mean()), int(difference.max())


def _cell(found: tuple[float, int] | None) -> str:
    return f"{'-':>10s}  {'-':>7s}" if found is None else f"{found[0]:8.4f} %  {found[1]:3d} LSB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4, 9, 18, 29])
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    host = qcore.default_host()
    data = host.get("dataset", "fashion_mnist")()
    calibration, test = data.train_inputs[:64], data.test_inputs[: args.images]
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{platform.machine()}"
    )
    has_torchao = importlib.util.find_spec("torchao") is not None
    if not has_torchao:
        print("pt2e: torchao is not installed", file=sys.stderr)
    print("depth       qcore  at most  torch.ao FX  at most        PT2E  at most")
    for depth in args.depths:
        found = [
            of_qcore(chain(depth, 0), calibration, test),
            of_torch_ao(chain(depth, 0), calibration, test),
            of_pt2e(chain(depth, 0), calibration, test) if has_torchao else None,
        ]
        print(f"{depth:5d}  {'   '.join(map(_cell, found))}", flush=True)


if __name__ == "__main__":
    main()
