"""On other devices than the CPU no float kernel is asked for what it might round.

There is no accelerator here: tensors of the CPU say that they lie on one, so that each operation
takes the way that it takes there, and every call of torch on that way is looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import qcore

from .calls import CALLS, call
from .test_settings import MORE

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "matmul", "linear", "mv", "dot"}
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
CONVOLUTIONS |= {f"conv_transpose{d}d" for d in (1, 2, 3)}
FUSED = {"addcmul", "addcmul_", "addcdiv", "addcdiv_", "lerp", "lerp_"}
"""Compilers of device code round a product and a sum of these once, not twice."""


class _Place(str):
    """A name of the CPU to torch; an accelerator to whoever asks for its type."""

    type = "cuda"
    index = 0


class Watch(TorchDispatchMode):
    """Asserts of every call of torch, within the operations of qcore too, that it is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.integers: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "qcore":
            with self:
                key = torch._C.DispatchKey.CompositeExplicitAutograd
                return func._op_dk(key, *args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in CONVOLUTIONS | PRODUCTS:
            operands = [a for a in args if isinstance(a, Tensor)]
            # A bias comes first or last.
            a, b = operands[-2:] if name.startswith("add") else operands[:2]
            # What is float in Q, too, is float here.
            if all(torch.equal(t, t.round()) for t in (a, b)):
                self.integers.add(name)
                self.product(name, a, b)
        if name in ("div", "div_") and args[0].dtype == torch.float32:
            assert isinstance(args[1], Tensor), "divided by a number, so through its reciprocal"
        assert name not in FUSED, name
        assert kwargs.get("alpha", 1) in (1, -1), f"{name} with alpha"
        return func(*args, **kwargs)

    def product(self, name: str, a: Tensor, b: Tensor) -> None:
        """Float64; or a matrix product whose operands TF32 and bfloat16 hold, and float32 its
        sums."""
        if a.dtype == b.dtype == torch.float64:
            return
        assert name not in CONVOLUTIONS, f"{name} of {a.dtype}"
        assert max(float(t.abs().max()) for t in (a, b)) <= 256
        right = b.t() if name == "linear" else b
        assert float((a.double().abs() @ right.double().abs()).max()) < 2**24


@contextmanager
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    with monkeypatch.context() as patch, torch.no_grad(), Watch() as watch:
        patch.setattr(Tensor, "device", property(lambda tensor: _Place("cpu")))
        yield watch


@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_operations(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each gives the integers of the CPU, by exact calls alone."""
    run = MORE.get(name, lambda: call(name))
    torch.manual_seed(0)
    wanted = run()
    torch.manual_seed(0)
    with accelerated(monkeypatch):
        found = run()
    assert torch.equal(found, wanted)


class Everything(nn.Module):
    """An embedding, a convolution, a depthwise one, a recurrence, a product and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 48)
        self.conv, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.lstm, self.fc = nn.LSTM(16, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index).reshape(-1, 3, 4, 4)
        x = self.up(torch.relu(self.deep(torch.relu(self.conv(x))))).flatten(2)
        x = torch.relu(self.lstm(x)[0])
        return self.fc(x @ x.transpose(1, 2) @ x)


@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic", "int4"])
def test_qfloat_in_eval_mode(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Layers of every kind: what they simulate on a GPU are the integers of Q."""
    torch.manual_seed(0)
    index = torch.randint(0, 11, (2, 1))
    qfloat = qcore.calibrate(qcore.prepare(Everything().eval(), index, preset), [index]).eval()
    wanted = qfloat(index).detach()
    with accelerated(monkeypatch) as watch:
        found = qfloat(index)
    assert torch.equal(found, wanted)
    assert watch.integers & PRODUCTS
    assert watch.integers & CONVOLUTIONS or preset == "int8_dynamic"


def test_the_watch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is there for: a float32 convolution, a large sum, a reciprocal."""
    x, large = torch.ones(1, 1, 4, 4), torch.full((4, 70_000), 255.0)
    for exact in (
        lambda: nn.functional.conv2d(x, x[..., :2, :2]),
        lambda: large @ large.t(),
        lambda: (x[0, 0] * 300) @ x[0, 0],
        lambda: x / 3,
        lambda: torch.addcmul(x, x, x),
        lambda: torch.add(x, x, alpha=2),
    ):
        with pytest.raises(AssertionError), accelerated(monkeypatch):
            exact()
