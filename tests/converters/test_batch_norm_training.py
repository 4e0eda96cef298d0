"""BatchNorm in training: both folds, frozen statistics, and factors near 0."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore


def fused(kind, *, bias=True, momentum=0.1):
    """A layer with a BatchNorm that has statistics of its own, and an input for it."""
    torch.manual_seed(0)
    if kind == "linear":
        layer, bn, x = nn.Linear(6, 8, bias=bias), nn.BatchNorm1d(8), torch.randn(64, 6)
    elif kind == "conv2d":
        layer = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        bn, x = nn.BatchNorm2d(8), torch.randn(16, 3, 6, 6)
    else:
        layer = nn.ConvTranspose2d(4, 8, 3, stride=2, bias=bias, groups=2)
        bn, x = nn.BatchNorm2d(8), torch.randn(16, 4, 5, 5)
    bn.momentum = momentum
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    bn.weight.data.uniform_(-1.5, 1.5)
    bn.bias.data.normal_()
    return nn.Sequential(layer, bn, nn.ReLU()), x


def prepared(model, x, preset="int8_minmax"):
    return qcore.calibrate(qcore.prepare(model, x, preset), [x]).train()


KINDS = ["linear", "conv2d", "conv_transpose2d"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", ["approximate", "exact"])
@pytest.mark.parametrize("bias", [True, False])
def test_without_rounding_it_is_the_float_model(kind, fold, bias):
    """Value, gradients and running statistics are those of layer and BatchNorm."""
    model, x = fused(kind, bias=bias)
    qfloat = prepared(model, x)
    qcore.set_batch_norm_fold(qfloat, fold)
    qcore.disable_fake_quant(qfloat)
    model.train()
    weight = torch.randn_like(model(x))
    model, _ = fused(kind, bias=bias)
    results = []
    for net in (model.train(), qfloat):
        y = net(x)
        (y * weight).sum().backward()
        results.append((y.detach(), [p.grad for p in net.parameters()]))
    (y, gradients), (mine, my_gradients) = results
    torch.testing.assert_close(mine, y, rtol=1e-4, atol=1e-4)
    for a, b in zip(my_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    bn = qfloat.get_submodule("0.bn")
    torch.testing.assert_close(bn.running_mean, model[1].running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bn.running_var, model[1].running_var, rtol=1e-5, atol=1e-5)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("fold", ["approximate", "exact"])
def test_the_average_of_all_batches(fold):
    """Without a momentum the running statistics are the mean over the batches, as in torch."""
    model, x = fused("conv2d", momentum=None)
    qfloat = prepared(model, x)
    qcore.set_batch_norm_fold(qfloat, fold)
    qcore.disable_fake_quant(qfloat)
    model.train()
    with torch.no_grad():
        for batch in (x, 2 * x, x + 1):
            model(batch)
            qfloat(batch)
    bn = qfloat.get_submodule("0.bn")
    torch.testing.assert_close(bn.running_mean, model[1].running_mean)
    torch.testing.assert_close(bn.running_var, model[1].running_var)


@pytest.mark.parametrize("kind", KINDS)
def test_the_approximate_fold_rounds_the_weight_of_deployment(kind):
    """Behind it are the integers that convert would write now, over the factor."""
    model, x = fused(kind)
    qfloat = prepared(model, x, "int4")
    op = qfloat.get_submodule("0")
    seen = []
    inner = op.layer
    op.layer = lambda x, weight, bias: seen.append(weight) or inner(x, weight, bias)
    folded, _ = op.folded()
    deployed = op.weight_quantizer.eval()(folded).detach()
    op.weight_quantizer.train()
    ones = torch.ones_like(folded)
    bn = op.bn
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    scale = op._scaled(ones, factor)
    qfloat(x)
    torch.testing.assert_close((seen[0] * scale).detach(), deployed, rtol=1e-4, atol=1e-6)


def test_the_exact_fold_rounds_the_weight_of_the_batch():
    """Its second layer runs on w * gamma / sqrt(batch_var + eps), rounded."""
    model, x = fused("conv2d")
    qfloat = prepared(model, x)
    qcore.set_batch_norm_fold(qfloat, "exact")
    op = qfloat.get_submodule("0")
    seen = []
    inner = op.layer
    op.layer = lambda x, weight, bias: seen.append(weight) or inner(x, weight, bias)
    qfloat(x)
    assert len(seen) == 2
    quantized_input = dict(qcore.quantizers(qfloat))["input_1_quantizer"](x)
    y = F.conv2d(quantized_input, op.weight, op.bias, padding=1)
    factor = op.bn.weight / (y.var((0, 2, 3), correction=0) + op.bn.eps).sqrt()
    expected = op.weight_quantizer(op.weight * factor.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(seen[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", ["approximate", "exact"])
@pytest.mark.parametrize("gamma", [0.0, 1e-12, -1e-8, 1e-4])
def test_a_gamma_near_zero(fold, gamma):
    """Neither value nor gradient explodes, and gamma can leave 0."""
    model, x = fused("conv2d", momentum=1.0)
    with torch.no_grad():
        model[1].weight[3] = gamma
        # The scales are calibrated for running statistics: those of this batch.
        model.train()(x)
    qfloat = prepared(model.eval(), x)
    qcore.set_batch_norm_fold(qfloat, fold)
    y = qfloat(x)
    float_y = copy.deepcopy(model).train()(x)
    assert (y - float_y).norm() < 0.05 * float_y.norm()
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(0)))
    op = qfloat.get_submodule("0")
    reference, _ = fused("conv2d")
    with torch.no_grad():
        reference[1].weight[3] = gamma
    z = reference.train()(x)
    z.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(op.weight.grad).all()
    # Whether gamma near 0 learns is decided by its gradient: of the size of the float one.
    mine, theirs = op.bn.weight.grad, reference[1].weight.grad
    assert (mine - theirs).norm() < 0.2 * theirs.norm()
    assert abs(mine[3]) > 0.1 * abs(theirs[3])


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Tanhshrink(), nn.BatchNorm2d(4), nn.Flatten(),
    )  # fmt: skip


def statistics(model):
    return {n: b.clone() for n, b in model.named_buffers() if "running" in n or "tracked" in n}


def test_frozen_statistics_stay_and_train_does_not_wake_them():
    """Folded, alone on integers, and in float; until they are unfrozen."""
    x = torch.randn(8, 3, 8, 8)
    override = qcore.Override(name="8", quantize=False)
    recipe = qcore.Recipe(preset="int8_minmax", overrides=(override,))
    qfloat = qcore.calibrate(qcore.prepare(network(), x, recipe), [x]).train()
    assert qcore.info_of(qfloat).plan.row("8").status == "float"
    before = statistics(qfloat)
    assert len(before) == 9
    qcore.freeze_batch_norm(qfloat)
    twin = copy.deepcopy(qfloat)
    for model in (qfloat, twin):
        model.train()(x).sum().backward()
        assert all(torch.equal(v, before[n]) for n, v in statistics(model).items())
    for name in ("0.bn", "4.bn", "8"):
        assert qfloat.get_submodule(name).weight.grad is not None
    qcore.unfreeze_batch_norm(qfloat)
    qfloat.train()(x)
    after = statistics(qfloat)
    assert not any(torch.equal(v, before[n]) for n, v in after.items())


def test_frozen_training_computes_what_eval_computes():
    """With frozen statistics only the float sums differ from the integers."""
    model, x = fused("conv2d")
    qfloat = prepared(model, x)
    qcore.freeze_batch_norm(qfloat)
    with torch.no_grad():
        torch.testing.assert_close(qfloat.train()(x), qfloat.eval()(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("fold", ["approximate", "exact"])
def test_training_with_each_fold_converts_exactly(fold):
    """A few steps, frozen towards the end; QFloat equals Q."""
    x = torch.randn(16, 3, 8, 8)
    y = torch.randint(0, 4, (16,))
    model = nn.Sequential(*network()[:7], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    qfloat = prepared(model, x, "w4a4")
    qcore.set_batch_norm_fold(qfloat, fold)
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(12):
        if step == 8:
            qcore.freeze_batch_norm(qfloat)
        loss = F.cross_entropy(qfloat(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [x]).differing == 0


def test_an_unknown_fold_is_refused():
    """The error names the two."""
    model, x = fused("linear")
    with pytest.raises(qcore.QuantizationError, match="use 'approximate' or 'exact'"):
        qcore.set_batch_norm_fold(prepared(model, x), "exakt")


def test_a_learned_scale_follows_the_factor():
    """The integers of a weight stay where BatchNorm's statistics or gamma move; the scale goes
    with them."""
    model, x = fused("conv2d")
    qfloat = prepared(model, x, "w4a4").eval()
    op = qfloat.get_submodule("0")

    def deployed():
        qfloat(x)
        qparams = op.weight_quantizer.qparams()
        return qcore.quantize_tensor(op.folded()[0], qparams), qparams.scale

    q, scale = deployed()
    with torch.no_grad():
        op.bn.weight.mul_(3.0)
    new_q, new_scale = deployed()
    assert torch.equal(new_q, q)
    torch.testing.assert_close(new_scale, 3.0 * scale)
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [x]).differing == 0


@pytest.mark.parametrize("fold", ["approximate", "exact"])
def test_a_step_learns_alike_whatever_gamma_is(fold):
    """What gamma multiplies a weight with has no part in the gradient of its step."""
    found = []
    for gamma in (1.0, 3.0):
        model, x = fused("conv2d")
        with torch.no_grad():
            model[1].weight.mul_(gamma)
            model[1].bias.zero_()
        qfloat = prepared(model, x, "w4a4")
        qcore.set_batch_norm_fold(qfloat, fold)
        y = qfloat(x)
        (y.square() / gamma**2).sum().backward()
        quantizer = qfloat.get_submodule("0").weight_quantizer
        found.append((quantizer.step.detach(), quantizer.step.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
