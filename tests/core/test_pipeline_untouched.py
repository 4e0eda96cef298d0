"""The user's model stays as it is, whatever prepare does with it."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import qcore


class Model(nn.Module):
    """Everything that could be touched: BatchNorm, dropout, buffers, hooks, lists, shared
    weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
        self.frozen = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.head.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(4), persistent=False)
        self.seen = []
        self.fail = False

    def forward(self, x):
        y = torch.relu(self.bn(self.conv(x)))
        y = self.drop(self.frozen(y)).mean((2, 3)) + self.cache
        if self.fail:
            raise RuntimeError("on purpose")
        return self.tied(torch.relu_(self.head(y)))


def model():
    torch.manual_seed(0)
    made = Model().train()
    made.frozen.eval()
    made.conv.weight.requires_grad_(False)
    made(torch.randn(4, 3, 6, 6)).sum().backward()
    made.conv.register_forward_hook(lambda m, a, y: None)
    made.register_forward_pre_hook(lambda m, a: None)
    return made


def state(made):
    """All that a caller could see, by identity and by value."""
    tensors = {**dict(made.named_parameters(remove_duplicate=False)), **dict(made.named_buffers())}
    return {
        "names": list(made.state_dict()),
        "identities": {
            n: (id(t), t.dtype, t.requires_grad, id(t.grad)) for n, t in tensors.items()
        },
        "values": {n: t.detach().clone() for n, t in tensors.items()},
        "grads": {n: t.grad.clone() for n, t in tensors.items() if t.grad is not None},
        "versions": {n: t._version for n, t in tensors.items()},
        "modes": {n: m.training for n, m in made.named_modules()},
        "modules": {n: id(m) for n, m in made.named_modules(remove_duplicate=False)},
        "hooks": {
            n: [dict(m._forward_hooks), dict(m._forward_pre_hooks)] for n, m in made.named_modules()
        },
        "settings": {
            n: (m.eps, m.momentum, int(m.num_batches_tracked))
            for n, m in made.named_modules()
            if isinstance(m, nn.BatchNorm2d)
        },
        "attributes": {n: sorted(m.__dict__) for n, m in made.named_modules()},
        "list": list(made.seen),
    }


def assert_same(before, after):
    for key in ("values", "grads"):
        assert before[key].keys() == after[key].keys()
        for name, tensor in before.pop(key).items():
            assert torch.equal(tensor, after[key][name]), name
        del after[key]
    assert before == after


def random_state():
    return torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].copy()


def assert_same_random_state(before):
    after = random_state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert (before[2] == after[2]).all()


X = torch.randn(4, 3, 6, 6)


@pytest.mark.parametrize(
    "example", [X, (X,), {"x": X}, None], ids=["tensor", "tuple", "dict", "none"]
)
def test_prepare_leaves_the_model_untouched(example):
    """Nothing of the model changes in prepare, calibration, training and conversion of its
    QFloat."""
    made = model()
    before, randomness = state(made), random_state()
    qfloat = qcore.prepare(made, example, "int8_minmax")
    assert_same_random_state(randomness)
    assert_same(state(made), before)
    batch = {"x": X} if isinstance(example, dict) else X
    before = state(made)
    qcore.calibrate(qfloat, [batch])
    optimizer = torch.optim.SGD([p for p in qfloat.parameters() if p.requires_grad], lr=0.1)
    qfloat.train()
    (qfloat(**batch) if isinstance(batch, dict) else qfloat(batch)).sum().backward()
    optimizer.step()
    qcore.convert(qfloat)
    assert_same(state(made), before)


def test_plan_leaves_the_model_untouched():
    """Nothing of the model changes when it is only planned."""
    made = model()
    before, randomness = state(made), random_state()
    qcore.plan(made, X)
    assert_same(state(made), before)
    assert_same_random_state(randomness)


@pytest.mark.parametrize(
    ("spoil", "example", "recipe"),
    [
        (lambda m: setattr(m, "fail", True), X, "int8_minmax"),
        (lambda m: None, X[:, :2], "int8_minmax"),
        (lambda m: None, X, "no such preset"),
        (lambda m: None, X, qcore.Recipe(overrides=(qcore.Override(name="nothing"),))),
        (lambda m: m.head.bfloat16(), X, "int8_minmax"),
    ],
    ids=["forward-raises", "wrong-input", "preset", "override", "dtype"],
)
def test_a_failing_prepare_leaves_the_model_untouched(spoil, example, recipe):
    """The same where prepare raises."""
    made = model()
    spoil(made)
    before, randomness = state(made), random_state()
    with pytest.raises(qcore.QcoreError):
        qcore.prepare(made, example, recipe)
    assert_same(state(made), before)
    assert_same_random_state(randomness)


def test_what_does_not_need_a_gradient_does_not_in_qfloat():
    """requires_grad of each parameter is as in the model, and gradients are not copied in."""
    made = model()
    qfloat = qcore.prepare(made, X, "int8_minmax")
    assert not qfloat.get_parameter("conv.weight").requires_grad
    assert qfloat.get_parameter("head.weight").requires_grad
    assert qfloat.get_parameter("head.weight") is not made.head.weight


def test_qfloat_is_in_the_mode_of_the_model():
    """QFloat is in training or eval mode as the model is, module by module."""
    for training in (True, False):
        made = model().train(training)
        qfloat = qcore.prepare(made, X, "int8_minmax")
        assert {m.training for m in qfloat.modules()} == {training}
