"""The contracts of fake quantizers.

A fake quantizer is made as ``cls(scheme=..., observer=..., where=..., **options)``, for each scheme
that it takes, is given scales and zero points, and tried in training and in eval mode on values
inside of the range, beyond its ends and half-way between two integers. In eval mode, and by these
contracts in training too, its values are those of the one formula

    q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max)
    x_hat = (q - zero_point) * scale

A method that trains with other values, as stochastic rounding does, declares it.
"""

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from .contract import Contract, NotApplicable, Subject, contract, require
from .fake_quant_cases import (
    Case,
    cases_of,
    few_cases,
    gradient_of,
    mode,
    require_all,
    require_equal,
    short,
    values_of,
)
from .fake_quant_modules import (
    compiles,
    deepcopy_is_independent,
    empty_tensors_pass,
    forward_keeps_the_state,
    input_stays_unchanged,
    memory_layout_does_not_matter,
    other_float_dtypes_are_kept,
    qparams_are_kept,
    qparams_come_from_the_observer,
    state_dict_round_trip,
    switches_are_obeyed,
    train_and_eval_keep_the_switches,
    uncalibrated_refuses,
)
from .values import SHAPE, draw

__all__ = ["CONTRACTS"]


@contract("fake_quant", "QFloat in eval mode must compute the integers that are deployed.")
def eval_equals_quantize_then_dequantize(subject: Subject) -> int:
    return _equals_the_formula(subject, training=False)


@contract("fake_quant", "A model trained on other values than it is deployed with loses accuracy.")
def training_equals_quantize_then_dequantize(subject: Subject) -> int:
    return _equals_the_formula(subject, training=True)


def _equals_the_formula(subject: Subject, *, training: bool) -> int:
    cases = 0
    for case in cases_of(subject):
        y = values_of(case.fake, case.x, training=training)
        require_equal(f"{case.given}, {mode(training)}", case.x, y, case.due(case.x))
        cases += 1
    return cases


