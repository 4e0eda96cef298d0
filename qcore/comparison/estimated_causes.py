"""Causes that are estimated from the values: which bias, scale or weight would give them.

An output ``q`` between the clamps says that its value before rounding lay within half a step of
``q - zero_point``; one at a clamp says that it lay there or beyond. So all outputs of a channel
together confine what was added to it, or what it was multiplied with, to an interval; where that
is empty the hypothesis is wrong. Predictions are computed by the reference kernels with the
estimate put in.
"""

from collections.abc import Iterator
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from .evidence import Case, accumulator_step
from .hypothesis import Candidate, channels_in_words, range_in_words

__all__ = ["bias_of_channels", "scale_of_channels", "single_weight", "stale_batch_norm"]

_CHANNEL_AXIS = {"qconv": 1, "qconv_transpose": 1, "qlinear": -1}

_PROOF = 2
"""Differing values for each number that is estimated: fewer could be explained by anything."""

_SLACK = 1e-4
"""Steps of the output that float32 may be off by, before rounding."""

_AROUND = 4
"""How far from its estimate a weight is looked for."""

_FEWEST = 3
"""Outputs of a channel between the clamps that a line must fit."""


@attrs.frozen(kw_only=True, eq=False)
class _Channels:
    """The outputs of a layer with weights, by channel, in steps of the output.

    Args:
        before: ``[N, M]`` float64, value before rounding on the right side.
        low, high: ``[N, M]`` float64, between which the suspect's value lay.
        different: ``[N]``, channels in which any output differs.
        added: ``[N]`` float64, the part of ``before`` that is not multiplied with the weight's
            scale: a float32 bias.
    """

    before: Tensor
    low: Tensor
    high: Tensor
    different: Tensor
    added: Tensor

    @property
    def free(self) -> Tensor:
        """``[N, M]``, outputs of the suspect between the clamps."""
        return self.low.isfinite() & self.high.isfinite()


def _channels(case: Case) -> _Channels | None:
    given = case.given
    axis = _CHANNEL_AXIS.get(case.operation)
    whole = case.right.nodes[-1] is case.right.principal
    if axis is None or not whole or case.got.numel() == 0 or given["w_scale"].ndim > 1:
        return None
    if given["y_dtype"] == torch.float32:
        return None

    def rows(x: Tensor) -> Tensor:
        return x.double().movedim(axis, 0).flatten(1)

    got = rows(case.got)
    different = got != rows(case.expected)
    if int(different.sum()) < _PROOF * int(different.any(1).sum()):
        return None
    real = case.right.run(y_dtype=torch.float32, y_scale=1.0)
    steps = got - given["y_zero_point"]
    low, high = steps - 0.5 - _SLACK, steps + 0.5 + _SLACK
    low[got <= given["y_min"]] = -torch.inf
    high[got >= given["y_max"]] = torch.inf
    bias = given["bias"]
    added = torch.zeros(got.shape[0], dtype=torch.float64, device=got.device)
    if bias is not None and bias.is_floating_point():
        added = bias.double() / given["y_scale"]
    return _Channels(
        before=rows(real) / given["y_scale"],
        low=low,
        high=high,
        different=different.any(1),
        added=added,
    )


def bias_of_channels(case: Case) -> Iterator[Candidate]:
    """Something was added to every output of a channel."""
    channels = _channels(case)
    if channels is None:
        return
    low = (channels.low - channels.before).amax(1)
    high = (channels.high - channels.before).amin(1)
    fits = (low <= high) & (low.isfinite() | high.isfinite())
    if not bool(fits[channels.different].all()):
        return
    middle = torch.where(low.isfinite(), torch.where(high.isfinite(), (low + high) / 2, low), high)
    shift = torch.where(channels.different, middle, torch.zeros_like(middle))
    bias, steps = _bias_with(case, shift)
    which = channels_in_words(channels.different)
    unit = "steps of the accumulator" if steps else "in real values"
    amount = (bias.double() - _bias(case).double())[channels.different]
    yield Candidate(
        name="bias",
        reason=f"the bias of {which} is off in {case.suspect}, by {range_in_words(amount)} {unit}",
        predict=lambda: case.right.run(bias=bias),
    )


