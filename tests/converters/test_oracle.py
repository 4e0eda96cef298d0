"""Integers of single layers, worked out anew by slow loops over int64 and by the formula in
float32.

QFloat and Q run the same code, so their equality can't show that it is right. Here a program is run
operation by operation, and each operation's output is computed again from its inputs by NumPy.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import qcore
from qcore import INT4, PerGroup, QConfig, QScheme, QuantizerConfig

F32 = np.float32


class Recorder(fx.Interpreter):
    """Runs a program and keeps the arguments, by name, and the result of each operation of
    qcore."""

    def __init__(self, program):
        super().__init__(program)
        self.calls = []

    def run_node(self, node):
        result = super().run_node(node)
        if node.op == "call_function" and str(node.target).startswith("qcore."):
            args, _ = self.fetch_args_kwargs_from_env(node)
            names = [a.name for a in node.target._schema.arguments]
            kind = str(node.target).split(".")[1]
            self.calls.append((kind, dict(zip(names, args, strict=True)), result))
        return result


def calls_of(program, *inputs):
    recorder = Recorder(program)
    recorder.run(*inputs)
    return recorder.calls


def centred(q, zero_point):
    return q.numpy().astype(np.int64) - zero_point


def weights(a):
    """Weights less their zero points, int64, and scales [N]."""
    w = a["w"].numpy().astype(np.int64)
    scale = a["w_scale"].numpy().reshape(-1)
    if a["w_zero_point"] is not None:
        w = w - a["w_zero_point"].numpy().astype(np.int64).reshape(-1, *[1] * (w.ndim - 1))
    return w, scale


def requantized(acc, scale, a, other=None):
    """The default contract; ``acc`` int64, ``scale`` float32, both shaped like the output."""
    assert np.abs(acc).max() < 2**31
    acc = acc.astype(F32)
    if a["y_dtype"] == torch.float32:
        y = acc * scale
        return y if other is None else y + other
    sy = F32(a["y_scale"])
    t = acc * (scale / sy).astype(F32)
    if other is not None:
        t = t + other
    q = np.rint(t).astype(np.int64) + a["y_zero_point"]
    return np.clip(q, a["y_min"], a["y_max"])


def channels(values, ndim):
    return values.reshape(1, -1, *[1] * (ndim - 2))


def residual(a):
    if a["other"] is None:
        return None
    d = centred(a["other"], a["other_zero_point"]).astype(F32)
    factor = F32(a["other_scale"])
    return d * (factor if a["y_dtype"] == torch.float32 else factor / F32(a["y_scale"]))


def qconv(a):
    x = centred(a["x"], a["x_zero_point"])
    w, scale = weights(a)
    kernel, out = w.shape[2:], w.shape[0]
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in a["padding"])])
    spans = [d * (k - 1) + 1 for d, k in zip(a["dilation"], kernel, strict=True)]
    size = [(n - s) // t + 1 for n, s, t in zip(x.shape[2:], spans, a["stride"], strict=True)]
    acc = np.zeros((x.shape[0], out, *size), np.int64)
    per_group = out // a["groups"]
    for n in range(out):
        group = n // per_group
        part = x[:, group * w.shape[1] : (group + 1) * w.shape[1]]
        for place in itertools.product(*map(range, size)):
            taps = (
                slice(p * t, p * t + s, d)
                for p, t, s, d in zip(place, a["stride"], spans, a["dilation"], strict=True)
            )
            window = part[(slice(None), slice(None), *taps)]
            acc[(slice(None), n, *place)] = (window * w[n]).sum(tuple(range(1, window.ndim)))
    if a["bias"] is not None:
        assert a["bias"].dtype == torch.int32
        acc = acc + channels(a["bias"].numpy().astype(np.int64), acc.ndim)
    step = F32(a["x_scale"]) * scale
    return requantized(acc, channels(step, acc.ndim), a, residual(a))


def qconv_transpose(a):
    x = centred(a["x"], a["x_zero_point"])
    w = a["w"].numpy().astype(np.int64)
    groups, kernel = a["groups"], w.shape[2:]
    out = w.shape[1] * groups
    size = [
        (n - 1) * t - 2 * p + d * (k - 1) + o + 1
        for n, t, p, d, k, o in zip(
            x.shape[2:], a["stride"], a["padding"], a["dilation"], kernel, a["output_padding"],
            strict=True,
        )
    ]  # fmt: skip
    acc = np.zeros((x.shape[0], out, *size), np.int64)
    for c, m in itertools.product(range(x.shape[1]), range(w.shape[1])):
        n = (c // (x.shape[1] // groups)) * w.shape[1] + m
        for place in itertools.product(*map(range, x.shape[2:])):
            for tap in itertools.product(*map(range, kernel)):
                to = tuple(
                    i * t - p + k * d
                    for i, t, p, k, d in zip(
                        place, a["stride"], a["padding"], tap, a["dilation"], strict=True
                    )
                )
                if all(0 <= i < s for i, s in zip(to, size, strict=True)):
                    acc[(slice(None), n, *to)] += x[(slice(None), c, *place)] * w[(c, m, *tap)]
    acc = acc + channels(a["bias"].numpy().astype(np.int64), acc.ndim)
    step = np.tile(F32(a["x_scale"]) * a["w_scale"].numpy(), groups)
    return requantized(acc, channels(step, acc.ndim), a)


def qlinear(a):
    x = centred(a["x"], a["x_zero_point"])
    if a["w_scale"].ndim == 2:
        return grouped_linear(x, a)
    w, scale = weights(a)
    acc = np.einsum("...k,nk->...n", x, w)
    if a["bias"] is not None:
        acc = acc + a["bias"].numpy().astype(np.int64)
    return requantized(acc, F32(a["x_scale"]) * scale, a)


def grouped_linear(x, a):
    """Partial sums are scaled and added in float32 in the order of the groups."""
    scale = a["w_scale"].numpy()
    w = a["w"].numpy().astype(np.int64)
    size = w.shape[1] // scale.shape[1]
    total = None
    for g in range(scale.shape[1]):
        columns = slice(g * size, (g + 1) * size)
        part = w[:, columns]
        if a["w_zero_point"] is not None:
            part = part - a["w_zero_point"].numpy()[:, g : g + 1]
        acc = np.einsum("...k,nk->...n", x[..., columns], part).astype(F32)
        term = acc * (F32(a["x_scale"]) * scale[:, g])
        total = term if total is None else total + term
    if a["bias"] is not None:
        total = total + a["bias"].numpy()
    if a["y_dtype"] == torch.float32:
        return total
    t = total * (F32(1) / F32(a["y_scale"]))
    return np.clip(np.rint(t).astype(np.int64) + a["y_zero_point"], a["y_min"], a["y_max"])


def qmatmul(a):
    left, right = centred(a["a"], a["a_zero_point"]), centred(a["b"], a["b_zero_point"])
    return requantized(left @ right, np.array(F32(a["a_scale"]) * F32(a["b_scale"])), a)


def qadd(a):
    left, right = centred(a["a"], a["a_zero_point"]), centred(a["b"], a["b_zero_point"])
    sy = F32(a["y_scale"])
    t = left.astype(F32) * (F32(a["a_scale"]) / sy) + right.astype(F32) * (F32(a["b_scale"]) / sy)
    return np.clip(np.rint(t).astype(np.int64) + a["y_zero_point"], a["y_min"], a["y_max"])


def qsub(a):
    left, right = centred(a["a"], a["a_zero_point"]), centred(a["b"], a["b_zero_point"])
    sy = F32(a["y_scale"])
    t = left.astype(F32) * (F32(a["a_scale"]) / sy) - right.astype(F32) * (F32(a["b_scale"]) / sy)
    return np.clip(np.rint(t).astype(np.int64) + a["y_zero_point"], a["y_min"], a["y_max"])


def qrequantize(a):
    return requantized(centred(a["x"], a["x_zero_point"]), np.array(F32(a["x_scale"])), a)


def qmul(a):
    product = centred(a["a"], a["a_zero_point"]) * centred(a["b"], a["b_zero_point"])
    return requantized(product, np.array(F32(a["a_scale"]) * F32(a["b_scale"])), a)


def qcat(a):
    parts = [
        requantized(centred(x, z), np.array(F32(s)), a)
        for x, s, z in zip(a["xs"], a["scales"], a["zero_points"], strict=True)
    ]
    return np.concatenate(parts, a["dim"])


def qmean(a):
    x = centred(a["x"], a["x_zero_point"])
    dims = tuple(a["dim"]) or tuple(range(x.ndim))
    count = np.prod([x.shape[d] for d in dims])
    acc = x.sum(dims, keepdims=a["keepdim"])
    return requantized(acc, np.array(F32(a["x_scale"]) / F32(count)), a)


def qavg_pool(a):
    """Two dimensions, no ceil_mode, padding counted."""
    x = centred(a["x"], a["x_zero_point"])
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in a["padding"])])
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], a["kernel"], a["stride"], strict=True)]
    acc = np.zeros((*x.shape[:2], *size), np.int64)
    for i, j in itertools.product(*map(range, size)):
        rows = slice(i * a["stride"][0], i * a["stride"][0] + a["kernel"][0])
        columns = slice(j * a["stride"][1], j * a["stride"][1] + a["kernel"][1])
        acc[:, :, i, j] = x[:, :, rows, columns].sum((2, 3))
    return requantized(acc, np.array(F32(a["x_scale"]) / F32(np.prod(a["kernel"]))), a)


def qmax_pool(a):
    """Two dimensions, no padding and no dilation."""
    assert not any(a["padding"])
    x = a["x"].numpy()
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], a["kernel"], a["stride"], strict=True)]
    y = np.empty((*x.shape[:2], *size), x.dtype)
    for i, j in itertools.product(*map(range, size)):
        rows = slice(i * a["stride"][0], i * a["stride"][0] + a["kernel"][0])
        columns = slice(j * a["stride"][1], j * a["stride"][1] + a["kernel"][1])
        y[:, :, i, j] = x[:, :, rows, columns].max((2, 3))
    return y


def qtable(a):
    return a["table"].numpy()[a["x"].numpy().astype(np.int64) - a["offset"]]


def quantize(a):
    q = np.rint(a["x"].numpy() / F32(a["scale"])) + a["zero_point"]
    return np.clip(q, a["quant_min"], a["quant_max"])


def dequantize(a):
    return centred(a["q"], a["zero_point"]).astype(F32) * F32(a["scale"])


def unpack(a):
    """Low bits first, two's complement if signed; the last byte may be padded."""
    bits = a["bits"]
    shifts = np.arange(0, 8, bits)
    values = (a["packed"].numpy()[..., None] >> shifts) & (2**bits - 1)
    values = values.reshape(*values.shape[:-2], -1)[..., : a["columns"]].astype(np.int64)
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values) if a["signed"] else values