@contract("fake_quant", "A value between two integers of the dtype can't be deployed.")
def values_lie_on_the_lattice(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        for training in (True, False):
            y = values_of(case.fake, case.x, training=training)
            _require_on_lattice(f"{case.given}, {mode(training)}", case, y)
            cases += 1
    return cases


def _require_on_lattice(given: str, case: Case, y: Tensor) -> None:
    low, high = case.ends
    steps = y / case.scale
    due = torch.minimum(torch.maximum(steps.round(), low), high) * case.scale
    near = (y - due).abs() <= 1e-3 * case.scale
    require_all(f"{given}, nearest value of the dtype", case.x, y, due, near)


@contract("fake_quant", "Padding and relu give exact zeros, which must stay what they are.")
def zero_is_exact(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        zero = torch.zeros(SHAPE)
        for training in (True, False):
            y = values_of(case.fake, zero, training=training)
            require_equal(f"{case.given}, {mode(training)}", zero, y, zero)
            cases += 1
    return cases


@contract("fake_quant", "A value that wraps around instead of saturating ruins a layer.")
def values_outside_are_clipped(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        low, high = (end * case.scale for end in case.ends)
        for far in (1e4, torch.inf):
            for x, due in ((-far * torch.ones(SHAPE), low), (far * torch.ones(SHAPE), high)):
                for training in (True, False):
                    y = values_of(case.fake, x, training=training)
                    require_equal(f"{case.given}, {mode(training)}", x, y, due)
                    cases += 1
    return cases


@contract("fake_quant", "A larger error than that of rounding is a bias of every layer.")
def error_is_at_most_half_a_step(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        low, high = case.ends
        x = torch.minimum(torch.maximum(case.x / case.scale, low), high) * case.scale
        for training in (True, False):
            y = values_of(case.fake, x, training=training)
            most = case.scale / 2 * (1 + 1e-5) + x.abs() * 2.0**-22
            near = (y - x).abs() <= most
            given = f"{case.given}, {mode(training)}, values within the range"
            require_all(given, x, y, case.due(x), near)
            cases += 1
    return cases


@contract("fake_quant", "An order of values that quantization turns round turns decisions round.")
def quantizing_is_monotone(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        for training in (True, False):
            before = values_of(case.fake, case.x, training=training)
            for part in (0.01, 0.5, 1.0, 30.0):
                larger = case.x + part * case.scale
                y = values_of(case.fake, larger, training=training)
                given = f"{case.given}, {mode(training)}, values {part} steps larger, which must "
                given += "not become smaller"
                require_all(given, larger, y, before, y >= before)
                cases += 1
    return cases


@contract("fake_quant", "Values that cross two quantizers of one scale must not drift.")
def quantizing_is_idempotent(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        for training in (True, False):
            once = values_of(case.fake, case.x, training=training)
            twice = values_of(case.fake, once, training=training)
            given = f"{case.given}, {mode(training)}, values that are quantized already"
            require_equal(given, once, twice, once)
            cases += 1
    return cases


@contract(
    "fake_quant",
    "Training needs the gradient of the identity inside of the range, and none where it clips.",
)
def gradient_is_clipped_straight_through(subject: Subject) -> int:
    cases = 0
    for case in cases_of(subject):
        low, high = case.ends
        u = case.x / case.scale
        # Methods differ in the half step beyond the last integer, which still rounds to it.
        inside = (u > low + 0.01) & (u < high - 0.01)
        outside = (u < low - 0.51) | (u > high + 0.51)
        incoming = draw(8, *SHAPE)
        due = torch.where(inside, incoming, 0.0)
        for training in (True, False):
            found = gradient_of(case.fake, case.x, incoming, training=training)
            good = (found == due) | ~(inside | outside)
            given = f"{case.given}, {mode(training)}, gradient by x of {short(incoming)}"
            require_all(given, case.x, found, due, good)
            cases += 1
    return cases


def _learned(subject: Subject) -> Iterator[Case]:
    cases = [case for case in few_cases(subject) if list(case.fake.parameters())]
    if not cases:
        raise NotApplicable("it has no parameters")
    yield from cases


@contract("fake_quant", "A parameter without a gradient is not learned; NaN in one ends training.")
def learned_parameters_get_gradients(subject: Subject) -> int:
    cases = 0
    for case in _learned(subject):
        x = case.x.detach().clone().requires_grad_()
        (case.fake.train()(x) * draw(8, *SHAPE)).sum().backward()
        for name, parameter in case.fake.named_parameters():
            grad = parameter.grad
            given = f"{case.given}: the gradient by {name!r}"
            require(grad is not None, f"{given} is missing")
            assert grad is not None
            require(bool(torch.isfinite(grad).all()), f"{given} is {short(grad)}; due are numbers")
            require(
                bool((grad != 0).any()),
                f"{given} is zero, though values lie inside and outside of the range",
            )
            cases += 1
    return cases


@contract("fake_quant", "What is deployed must be what was trained.")
def qparams_follow_learned_parameters(subject: Subject) -> int:
    cases = 0
    for case in _learned(subject):
        with torch.no_grad():
            for parameter in case.fake.parameters():
                parameter.mul_(1.1).add_(0.05)
        new = attrs.evolve(case, qparams=case.fake.qparams())
        given = f"{case.given}, parameters 1.1 times as large and 0.05 more"
        require(
            not torch.equal(new.qparams.scale, case.qparams.scale)
            or not torch.equal(new.qparams.zero_point, case.qparams.zero_point),
            f"{given}: the qparams are what they were",
        )
        y = values_of(case.fake, case.x, training=False)
        require_equal(f"{given}, in eval mode", case.x, y, new.due(case.x))
        _require_on_lattice(
            f"{given}, in training", new, values_of(case.fake, case.x, training=True)
        )
        cases += 1
    return cases


CONTRACTS: tuple[Contract, ...] = (
    qparams_are_kept,
    qparams_come_from_the_observer,
    uncalibrated_refuses,
    eval_equals_quantize_then_dequantize,
    training_equals_quantize_then_dequantize,
    values_lie_on_the_lattice,
    zero_is_exact,
    values_outside_are_clipped,
    error_is_at_most_half_a_step,
    quantizing_is_monotone,
    quantizing_is_idempotent,
    gradient_is_clipped_straight_through,
    learned_parameters_get_gradients,
    qparams_follow_learned_parameters,
    input_stays_unchanged,
    forward_keeps_the_state,
    other_float_dtypes_are_kept,
    memory_layout_does_not_matter,
    empty_tensors_pass,
    switches_are_obeyed,
    train_and_eval_keep_the_switches,
    state_dict_round_trip,
    deepcopy_is_independent,
    compiles,
)
