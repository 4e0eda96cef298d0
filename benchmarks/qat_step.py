"""A training step of QFloat over a training step of the float model, interleaved.

ResNet-18 or ResNet-20 on 32x32 images: forward, loss, backward, SGD; 8 bits, weights per channel,
activations per tensor. On the same network also

- ``lsq_plain``, ``torch_static``, ``torch_learnable``: LSQ in plain operations and torch's own fake
  quantizers, put around every convolution and linear layer by hand, without BatchNorm folding;
- ``fx``, ``brevitas``, ``pt2e``: what torch.ao, brevitas and torchao make of the network. They run
  where they are installed (``benchmarks/peers`` has environments that have them).

Prints the median of the ratios of neighbouring steps.

    python benchmarks/qat_step.py [--model resnet18] [--batch-size 128] [--rounds 7] [--compiled]
        [--only float affine lsq ...]
"""

import argparse
import copy
import importlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcore

QCORE = ("affine", "lsq", "lsq_plus", "tqt", "pact")
OTHERS = ("lsq_plain", "torch_static", "torch_learnable")
PEERS = {"fx": "torch.ao.quantization", "brevitas": "brevitas", "pt2e": "torchao"}
"""Tools, and the module that each needs."""


def qfloat(model: nn.Module, x: Tensor, name: str) -> nn.Module:
    """The model in QFloat with one kind of fake quantizer."""
    weight = qcore.QuantizerConfig(
        scheme="int8_channel", fake_quant="lsq" if name == "lsq_plus" else name
    )
    activation = qcore.QuantizerConfig(scheme="int8_affine", fake_quant=name)
    config = qcore.QConfig(weight=weight, activation=activation)
    return qcore.calibrate(qcore.prepare(model, x[:2], config), [x[:32]]).train()


class _Plain(nn.Module):
    """LSQ in plain operations, as it is often written."""

    def __init__(self, x: Tensor, per_channel: bool) -> None:
        super().__init__()
        self.shape = [-1, *[1] * (x.ndim - 1)] if per_channel else []
        step = x.flatten(1).abs().amax(1) / 127 if per_channel else x.abs().max() / 127
        self.step = nn.Parameter(step.detach().clone())
        self.factor = (x.numel() * 127) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        s = (self.step * self.factor + (self.step * (1 - self.factor)).detach()).reshape(self.shape)
        u = (x / s).clamp(-128, 127)
        return (u + (u.round() - u).detach()) * s


class _TorchStatic(nn.Module):
    """torch.fake_quantize_per_*_affine with fixed scales."""

    def __init__(self, x: Tensor, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel
        step = x.flatten(1).abs().amax(1) / 127 if per_channel else x.abs().max() / 127
        self.register_buffer("step", step.detach().clone())
        self.register_buffer("zero", torch.zeros_like(step, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.per_channel:
            return torch.fake_quantize_per_channel_affine(x, self.step, self.zero, 0, -128, 127)
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, -128, 127)


class _TorchLearnable(nn.Module):
    """torch._fake_quantize_learnable_per_*_affine."""

    def __init__(self, x: Tensor, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel
        step = x.flatten(1).abs().amax(1) / 127 if per_channel else x.abs().max().reshape(1) / 127
        self.step = nn.Parameter(step.detach().clone())
        self.zero = nn.Parameter(torch.zeros_like(step), requires_grad=False)
        self.factor = (x.numel() * 127) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.per_channel:
            return torch._fake_quantize_learnable_per_channel_affine(
                x, self.step, self.zero, 0, -128, 127, self.factor
            )
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.step, self.zero, -128, 127, self.factor
        )


class _Around(nn.Module):
    """A layer whose input and weight are fake-quantized."""

    def __init__(self, layer: nn.Module, x: Tensor, cls: Callable[[Tensor, bool], nn.Module]):
        super().__init__()
        self.layer = layer
        self.of_weight = cls(layer.weight, True)  # type: ignore[arg-type]
        self.of_input = cls(x, False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.of_weight(self.layer.weight)
        x = self.of_input(x)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        conv = self.layer
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def around(model: nn.Module, x: Tensor, name: str) -> nn.Module:
    """A copy with fake quantizers around every layer."""
    cls = {"lsq_plain": _Plain, "torch_static": _TorchStatic, "torch_learnable": _TorchLearnable}
    model = copy.deepcopy(model).train()
    inputs: dict[str, Tensor] = {}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [
        m.register_forward_pre_hook(lambda m, xs, n=n: inputs.update({n: xs[0].detach()}))
        for n, m in layers
    ]
    with torch.no_grad():
        model(x[:32])
    for hook in hooks:
        hook.remove()
    for path, layer in layers:
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, _Around(layer, inputs[path], cls[name]))
    return model


def peer(model: nn.Module, x: Tensor, name: str) -> nn.Module:
    """What another tool makes of a copy."""
    model = copy.deepcopy(model)
    if name == "pt2e":
        return _pt2e(model.train(), x)
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    from qat import brevitas_model, fx_model

    made = {"brevitas": brevitas_model, "fx": fx_model}[name](model, x[:32], "w8a8").train()
    return made  # type: ignore[no-any-return]


def _pt2e(model: nn.Module, x: Tensor) -> nn.Module:
    """torchao's quantization of an exported program, with its configuration for x86."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    exported = torch.export.export(model, (x,), strict=True).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    prepared: nn.Module = move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer))
    return prepared


def stepper(model: nn.Module, x: Tensor, y: Tensor, *, compiled: bool) -> Callable[[], float]:
    """One training step; returns its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", choices=["resnet18", "resnet20"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    known = ["float", *QCORE, *OTHERS, *PEERS]
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="NAME")
    args = parser.parse_args()
    os.environ["QCORE_PROGRESS"] = "off"
    # The other tools say at each call what they will drop or move.
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    options = {"stem": "small"} if args.model == "resnet18" else {}
    build = qcore.default_host().get("model", args.model)
    model = build(num_classes=10, **options).train()
    x, y = torch.randn(args.batch_size, 3, 32, 32), torch.randint(0, 10, (args.batch_size,))
    names = ["float", *(name for name in args.only if name != "float")]
    steps = {}
    for name in names:
        if name == "float":
            net = copy.deepcopy(model)
        elif name in PEERS:
            try:
                importlib.import_module(PEERS[name])
            except ImportError:
                print(f"{name}: {PEERS[name]} is not installed", file=sys.stderr)
                continue
            net = peer(model, x, name)
        else:
            net = qfloat(model, x, name) if name in QCORE else around(model, x, name)
        batch = x
        if args.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            batch = x.contiguous(memory_format=torch.channels_last)
        # The float step is eager in both, so that ratios can be compared.
        steps[name] = stepper(net, batch, y, compiled=args.compiled and name != "float")
    if args.compiled:
        steps["float_compiled"] = stepper(copy.deepcopy(model), x, y, compiled=True)
    for name, step in list(steps.items()):
        try:
            step()
        except Exception as error:
            if name not in PEERS:
                raise
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            del steps[name]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(step())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}; {args.model}, batch {args.batch_size}, "
        f"{'compiled' if args.compiled else 'eager'}, over the eager float step"
    )
    for name, values in times.items():
        ratios = [v / f for v, f in zip(values, times["float"], strict=True)]
        print(
            f"{name:16s} {statistics.median(ratios):5.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f} by round)",
            flush=True,
        )


if __name__ == "__main__":
    main()
