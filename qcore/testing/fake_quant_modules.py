"""The contracts about a fake quantizer as a module: qparams, state, switches, forms of input."""

import copy
import io
import warnings

import torch
from torch import Tensor

from ..errors import QcoreError
from ..fake_quantize import FakeQuantize
from ..granularity import PerChannel, PerTensor
from ..qparams import QParams
from .contract import NotApplicable, Subject, contract, require
from .fake_quant_cases import (
    WHERE,
    cases_of,
    few_cases,
    fresh,
    gradient_of,
    mode,
    require_all,
    require_equal,
    schemes_of,
    settings_of,
    short,
    started,
    values_of,
)
from .values import SHAPE, draw, layouts, one_of_each_granularity

__all__ = [
    "compiles",
    "deepcopy_is_independent",
    "empty_tensors_pass",
    "forward_keeps_the_state",
    "input_stays_unchanged",
    "memory_layout_does_not_matter",
    "other_float_dtypes_are_kept",
    "qparams_are_kept",
    "qparams_come_from_the_observer",
    "state_dict_round_trip",
    "switches_are_obeyed",
    "train_and_eval_keep_the_switches",
    "uncalibrated_refuses",
]


@contract("fake_quant", "Scales from another tool or a checkpoint must be those that are used.")
def qparams_are_kept(subject: Subject) -> int:
    cases = 0
    for scheme in schemes_of(subject):
        for setting in settings_of(scheme):
            scale, zero_point = setting.scale.clone(), setting.zero_point.clone()
            found = started(subject, setting).qparams()
            require(
                found.scheme == scheme
                and found.scale.shape == scale.shape
                and torch.allclose(found.scale, scale, rtol=1e-5, atol=0)
                and torch.equal(found.zero_point, zero_point),
                f"{scheme.describe()}: scale {short(scale)} and zero point {short(zero_point)} "
                f"were set, and it says {short(found.scale)} and {short(found.zero_point)}",
            )
            cases += 1
    return cases


@contract("fake_quant", "What calibration found is where simulation and training start.")
def qparams_come_from_the_observer(subject: Subject) -> int:
    cases = 0
    for scheme in schemes_of(subject):
        fake = fresh(subject, scheme).eval()
        fake(draw(0, *SHAPE))
        due, found = fake.observer.calculate_qparams(), fake.qparams()
        require(
            torch.allclose(found.scale, due.scale, rtol=1e-5, atol=0)
            and torch.equal(found.zero_point, due.zero_point),
            f"{scheme.describe()}: the observer answers scale {short(due.scale)}, zero point "
            f"{short(due.zero_point)}; it uses {short(found.scale)}, {short(found.zero_point)}",
        )
        cases += 1
    return cases


@contract("fake_quant", "A layer that was never calibrated must not get an invented scale.")
def uncalibrated_refuses(subject: Subject) -> int:
    cases = 0
    for scheme in schemes_of(subject):
        for training in (True, False):
            fake = fresh(subject, scheme).train(training)
            fake.observer_enabled = False
            given = f"{scheme.describe()}, {mode(training)}, without scale or observed values"
            try:
                fake(draw(0, *SHAPE))
            except QcoreError as error:
                named = WHERE in str(error)
                require(named, f"{given}: the error does not name the place {WHERE!r}: {error}")
            else:
                require(False, f"{given}: it gave values; due is a QuantizationError")
            require(not fake.calibrated, f"{given}: `calibrated` is true")
            cases += 1
    return cases


