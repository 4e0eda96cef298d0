"""The compiled lattice equals that of torch operations, and its absence does no harm."""

import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qcore
from qcore import (
    INT4,
    UINT8,
    Granularity,
    PerChannel,
    PerTensor,
    QDtype,
    QParams,
    QScheme,
    dequantize_tensor,
    expand,
    quantize_tensor,
)
from qcore_fakequants import compiled, lattice
from qcore_fakequants.lattice import fake_quantize_learned

needs_compiler = pytest.mark.skipif(compiled.kernel() is None, reason="no C++ compiler")


def both_forms(
    monkeypatch: pytest.MonkeyPatch,
    tensors: tuple[Tensor, ...],
    granularity: Granularity,
    **options: object,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Value, and gradients by x, scale and zero point: compiled, and in operations."""

    x, scale, zero_point, grad = tensors

    def found() -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, scale, zero_point)]
        y = fake_quantize_learned(*leaves, granularity=granularity, **options)  # type: ignore[arg-type]
        return y.detach(), *torch.autograd.grad(y, leaves, grad)

    assert compiled.takes(x, *(expand(t, granularity, x.shape) for t in (scale, zero_point)))
    first = found()
    with monkeypatch.context() as patch:
        patch.setattr(lattice, "kernel", lambda: None)
        return first, found()


def drawn(
    shape: tuple[int, ...], granularity: Granularity, dtype: QDtype, layout: str
) -> tuple[Tensor, ...]:
    """A tensor with many ties, its scales, zero points, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 3
    # With the scale 0.25 one value in eight of these is halfway between two integers.
    x = torch.where(torch.rand(shape, generator=generator) < 0.5, (x * 8).round() / 8, x)
    grad = torch.randn(shape, generator=generator)
    if layout in ("channels_last", "other_gradient"):
        x = x.to(memory_format=torch.channels_last)
    if layout == "channels_last":
        grad = grad.to(memory_format=torch.channels_last)
    if layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "part":
        x = torch.cat([x, x], -1)[..., : shape[-1]]
    if layout == "expanded_gradient":
        grad = torch.ones(()).expand(shape)
    sizes = granularity.scale_shape(x.shape)
    scale = torch.rand(sizes, generator=generator) / 4 + 0.02
    scale = torch.where(torch.rand(sizes, generator=generator) < 0.5, 0.25, scale)
    zero_point = torch.randint(dtype.quant_min, dtype.quant_max, sizes, generator=generator)
    return x, scale, zero_point.float(), grad


@needs_compiler
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("count", [None, 50])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)], ids=str)
@pytest.mark.parametrize(
    "layout",
    ["contiguous", "channels_last", "other_gradient", "transposed", "part", "expanded_gradient"],
)
def test_it_equals_the_operations(
    monkeypatch: pytest.MonkeyPatch,
    rounded: bool,
    through: bool,
    count: int | None,
    granularity: Granularity,
    layout: str,
) -> None:
    """Values and the gradient by x to the last bit, also at ties; sums within rounding."""
    tensors = drawn((3, 5, 7, 11), granularity, INT4, layout)
    options = {"dtype": INT4, "rounded": rounded, "through": through, "count": count}
    ours, theirs = both_forms(monkeypatch, tensors, granularity, **options)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[3], theirs[3], rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(
    "shape", [(0,), (0, 4), (4, 0), (1,), (2, 3), (4097,), (5, 9001), (70001,)]
)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)], ids=str)
def test_every_size(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], granularity: Granularity
) -> None:
    """None, one, rests of vectors and of pieces; and the formula of deployment."""
    x, scale, zero_point, grad = drawn(shape, granularity, UINT8, "contiguous")
    if scale.numel():
        tensors = x, scale, zero_point, grad
        ours, theirs = both_forms(monkeypatch, tensors, granularity, dtype=UINT8)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-3)
        scheme = QScheme(dtype=UINT8, granularity=granularity, symmetric=False)
        qparams = QParams(scale=scale, zero_point=zero_point.int(), scheme=scheme)
        assert torch.equal(ours[0], dequantize_tensor(quantize_tensor(x, qparams), qparams))


@needs_compiler
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)], ids=str)
def test_the_number_of_threads_changes_nothing(granularity: Granularity) -> None:
    """Also the sums are equal to the last bit."""
    x, scale, zero_point, grad = drawn((6, 40, 50, 51), granularity, UINT8, "contiguous")
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        leaves = [t.detach().requires_grad_() for t in (x, scale, zero_point)]
        y = fake_quantize_learned(*leaves, dtype=UINT8, granularity=granularity)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, grad)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_compiler
def test_what_is_no_number() -> None:
    """NaN stays NaN and lets no gradient through; infinity is the end of the range."""
    x = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 1e30, 0.5, 0.1], requires_grad=True
    )
    y = fake_quantize_learned(
        x, torch.tensor(0.5), torch.tensor(0), dtype=INT4, granularity=PerTensor()
    )
    y.backward(torch.ones_like(y))
    assert y[0].isnan()
    assert y[1:].tolist() == [3.5, -4.0, 3.5, 0.5, 0.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0, 0, 1, 1]


@needs_compiler
def test_tensors_that_do_not_fit_are_an_error() -> None:
    """As many scales as there are channels, or none of the memory is touched."""
    with pytest.raises(RuntimeError, match="size"):
        fake_quantize_learned(
            torch.zeros(5, 3), torch.ones(4), torch.zeros(4), dtype=INT4, granularity=PerChannel(0)
        )


@needs_compiler
def test_a_second_derivative() -> None:
    """The gradient can be differentiated, as that of the operations."""
    x = torch.tensor([0.3, 9.0], requires_grad=True)
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    y = fake_quantize_learned(
        x * weight, torch.tensor(0.5), torch.tensor(0), dtype=INT4, granularity=PerTensor()
    )
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), weight)
    assert second.tolist() == [1.0, 0.0]


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said: `qcore doctor` does."""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert compiled.kernel.__wrapped__() is None


def test_a_compiler_that_fails_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on with operations of torch, and a warning quotes the compiler."""
    script = tmp_path / "old-c++"
    script.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo old 4.2;; *) echo bad >&2; exit 1; esac\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path))
    with pytest.warns(RuntimeWarning, match=r"(?s)is slower.*old 4\.2.*bad"):
        assert compiled.kernel.__wrapped__() is None


def test_nothing_is_compiled_but_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration, eval mode without gradients and conversion do not ask for it."""

    def fail() -> None:
        raise AssertionError("asked for")

    monkeypatch.setattr(lattice, "kernel", fail)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = qcore.prepare(torch.nn.Sequential(torch.nn.Linear(3, 2)).eval(), x)
        qcore.calibrate(model, [x]).eval()(x)
        qcore.convert(model)(x)
        with pytest.raises(AssertionError, match="asked for"):
            model.train()(x)


def test_the_sources_are_in_the_package() -> None:
    """A wheel has what is compiled."""
    assert (Path(compiled.__file__).parent / "csrc" / "lattice.cpp").is_file()