ORACLES = {
    f.__name__: f
    for f in (
        qconv, qconv_transpose, qlinear, qmatmul, qadd, qsub, qrequantize, qmul, qcat, qmean,
        qavg_pool, qmax_pool, qtable, quantize, dequantize, unpack,
    )
}  # fmt: skip

GROUPS = QConfig(
    weight=QuantizerConfig(scheme=QScheme(dtype=INT4, granularity=PerGroup(4), symmetric=False)),
    activation=QuantizerConfig(scheme="uint8"),
)
UNSIGNED_WEIGHTS = QConfig(
    weight=QuantizerConfig(scheme="uint4_channel"), activation=QuantizerConfig(scheme="int8_affine")
)


def image(net, function, **modules):
    return net(function, a=nn.Conv2d(3, 4, 3, padding=1), **modules), torch.randn(3, 3, 6, 5)


def _cases(net):
    torch.manual_seed(6)
    bn = nn.BatchNorm2d(4)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    yield (
        "residual",
        *image(
            net,
            lambda m, x: m.b(F.relu6(m.bn(m.g(m.a(x))) + m.a(x))),
            g=nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False),
            bn=bn,
            b=nn.Conv2d(4, 3, 3, stride=2),
        ),
    )
    yield "residual-to-float", *image(net, lambda m, x: m.b(m.a(x)) + m.a(x), b=nn.Conv2d(4, 4, 1))
    yield (
        "one-dimension",
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 2, 2)),
        torch.randn(2, 3, 9),
    )
    yield (
        "transposed",
        nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.ConvTranspose2d(6, 2, 2, dilation=2)
        ),
        torch.randn(2, 4, 3, 4),
    )
    yield (
        "batch-norm",
        *image(net, lambda m, x: m.b(m.bn(F.max_pool2d(m.a(x), 2))), bn=bn, b=nn.Conv2d(4, 2, 1)),
    )
    yield (
        "elementwise",
        *image(
            net,
            lambda m, x: m.b(torch.cat([m.a(x) * m.c(x), F.max_pool2d(m.a(x), 1) + m.c(x)], 1)),
            c=nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()),
            b=nn.Conv2d(8, 2, 1),
        ),
    )
    yield (
        "differences",
        *image(
            net,
            lambda m, x: m.b(F.relu(m.a(x) - m.c(x)) - torch.maximum(m.a(x), m.c(x))),
            c=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(4, 2, 1),
        ),
    )
    yield (
        "averages",
        *image(
            net,
            lambda m, x: m.b(F.avg_pool2d(m.a(x), (3, 2), (2, 1), 1).mean((2, 3))),
            b=nn.Linear(4, 3),
        ),
    )
    yield (
        "linear-matmul",
        net(lambda m, x: m.a(x) @ m.b(F.relu(m.b(x))).mT, a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        torch.randn(2, 5, 8),
    )


CASES = [
    "residual",
    "residual-to-float",
    "one-dimension",
    "transposed",
    "batch-norm",
    "elementwise",
    "differences",
    "averages",
    "linear-matmul",
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "preset", ["int8_minmax", "uint8", UNSIGNED_WEIGHTS], ids=["i8", "u8", "u4w"]
)
def test_each_operation_equals_the_oracle(pipeline, net, name, preset):
    """Every operation of a program gives the integers of the slow oracle."""
    if preset is UNSIGNED_WEIGHTS and name == "transposed":
        preset = "int4"
    model, x = next((m, x) for n, m, x in _cases(net) if n == name)
    check(pipeline(model, x, preset, sizes=()).q, x)


def test_groups_equal_the_oracle(pipeline):
    """The same for weights in groups along K, with zero points."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 4))
    override = qcore.Override(name="2", weight=QuantizerConfig(scheme="uint4_channel"))
    recipe = qcore.Recipe(qconfig=GROUPS, overrides=(override,))
    x = torch.randn(3, 8)
    check(pipeline(model, x, recipe, sizes=()).q, x)


def check(program, x):
    calls = calls_of(program, x)
    assert {kind for kind, _, _ in calls} - {"quantize", "dequantize"}
    for kind, arguments, result in calls:
        want = ORACLES[kind](arguments)
        assert want.shape == tuple(result.shape), kind
        differing = int((result.numpy() != want).sum())
        assert differing == 0, f"{kind}: {differing} of {result.numel()}"


def test_weights_and_bias_in_a_program_are_those_of_the_folded_layer(pipeline):
    """``(q - z) * scale`` is the folded weight within half a step, the bias within half of its
    own."""
    torch.manual_seed(8)
    conv, bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    bn.weight.data.normal_()
    x = torch.randn(2, 3, 6, 6)
    done = pipeline(nn.Sequential(conv, bn), x, sizes=())
    (a,) = (a for kind, a, _ in calls_of(done.q, x) if kind == "qconv")
    factor = (bn.weight / (bn.running_var.double() + bn.eps).sqrt()).reshape(-1, 1, 1, 1)
    scale = a["w_scale"].double()
    weight = a["w"].double() * scale.reshape(-1, 1, 1, 1)
    assert ((weight - conv.weight * factor).abs().amax((1, 2, 3)) <= scale * 0.5001).all()
    bias = (conv.bias - bn.running_mean) * factor.flatten() + bn.bias
    step = scale * a["x_scale"]
    assert ((a["bias"] * step - bias).abs() <= step * 0.5001).all()
