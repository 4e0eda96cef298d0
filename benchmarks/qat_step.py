"""A training step of QFloat over a training step of the float model, interleaved.

ResNet-18 or ResNet-20 on 32x32 images: forward, loss, backward, SGD. On the same network also LSQ
in plain operations and torch's own fake quantizers, put around every convolution and linear layer
by hand (8 bits; weights per channel, activations per tensor), without BatchNorm folding. Prints the
median of the ratios of neighbouring steps, and memory.

    python benchmarks/qat_step.py [--model resnet18] [--batch-size 128] [--rounds 7] [--compiled]
        [--only float affine lsq ...]
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcore

QCORE = ("affine", "lsq", "lsq_plus", "tqt", "pact")
OTHERS = ("lsq_plain", "torch_static", "torch_learnable")


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
    parser.add_argument("--only", nargs="+", default=["float", *QCORE, *OTHERS])
    args = parser.parse_args()
    os.environ["QCORE_PROGRESS"] = "off"
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
    for step in steps.values():
        step()
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
