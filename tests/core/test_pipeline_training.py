"""Training of QFloat: gradients, BatchNorm, and the program that comes out of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore


def network(*, momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.fixture
def data():
    """Images, and the brightest channel of each."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, 8, 8, generator=g) + torch.randn(32, 3, 1, 1, generator=g)
    return x, x.mean((2, 3)).argmax(1)


def prepared(model, x, preset="int8_minmax"):
    return qcore.calibrate(qcore.prepare(model, x, preset), [x])


@pytest.mark.parametrize("preset", ["int8_minmax", "int4"])
def test_training_lowers_the_loss_and_the_program_follows(data, preset):
    """A few steps lower the loss, every parameter and the input have gradients, then QFloat equals
    Q."""
    x, y = data
    model = network()
    qfloat = prepared(model, x, preset).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(12):
        inputs = x.clone().requires_grad_()
        loss = F.cross_entropy(qfloat(inputs), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in qfloat.parameters())
        assert inputs.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, [x, x[:3]]).differing == 0
    assert qfloat.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_gradients_are_near_those_of_the_float_model(data):
    """At 8 bits the straight-through gradients point where the float ones do."""
    x, y = data
    model = network().eval()
    for bn in (model[1], model[4]):
        bn.running_mean.uniform_(-0.2, 0.2)
    qfloat = prepared(model, x).eval()
    grads = []
    for net in (model, qfloat):
        F.cross_entropy(net(x), y).backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.99


def test_gradient_in_eval_mode_does_not_change_the_value(data):
    """In eval mode the value is the exact one with gradients and without."""
    x, _ = data
    qfloat = prepared(network(), x).eval()
    with torch.no_grad():
        plain = qfloat(x)
    assert torch.equal(qfloat(x), plain)
    assert qfloat(x).requires_grad


def test_running_statistics_follow_those_of_float_training(data):
    """One pass in training mode moves running statistics as in the float model, within rounding."""
    x, _ = data
    model = network()
    model[8].p = 0.0
    qfloat = prepared(model, x).train()
    model.train()
    with torch.no_grad():
        for _ in range(3):
            qfloat(x)
            model(x)
    for name, bn in (("0.bn", model[1]), ("3.bn", model[4])):
        mine = qfloat.get_submodule(name)
        assert mine.num_batches_tracked == bn.num_batches_tracked == 3
        torch.testing.assert_close(mine.running_mean, bn.running_mean, rtol=0.02, atol=0.01)
        torch.testing.assert_close(mine.running_var, bn.running_var, rtol=0.02, atol=0.01)


def test_training_output_is_near_that_of_float_training(data):
    """With the statistics of the batch, as with the running ones, QFloat is near the float
    model."""
    x, _ = data
    model = network(momentum=1.0).train()
    model[8].p = 0.0
    with torch.no_grad():
        want = model(x)
        qfloat = prepared(model, x).train()
        assert (qfloat(x) - want).norm() < 0.05 * want.norm()
        # The scale that running statistics give the weight is divided out again.
        qfloat.get_submodule("0.bn").running_var.mul_(2)
        qfloat.get_submodule("0.bn").running_mean.add_(1)
        assert (qfloat(x) - want).norm() < 0.05 * want.norm()


def test_frozen_batch_norm_stays_frozen(data):
    """A BatchNorm in eval mode within a model in training is folded and keeps its statistics."""
    x, _ = data
    model = network().train()
    model[1].eval()
    qfloat = prepared(model, x)
    assert qfloat.training
    assert qfloat.get_submodule("0").training
    assert not qfloat.get_submodule("0.bn").training
    assert qfloat.get_submodule("3.bn").training
    with torch.no_grad():
        qfloat(x)
    assert qfloat.get_submodule("0.bn").num_batches_tracked == 0
    assert qfloat.get_submodule("3.bn").num_batches_tracked == 1


def test_batch_norm_alone_trains(data):
    """BatchNorm that no layer takes in normalizes with the batch in training, and is exact after
    it."""
    x, y = data
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3),
        nn.Flatten(),
    )  # fmt: skip
    qfloat = prepared(model, x).train()
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(qfloat(x), y).backward()
        assert all(p.grad is not None for p in qfloat.parameters())
        optimizer.step()
    assert qfloat.get_submodule("2.bn").num_batches_tracked == 3
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [x]).differing == 0


def test_weight_scales_follow_when_their_observers_are_on(data):
    """With observers on, weight scales follow the weights through training; the program takes the
    last."""
    x, y = data
    qfloat = prepared(network(), x).train()
    qcore.enable_observer(qfloat)
    old = dict(qcore.quantizers(qfloat))["0.weight_quantizer"].qparams().scale.clone()
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(qfloat(x), y).backward()
        optimizer.step()
    qcore.disable_observer(qfloat)
    new = dict(qcore.quantizers(qfloat))["0.weight_quantizer"].qparams().scale
    assert not torch.equal(old, new)
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [x]).differing == 0


def test_parameters_read_as_tensors_are_trained_and_converted(data, net):
    """A parameter that the forward reads itself is trained in QFloat and is in the program after
    it."""
    model = net(lambda m, x: m.a(x) * m.a.weight.mean(), a=nn.Linear(6, 4))
    x = torch.randn(8, 6)
    qfloat = prepared(model, x).train()
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        qfloat(x).square().sum().backward()
        optimizer.step()
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, [x]).differing == 0
    torch.testing.assert_close(q(x), qfloat.eval()(x))
    assert not torch.equal(qfloat.get_parameter("a.weight"), model.a.weight)


def test_convert_in_training_mode_leaves_the_model_in_it(data):
    """convert gives the program of eval mode and puts every mode back."""
    x, _ = data
    qfloat = prepared(network(), x).train()
    qfloat.get_submodule("3.bn").eval()
    modes = {name: m.training for name, m in qfloat.named_modules()}
    q = qcore.convert(qfloat)
    assert {name: m.training for name, m in qfloat.named_modules()} == modes
    assert not q.training
    assert torch.equal(q(x), qfloat.eval()(x))