def _bias(case: Case) -> Tensor:
    """The bias, of zeros where there is none."""
    bias: Tensor | None = case.given["bias"]
    if bias is not None:
        return bias
    w: Tensor = case.given["w"]
    n = w.shape[0] if case.operation != "qconv_transpose" else w.shape[1] * case.given["groups"]
    return torch.zeros(n, dtype=torch.int32, device=w.device)


def _bias_with(case: Case, shift: Tensor) -> tuple[Tensor, bool]:
    """The bias with ``shift`` steps of the output more, and whether it is in steps of the
    accumulator."""
    bias = _bias(case)
    real = shift * case.given["y_scale"]
    if bias.is_floating_point():
        return (bias.double() + real).float(), False
    step = _step(case, bias.numel()).double()
    return (bias.double() + torch.round(real / step)).to(torch.int32), True


def _step(case: Case, channels: int) -> Tensor:
    """Step of the accumulator of each channel ``[N]``."""
    step = accumulator_step(case.given).reshape(-1)
    return step.repeat(channels // step.numel()) if step.numel() > 1 else step.expand(channels)


def scale_of_channels(case: Case) -> Iterator[Candidate]:
    """Every output of a channel was multiplied with something."""
    channels = _channels(case)
    if channels is None or case.operation == "qconv_transpose":
        return
    scaled = channels.before - channels.added[:, None]
    low, high = channels.low - channels.added[:, None], channels.high - channels.added[:, None]
    positive = scaled > 0
    first = torch.where(positive, low, high) / scaled
    second = torch.where(positive, high, low) / scaled
    # What is multiplied is 0: it says nothing about the factor.
    least = (
        torch.where(scaled == 0, -torch.inf, first)
        .nan_to_num(nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf)
        .amax(1)
    )
    most = (
        torch.where(scaled == 0, torch.inf, second)
        .nan_to_num(nan=torch.inf, neginf=-torch.inf, posinf=torch.inf)
        .amin(1)
    )
    known = channels.different & least.isfinite() & most.isfinite() & (least <= most) & (most > 0)
    if not torch.equal(known, channels.different):
        return
    n = channels.different.numel()
    scales: Tensor = case.given["w_scale"].reshape(-1).expand(n)
    which = channels_in_words(channels.different)
    exchanged = scales.clone()
    for c in channels.different.nonzero().flatten().tolist():
        factor = scales.double() / scales[c].double()
        inside = ((factor >= least[c]) & (factor <= most[c])).nonzero().flatten()
        inside = inside[inside != c]
        if inside.numel() == 0:
            break
        middle = (least[c] + most[c]) / 2
        nearest = inside[(factor[inside] - middle).abs().argmin()]
        exchanged[c] = scales[nearest]
    else:
        yield Candidate(
            name="channel-scale",
            reason=f"{case.suspect} multiplies {which} with the scales of other channels",
            predict=lambda: case.right.run(w_scale=exchanged),
        )
    factors = torch.where(channels.different, (least + most) / 2, torch.ones_like(least))
    there = factors[channels.different]
    yield Candidate(
        name="channel-scale",
        reason=f"{case.suspect} multiplies {which} with {range_in_words(there)} times the scale",
        predict=lambda: case.right.run(w_scale=(scales.double() * factors).float()),
    )


def stale_batch_norm(case: Case) -> Iterator[Candidate]:
    """Every channel was scaled and shifted, as BatchNorm with other statistics does.

    The line through the outputs of a channel, ``q - zero_point = factor * acc + shift``, is fitted
    by least squares.
    """
    channels = _channels(case)
    if channels is None or case.operation == "qconv_transpose":
        return
    bias = _bias(case)
    n = bias.numel()
    step = _step(case, n).double()
    offset = bias.double() * (1.0 if bias.is_floating_point() else step) / case.given["y_scale"]
    x = channels.before - offset[:, None]
    y = torch.where(channels.free, (channels.low + channels.high) / 2, torch.zeros_like(x))
    weight = channels.free.double()
    count = weight.sum(1).clamp(min=1)
    mean_x, mean_y = (weight * x).sum(1) / count, (weight * y).sum(1) / count
    centred = weight * (x - mean_x[:, None])
    spread = centred.square().sum(1)
    enough = channels.different & (count >= _FEWEST) & (spread > 0)
    one = torch.ones_like(spread)
    factor = torch.where(enough, (centred * y).sum(1) / torch.where(enough, spread, one), one)
    factor = torch.where(factor > 0, factor, one)
    shift = torch.where(enough, mean_y - factor * mean_x, offset)
    real = shift * case.given["y_scale"]
    scales = case.given["w_scale"].reshape(-1).expand(n)
    changes: dict[str, Any] = {"w_scale": (scales.double() * factor).float()}
    if bias.is_floating_point():
        changes["bias"] = real.float()
    else:
        changes["bias"] = torch.round(real / (step * factor)).to(torch.int32)
    there = factor[channels.different]
    if there.numel() == 0:
        return
    yield Candidate(
        name="batch-norm",
        reason=f"in {case.suspect} {channels_in_words(channels.different)} are scaled by about "
        f"{range_in_words(there)} and shifted, as folding BatchNorm with other statistics gives",
        predict=lambda: case.right.run(**changes),
    )


def single_weight(case: Case) -> Iterator[Candidate]:
    """One weight is another: a channel differs in proportion to one of its inputs.

    Of all weights it is the one whose input explains most of the squared difference.
    """
    channels = _channels(case)
    if channels is None or int(channels.different.sum()) != 1:
        return
    given, axis = case.given, _CHANNEL_AXIS[case.operation]
    c = int(channels.different.nonzero())
    step = _step(case, channels.different.numel()).double()[c] / given["y_scale"]
    shape = case.got.movedim(axis, 0).shape
    seen = torch.zeros(shape, dtype=torch.float64, device=case.got.device)
    delta = torch.zeros_like(seen)
    middle = (channels.low[c] + channels.high[c]) / 2 - channels.before[c]
    free = channels.free[c]
    seen[c] = free.double().reshape(shape[1:])
    delta[c] = torch.where(free, middle / step, torch.zeros_like(middle)).reshape(shape[1:])
    seen, delta = seen.movedim(0, axis), delta.movedim(0, axis)
    x = given["x"].double() - given["x_zero_point"]
    along = _gradient(case, x, delta)
    energy = _gradient(case, x.square(), seen)
    gain = torch.where(energy > 0, along.square() / energy.clamp(min=1e-30), 0.0)
    place = int(gain.argmax())
    amount = int(torch.round(along.flatten()[place] / energy.flatten()[place].clamp(min=1e-30)))
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), given["w"].shape)]
    info = torch.iinfo(given["w"].dtype)
    old = int(given["w"].flatten()[place])
    # Rounding of the outputs leaves the estimate a little uncertain.
    for near in sorted(
        range(amount - _AROUND, amount + _AROUND + 1), key=lambda n: abs(n - amount)
    ):
        new = old + near
        if near == 0 or not info.min <= new <= info.max:
            continue
        weight: Tensor = given["w"].clone()
        weight.view(-1)[place] = new
        yield Candidate(
            name="weight",
            reason=f"weight {index} is {new} in {case.suspect} rather than {old}",
            predict=lambda weight=weight: case.right.run(w=weight),  # type: ignore[misc]
        )


def _gradient(case: Case, x: Tensor, upstream: Tensor) -> Tensor:
    """``sum upstream * layer(x, w)`` by every weight, in float64, shaped like the weight."""
    given = case.given
    with torch.enable_grad():
        w = torch.zeros_like(given["w"], dtype=torch.float64, requires_grad=True)
        if case.operation == "qlinear":
            y = F.linear(x, w)
        elif case.operation == "qconv":
            conv = (F.conv1d, F.conv2d, F.conv3d)[w.ndim - 3]
            y = conv(
                x, w, None, given["stride"], given["padding"], given["dilation"], given["groups"]
            )
        else:
            back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[w.ndim - 3]
            y = back(
                x, w, None, given["stride"], given["padding"], given["output_padding"],
                given["groups"], given["dilation"],
            )  # fmt: skip
        (gradient,) = torch.autograd.grad((y * upstream).sum(), w)
    return gradient