@contract("fake_quant", "The float value may be used elsewhere, as in a residual connection.")
def input_stays_unchanged(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        for training in (True, False):
            x = case.x.clone()
            with torch.no_grad():
                case.fake.train(training)(x)
            given = f"{case.given}, {mode(training)}: the input itself, afterwards"
            require_equal(given, case.x, x, case.x)
            cases += 1
    return cases


@contract("fake_quant", "Inference that moves scales gives another answer the second time.")
def forward_keeps_the_state(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        for training in (True, False):
            before = copy.deepcopy(case.fake.state_dict())
            first = values_of(case.fake, case.x, training=training)
            values_of(case.fake, case.x * 100, training=training)
            given = f"{case.given}, {mode(training)}, observer off"
            for name, value in case.fake.state_dict().items():
                require(
                    torch.equal(value, before[name]),
                    f"{given}: forward changed {name!r} from {short(before[name])} to "
                    f"{short(value)}",
                )
            again = values_of(case.fake, case.x, training=training)
            require_equal(f"{given}, the same input after others", case.x, again, first)
            cases += 1
    return cases


@contract("fake_quant", "Half and double precision models keep their dtype from layer to layer.")
def other_float_dtypes_are_kept(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            x = case.x.to(dtype)
            due, given = case.due(x), f"{case.given}, {dtype}"
            y = values_of(case.fake, x, training=False)
            require_equal(f"{given}, in eval mode", x, y, due)
            y = values_of(case.fake, x, training=True)
            require(y.dtype == dtype, f"{given}, in training: {y.dtype} came; due is {dtype}")
            most = case.scale * 1.01 + due.abs() * 2.0**-7
            near = (y.double() - due.double()).abs() <= most
            require_all(f"{given}, in training, to a step", x, y, due, near)
            grad = gradient_of(case.fake, x, torch.ones_like(x), training=True)
            require(grad.dtype == dtype, f"{given}: a gradient of {grad.dtype}; due is {dtype}")
            cases += 1
    return cases


@contract("fake_quant", "Views and channels-last tensors hold the same values.")
def memory_layout_does_not_matter(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        incoming = draw(8, *SHAPE)
        grad = gradient_of(case.fake, case.x, incoming, training=True)
        for name, x in layouts(case.x):
            given = f"{case.given}, a {name} tensor"
            # Cloned they would be contiguous, so they are given as they are.
            with torch.no_grad():
                y, trained = case.fake.eval()(x), case.fake.train()(x)
            require_equal(f"{given}, in eval mode", case.x, y, case.due(case.x))
            # Random rounding may fall otherwise, but not by more than a step.
            near = (trained - case.due(case.x)).abs() <= case.scale * 1.01
            require_all(f"{given}, in training, to a step", case.x, trained, case.due(case.x), near)
            leaf = x.detach().requires_grad_()
            case.fake(leaf).backward(incoming)
            assert leaf.grad is not None
            require_equal(f"{given}, gradient by x", case.x, leaf.grad, grad)
            cases += 1
    return cases


@contract("fake_quant", "An empty batch, the last of a shard, must pass like any other.")
def empty_tensors_pass(subject: Subject) -> int:
    fitting = [
        scheme
        for scheme in schemes_of(subject)
        if isinstance(scheme.granularity, PerTensor) or scheme.granularity == PerChannel(-1)
    ]
    if not fitting:
        raise NotApplicable("it takes no scheme whose scales an empty batch fits")
    cases = 0
    for case in cases_of(subject, fitting):
        for training in (True, False):
            for observing in (True, False):
                case.fake.observer_enabled = observing
                x = torch.empty(0, SHAPE[1], requires_grad=True)
                y = case.fake.train(training)(x)
                y.sum().backward()
                require(
                    y.shape == x.shape and y.dtype == x.dtype,
                    f"{case.given}, {mode(training)}, an empty tensor {list(x.shape)}: "
                    f"{y.dtype} {list(y.shape)} came",
                )
                cases += 1
    return cases


@contract("fake_quant", "Calibration, float baselines and training each need their own switches.")
def switches_are_obeyed(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        for training in (True, False):
            for observing in (False, True):
                for quantizing in (False, True):
                    fake = copy.deepcopy(case.fake).train(training)
                    fake.observer_enabled, fake.fake_quant_enabled = observing, quantizing
                    y = fake(case.x)
                    given = f"{case.given}, {mode(training)}, observer_enabled={observing}, "
                    given += f"fake_quant_enabled={quantizing}"
                    require(
                        fake.observer.seen == observing,
                        f"{given}: the observer has {'' if fake.observer.seen else 'not '}seen it",
                    )
                    changed = not torch.equal(y, case.x)
                    require(
                        changed == quantizing,
                        f"{given}: the values are {'' if changed else 'not '}changed",
                    )
                    cases += 1
    return cases


@contract("fake_quant", "A model in training with frozen observers must keep them frozen.")
def train_and_eval_keep_the_switches(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(schemes_of(subject)):
        fake = fresh(subject, scheme)
        require(
            fake.observer_enabled and fake.fake_quant_enabled,
            f"{scheme.describe()}: a new one must have both switches on",
        )
        for switches in ((True, True), (True, False), (False, True), (False, False)):
            fake.observer_enabled, fake.fake_quant_enabled = switches
            for call in (fake.train, fake.eval, fake.train):
                call()
                found = fake.observer_enabled, fake.fake_quant_enabled
                require(
                    found == switches,
                    f"{scheme.describe()}: {call.__name__}() moved observer_enabled and "
                    f"fake_quant_enabled from {switches} to {found}",
                )
            cases += 1
    return cases


@contract("fake_quant", "A checkpoint must restore the scales, the statistics and the switches.")
def state_dict_round_trip(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        old = case.fake
        old.observe(case.x)
        # Learned ones go on with their parameters, others with what was observed last.
        old.qparams()
        for switches in ((False, True), (True, True), (True, False)):
            old.observer_enabled, old.fake_quant_enabled = switches
            new = _sent(old, fresh(subject, old.scheme))
            found = new.observer_enabled, new.fake_quant_enabled
            given = f"{case.given}, a fresh one with the saved state"
            require(found == switches, f"{given}: switches {found}; due are {switches}")
        _require_behaves_alike(given, case.x, old, new)
        forgotten = _sent(fresh(subject, old.scheme), new)
        require(
            not forgotten.calibrated,
            f"{case.given}: the state of an uncalibrated one was loaded, and `calibrated` is true",
        )
        cases += 1
    return cases


def _sent(old: FakeQuantize, new: FakeQuantize) -> FakeQuantize:
    stream = io.BytesIO()
    torch.save(old.state_dict(), stream)
    stream.seek(0)
    new.load_state_dict(torch.load(stream, weights_only=True))
    return new


def _require_behaves_alike(given: str, x: Tensor, due: FakeQuantize, found: FakeQuantize) -> None:
    for fake in (due, found):
        fake.observer_enabled, fake.fake_quant_enabled = False, True
    p, q = due.qparams(), found.qparams()
    require(
        torch.equal(p.scale, q.scale) and torch.equal(p.zero_point, q.zero_point),
        f"{given}: scale {short(q.scale)}, zero point {short(q.zero_point)}; due are "
        f"{short(p.scale)}, {short(p.zero_point)}",
    )
    for training in (True, False):
        wanted, y = (values_of(fake, x, training=training) for fake in (due, found))
        require_equal(f"{given}, {mode(training)}", x, y, wanted)


@contract("fake_quant", "A copy of a model that is trained further must not change the first.")
def deepcopy_is_independent(subject: Subject) -> int:
    cases = 0
    for case in few_cases(subject):
        other, kept = copy.deepcopy(case.fake), _sent(case.fake, fresh(subject, case.fake.scheme))
        _require_behaves_alike(f"{case.given}, a deep copy", case.x, case.fake, other)
        doubled = QParams(
            scale=case.qparams.scale * 2,
            zero_point=case.qparams.zero_point,
            scheme=case.qparams.scheme,
        )
        other.observe(case.x * 10)
        other.set_qparams(doubled)
        values_of(other, case.x, training=True)
        given = f"{case.given}, after its deep copy was given other scales"
        _require_behaves_alike(given, case.x, kept, case.fake)
        require(not case.fake.observer.seen, f"{given}: its observer has seen what the copy saw")
        cases += 1
    return cases


@contract("fake_quant", "Training and inference under torch.compile must give the same numbers.")
def compiles(subject: Subject) -> int:
    import torch._dynamo

    if not torch._dynamo.eval_frame.is_dynamo_supported():
        raise NotApplicable("torch.compile does not work on this machine")
    cases = 0
    case = next(cases_of(subject))
    incoming = draw(8, *SHAPE)
    try:
        # What torch's compiler itself uses and deprecates is not the plug-in's doing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for training in (True, False):
                torch._dynamo.reset()
                compiled = torch.compile(case.fake.train(training), backend="eager")
                x = case.x.clone().requires_grad_(training)
                torch.manual_seed(3)
                y = compiled(x)
                given = f"{case.given}, {mode(training)}, compiled"
                plain = values_of(case.fake, case.x, training=training)
                require_equal(given, case.x, y.detach(), plain)
                if training:
                    torch.autograd.backward(y, incoming)
                    assert x.grad is not None
                    due = gradient_of(case.fake, case.x, incoming, training=True)
                    require_equal(f"{given}, gradient by x", case.x, x.grad, due)
                cases += 1
    finally:
        torch._dynamo.reset()
    return cases
