"""The stage qat: what it trains, how it ends, and what its options do."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import qcore
from qcore_algorithms import qat as module
from qcore_algorithms.qat import learning_rate, qat

FAST = {"batch_size": 32, "lr": 0.05}


def final(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_it_trains_in_place_and_ends_in_eval_mode(qfloat, data):
    """Accuracy rises, scales have moved, torch's random state is as before, QFloat equals Q."""
    model = qfloat()
    before = qcore.accuracy(model, data)
    scales = {name: q.qparams().scale.clone() for name, q in qcore.quantizers(model)}
    state = torch.random.get_rng_state()
    trained = qat(model, dataset=data, epochs=6, **FAST)
    assert trained is model
    assert not trained.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert qcore.accuracy(trained, data) > max(before + 10, 80)
    assert all(
        not torch.equal(scales[name], q.qparams().scale) for name, q in qcore.quantizers(trained)
    )
    q = qcore.convert(trained)
    assert qcore.count_differences(trained, q, [data.test_inputs]).differing == 0


@pytest.mark.parametrize("preset", ["int8_minmax", "w8a8", "w2a4"])
def test_any_preset_trains(qfloat, data, preset):
    """Fixed scales too; the loss of the training split falls."""
    model = qfloat(preset)
    x, y = data.train_inputs, data.train_labels
    before = F.cross_entropy(model.eval()(x), y).item()
    qat(model, dataset=data, epochs=2, **FAST)
    assert F.cross_entropy(model(x), y).item() < before


def test_the_same_seed_gives_the_same_weights(qfloat, data):
    """Another seed gives others, with dropout and augmentation."""
    options = {**FAST, "augment": ["flip", "shift"], "shift_pixels": 1}
    runs = [
        final(qat(qfloat(dropout=0.2), dataset=data, seed=seed, **options)) for seed in (1, 1, 2)
    ]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["0.weight"], runs[2]["0.weight"])


def test_it_is_what_a_plain_loop_does(qfloat, data):
    """A loop of the user's own, step for step, gives the same weights bit for bit."""
    stage = final(qat(qfloat(), dataset=data, epochs=2, channels_last=False, **FAST))
    model = qfloat().train()
    scales = {id(p) for _, q in qcore.quantizers(model) for p in q.parameters()}
    others = [p for p in model.parameters() if id(p) not in scales]
    weights = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in others if p.ndim <= 1]},
    ]
    steps = [p for p in model.parameters() if id(p) in scales]
    optimizers = {
        torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True): 0.05,
        torch.optim.AdamW(steps, lr=1e-3, weight_decay=0.0): 1e-3,
    }
    step = 0
    for epoch in range(2):
        for images, labels in data.batches("train", 32, shuffle=True, seed=epoch, drop_last=True):
            rate = (1 + math.cos(math.pi * step / 16)) / 2
            for optimizer, peak in optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate
                optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
            step += 1
    assert_same(final(model), stage)


def learned(model):
    """Copies of what quantizers learn; the step of a weight is that without BatchNorm's factor."""
    return {
        f"{name}.{parameter}": value.detach().clone()
        for name, quantizer in qcore.quantizers(model)
        for parameter, value in quantizer.named_parameters()
    }


