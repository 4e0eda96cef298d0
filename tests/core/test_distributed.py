"""Two real processes: their observers end with the statistics of one that has seen all the data."""

import pytest
import torch

import qcore

OBSERVERS = ("minmax", "ema", "histogram", "percentile", "kl", "mean_abs", "mse")
"""Every built-in observer that looks at values."""

MODEL = """
import qcore
import torch
from torch import nn

def made(observer, batch_norm=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
                          nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    config = qcore.QuantizerConfig(scheme="uint8", observer=observer)
    weight = qcore.QuantizerConfig(scheme="int8_channel", observer="mse")
    return qcore.prepare(model, None, qcore.QConfig(weight=weight, activation=config))

def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}

X = [torch.randn(2 + i % 2, 1, 6, 6, generator=torch.Generator().manual_seed(i)) * (i + 1)
     for i in range(6)]
"""

WORKER = (
    MODEL
    + f"observers = {OBSERVERS}"
    + """
result = {}
for observer in observers:
    # Rank 0 has 4 batches, rank 1 has 2.
    share = X[:4] if rank == 0 else X[4:]
    model = qcore.calibrate(made(observer), share)
    result["calibrated", observer] = state(model)
    q = qcore.convert(model)
    result["q", observer] = q(X[0])
    # A second calibration counts what the first one saw once.
    result["again", observer] = state(qcore.calibrate(model, [2 * x for x in share]))
    qcore.synchronize_observers(model)
    result["once more", observer] = state(model)
    # Observed in training: a batch of each process at a time.
    qcore.enable_observer(model.train())
    model(X[rank])
    model(X[2 + rank])
    result["training", observer] = state(model)

# One process meets NaN, the other nothing wrong.
model = made("minmax")
before = state(model)
try:
    qcore.calibrate(model, [X[0], X[2] * float("nan")] if rank else X[:4])
except qcore.QuantizationError as error:
    result["failure"] = str(error)
after = state(model)
result["as before"] = all(torch.equal(before[name], after[name]) for name in before)
result["after a failure"] = state(qcore.calibrate(model, X[:4] if rank == 0 else X[4:]))

# A process whose share is empty, and one that failed before.
result["empty"] = state(qcore.calibrate(made("minmax"), X if rank == 0 else []))

model = made("minmax")
if rank == 1:
    model(X[0])
qcore.synchronize_observers(model)
result["one saw"] = {
    name: q.qparams().scale for name, q in qcore.quantizers(model) if not q.of_weight
}

model = made("minmax", batch_norm=True)
bn = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
bn.running_mean.fill_(rank)
bn.running_var.fill_(2.0 + rank)
qcore.synchronize_batch_norm(model)
result["batch_norm"] = bn.running_mean, bn.running_var
"""
)


@pytest.fixture(scope="module")
def ranks(in_ranks):
    """What each of two processes found."""
    return in_ranks(WORKER)


@pytest.fixture(scope="module")
def alone():
    """The functions of the processes, in this one."""
    namespace = {}
    exec(MODEL, namespace)
    return namespace


def assert_same(a, b, *, to_rounding=False):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if to_rounding and value.is_floating_point():
            torch.testing.assert_close(value, b[name], rtol=1e-6, atol=1e-7, msg=name)
        else:
            assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("observer", OBSERVERS)
def test_calibration_in_two_processes_equals_one_with_all_the_data(ranks, alone, observer):
    """Statistics and scales of every observer, weights' too, bit for bit; on every rank."""
    x = alone["X"]
    model = qcore.calibrate(alone["made"](observer), x)
    # A moving average is merged by a formula that rounds.
    rounds = observer in ("ema", "mean_abs")
    for found in ranks:
        assert_same(found["calibrated", observer], alone["state"](model), to_rounding=rounds)
    again = alone["state"](qcore.calibrate(model, [2 * batch for batch in x]))
    for found in ranks:
        assert_same(found["again", observer], again, to_rounding=rounds)
        assert_same(found["once more", observer], found["again", observer])
    assert_same(ranks[0]["calibrated", observer], ranks[1]["calibrated", observer])
    assert torch.equal(ranks[0]["q", observer], ranks[1]["q", observer])


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observing_in_training_merges_every_batch(ranks, alone, observer):
    """Scales agree on every rank after each forward, and are those of one process."""
    x = alone["X"]
    model = qcore.calibrate(alone["made"](observer), x)
    model = qcore.calibrate(model, [2 * batch for batch in x])
    qcore.enable_observer(model.train())
    assert_same(ranks[0]["training", observer], ranks[1]["training", observer])
    for batch in x[:4]:
        model(batch)
    found, wanted = ranks[0]["training", observer], alone["state"](model)
    # Of the input alone: values behind it are rounded with the scales of the time.
    names = [name for name in wanted if name.startswith("0.input_1_quantizer.")]
    assert names
    assert_same(
        {name: found[name] for name in names},
        {name: wanted[name] for name in names},
        to_rounding=observer in ("ema", "mean_abs"),
    )


def test_a_process_without_data(ranks, alone):
    """It gets the statistics of the others."""
    whole = alone["state"](qcore.calibrate(alone["made"]("minmax"), alone["X"]))
    for found in ranks:
        assert_same(found["empty"], whole)


def test_a_failure_of_one_process_ends_all(ranks):
    """Nobody waits; the error of the others has its words; the next calibration is as any."""
    for number, found in enumerate(ranks):
        assert "NaN" in found["failure"]
        assert ("calibration failed in process 1 of 2" in found["failure"]) == (number == 0)
        assert found["as before"]
        assert_same(found["after a failure"], found["calibrated", "minmax"])


def test_statistics_of_one_process_reach_all(ranks):
    """Also without calibration, and so do their scales."""
    assert_same(*(found["one saw"] for found in ranks))


def test_batch_norm_is_averaged(ranks):
    """Running means and variances."""
    for found in ranks:
        mean, variance = found["batch_norm"]
        assert torch.equal(mean, torch.full((4,), 0.5))
        assert torch.equal(variance, torch.full((4,), 2.5))


def test_without_a_process_group_nothing_happens(alone):
    """The same program runs in one process."""
    model = alone["made"]("minmax", batch_norm=True)
    before = alone["state"](model)
    qcore.synchronize_observers(model)
    qcore.synchronize_batch_norm(model)
    assert_same(alone["state"](model), before)


@pytest.mark.parametrize("how", ["group", "torchrun"])
def test_a_recipe_is_run_by_one_process(monkeypatch, how):
    """Each of several would do and write all of it; the error says what to do instead."""
    if how == "group":
        monkeypatch.setattr("qcore.running.world_size", lambda: 2)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(qcore.RecipeError, match=r"there are 2; write a program"):
        qcore.run_recipe(qcore.Recipe())


def test_a_state_that_is_no_tensor_is_an_error(alone, monkeypatch):
    """It names the layer and the state."""
    monkeypatch.setattr("qcore.distributed.world_size", lambda: 2)
    model = alone["made"]("minmax")
    quantizer = dict(qcore.quantizers(model))["0.input_1_quantizer"]
    monkeypatch.setattr(type(quantizer.observer), "get_extra_state", lambda self: {"a": 1})
    with pytest.raises(qcore.QuantizationError, match=r"'0.input_1_quantizer'.*'_extra_state'"):
        qcore.synchronize_observers(model)