def test_learned_scales_have_their_own_rate_and_no_decay(qfloat, data):
    """With scale_lr 0 they stay, though weights decay; by the optimizer of the weights too."""
    model = qfloat()
    steps = learned(model)
    qat(model, dataset=data, scale_lr=0.0, weight_decay=0.1, **FAST)
    assert all(torch.equal(step, steps[name]) for name, step in learned(model).items())
    qat(model, dataset=data, scale_optimizer="sgd", scale_lr=0.05, **FAST)
    assert not any(torch.equal(step, steps[name]) for name, step in learned(model).items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers(qfloat, data, optimizer):
    """Both train."""
    lr = 0.05 if optimizer == "sgd" else 0.01
    model = qat(qfloat(), dataset=data, epochs=5, batch_size=32, optimizer=optimizer, lr=lr)
    assert qcore.accuracy(model, data) > 75


def test_actions_happen_at_their_step(qfloat, data, monkeypatch):
    """Epochs and steps, in their order, before the step that they name."""
    seen = []
    model = qfloat("int8_minmax")
    inner = module._Training._step

    def watch(self, *args):
        op = self.model.get_submodule("0")
        seen.append((op.batch_norm_frozen, op.weight_quantizer.observer_enabled))
        inner(self, *args)

    monkeypatch.setattr(module._Training, "_step", watch)
    schedule = [
        {"step": 11, "do": "disable_observer"},
        {"epoch": 0, "do": "enable_observer"},
        {"epoch": 1.5, "do": "freeze_batch_norm"},
    ]
    scale = dict(qcore.quantizers(model))["0.weight_quantizer"].qparams().scale.clone()
    qat(model, dataset=data, epochs=2, schedule=schedule, **FAST)
    assert [observing for _, observing in seen] == [True] * 11 + [False] * 5
    assert [frozen for frozen, _ in seen] == [False] * 12 + [True] * 4
    # The scale followed the weights while their observer was on.
    assert not torch.equal(
        dict(qcore.quantizers(model))["0.weight_quantizer"].qparams().scale, scale
    )


def test_frozen_scales_stay(qfloat, data):
    """freeze_scales from the start leaves the learned steps what calibration found; the scale of a
    folded weight still follows the factor of its BatchNorm."""
    model = qfloat()
    steps = learned(model)
    qat(model, dataset=data, schedule=[{"epoch": 0, "do": "freeze_scales"}], **FAST)
    assert all(torch.equal(step, steps[name]) for name, step in learned(model).items())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([{"epoch": 1, "do": "freeze_bn"}], r"schedule\[0\]: do='freeze_bn'; did you mean"),
        ([{"do": "freeze_scales"}], "either epoch or step"),
        ([{"do": "freeze_scales", "epoch": 1, "step": 2}], "either epoch or step"),
        ([{"do": "freeze_scales", "epoch": -1}], "epoch=-1; give a number, 0 or more"),
        ([{"do": "freeze_scales", "step": 1.5}], "step=1.5; give a whole number"),
        ([{"do": "freeze_scales", "step": True}], "step=True"),
        ([{"do": "freeze_scales", "at": 1}], "unknown key 'at'"),
        (["freeze_scales"], "give a table"),
        ({"do": "freeze_scales"}, "give a list"),
    ],
)
def test_a_mistake_in_the_schedule_is_an_error(qfloat, data, schedule, message):
    """Before anything is trained."""
    model = qfloat()
    before = final(model)
    with pytest.raises(qcore.RecipeError, match=message):
        qat(model, dataset=data, schedule=schedule)
    assert_same(final(model), before)


def test_distillation_compares_with_the_float_model(qfloat, data):
    """With it alone labels don't matter, and the model comes nearer to its float self."""
    x = data.test_inputs
    model = qfloat("w2a4")
    teacher = copy.deepcopy(model).eval()
    qcore.disable_fake_quant(teacher)
    wanted = F.softmax(teacher(x), -1).detach()
    wrong = (data.train_labels + 1) % 3
    other = qcore.Dataset(
        name="wrong",
        train_inputs=data.train_inputs,
        train_labels=wrong,
        test_inputs=x,
        test_labels=data.test_labels,
        num_classes=3,
    )
    options = {
        "epochs": 3,
        "distillation": 1.0,
        "temperature": 2.0,
        "batch_size": 32,
        "lr": 0.02,
        # The float model uses its running statistics.
        "schedule": [{"epoch": 0, "do": "freeze_batch_norm"}],
    }
    before = (F.softmax(model.eval()(x), -1) - wanted).norm()
    a = qat(model, dataset=data, **options)
    b = qat(qfloat("w2a4"), dataset=other, **options)
    assert_same(final(a), final(b))
    assert (F.softmax(a(x), -1) - wanted).norm() < before


def test_the_best_epoch_is_the_result(qfloat, data, monkeypatch):
    """Measured on examples that are not trained on; a later, worse epoch is left."""
    scores = iter([50.0, 90.0, 70.0])
    states = []

    def measured(model, held_out):
        assert len(held_out.test_labels) == 56
        assert len(held_out.train_labels) == 256
        states.append(final(model))
        return next(scores)

    monkeypatch.setattr(module, "accuracy", measured)
    model = qat(qfloat(), dataset=data, epochs=3, validation=56, **FAST)
    assert len(states) == 3
    assert_same(final(model), states[1])
    assert not torch.equal(states[1]["0.weight"], states[2]["0.weight"])


def test_validation_examples_are_not_observed(qfloat, data, monkeypatch):
    """Observers that are on see nothing of them, and are on again afterwards."""
    seen = []

    def measured(model, held_out):
        seen.append(any(q.observer_enabled for _, q in qcore.quantizers(model)))
        return 50.0

    monkeypatch.setattr(module, "accuracy", measured)
    schedule = [{"epoch": 0, "do": "enable_observer"}]
    model = qat(
        qfloat("int8_minmax"), dataset=data, epochs=2, validation=56, schedule=schedule, **FAST
    )
    assert seen == [False, False]
    assert all(q.observer_enabled for _, q in qcore.quantizers(model))


def test_validation_examples_are_not_trained_on(qfloat, data):
    """Fewer steps, and none of them sees a held-out example."""
    kept, held = module._split(data, 100, 0)
    assert held is not None
    assert len(kept.train_labels) == 156
    together = torch.cat([kept.train_inputs, held.test_inputs])
    order = together.flatten(1).sum(1).sort().values
    assert torch.equal(order, data.train_inputs.flatten(1).sum(1).sort().values)
    with pytest.raises(qcore.RecipeError, match="leaves none"):
        qat(qfloat(), dataset=data, validation=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer='adam'; use 'sgd' or 'adamw'"),
        ({"scale_optimizer": "adam"}, "scale_optimizer='adam'"),
        ({"batch_norm_fold": "none"}, "batch_norm_fold='none'"),
        ({"augment": "flip"}, "use a list"),
        ({"augment": ["rotate"]}, "augment='rotate'"),
        ({"epochs": 0}, "epochs=0; use 1 or more"),
        ({"distillation": 1.5}, "use 0 to 1"),
        ({"warmup": 1}, "warmup=1"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_a_wrong_option_is_an_error(qfloat, data, options, message):
    """That names it and what is allowed."""
    with pytest.raises(qcore.RecipeError, match=message):
        qat(qfloat(), dataset=data, **options)


def test_a_loss_that_explodes_is_an_error(qfloat, data):
    """It names the step and the rates."""
    with pytest.raises(qcore.RecipeError, match=r"loss is (nan|inf) at step \d+ of .* smaller lr"):
        qat(qfloat(), dataset=data, epochs=5, batch_size=32, lr=1e30)


def test_an_uncalibrated_model_is_an_error(data):
    """It names the layer and the cure."""
    model = qcore.prepare(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), data.train_inputs[:2])
    with pytest.raises(qcore.QuantizationError, match=r"is not calibrated.*qcore\.calibrate"):
        qat(model, dataset=data)


def test_learning_rate():
    """Up in a line, down by half a cosine."""
    rates = [learning_rate(p / 10, peak=2.0, end=0.1, warmup=0.5) for p in range(11)]
    assert rates[:6] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[10] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled(qfloat, data):
    """Under torch.compile it trains as well, also across an action."""
    schedule = [{"epoch": 3, "do": "freeze_batch_norm"}]
    model = qat(qfloat(), dataset=data, epochs=6, compiled=True, schedule=schedule, **FAST)
    assert qcore.accuracy(model, data) > 80
    assert qcore.count_differences(model, qcore.convert(model), [data.test_inputs]).differing == 0
