"""The stage qat in two processes: one model, and that of one process."""

import pytest
import torch

SETUP = """
import torch
from torch import nn
import qcore
from qcore_algorithms import qat as module
from qcore_algorithms.qat import qat

def dataset():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(136, 3, 1, 1, generator=generator)
    images = base + 0.5 * torch.randn(136, 3, 6, 6, generator=generator)
    labels = base[:, :, 0, 0].argmax(1)
    return qcore.Dataset(name="brightest", train_inputs=images, train_labels=labels,
                         test_inputs=images[:8], test_labels=labels[:8], num_classes=3)

data = dataset()

def qfloat(preset, batches, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
    prepared = qcore.prepare(model, data.train_inputs[:2], preset)
    return qcore.calibrate(prepared, batches)

def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}

FROZEN = {"epoch": 0, "do": "freeze_batch_norm"}
RUNS = {
    "learned": ("w4a4", [FROZEN]),
    "observed": ("int8_minmax", [FROZEN, {"step": 2, "do": "enable_observer"}]),
    "learned late": ("w4a4", [FROZEN, {"step": 0, "do": "disable_fake_quant"},
                              {"step": 2, "do": "enable_fake_quant"}]),
}
# By AdamW the sign of a gradient near 0, which the order of a sum decides, would be a whole step.
OPTIONS = {"epochs": 2, "batch_size": 32, "lr": 0.05, "augment": ["flip"], "validation": 8,
           "scale_optimizer": "sgd", "scale_lr": 0.05}
"""

WORKER = (
    SETUP
    + """
x = data.train_inputs[:64]
result = {}
for name, (preset, schedule) in RUNS.items():
    model = qfloat(preset, [x[rank * 32 : rank * 32 + 32]])
    result[name] = state(qat(model, dataset=data, schedule=schedule, **OPTIONS))

# With dropout and the statistics of the batch.
share = [x[rank::2]]
options = {**OPTIONS, "epochs": 3, "checkpoint_every": 2, "schedule": [],
           "distillation": 0.3, "checkpoint": f"{folder}/qat.safetensors"}
whole = state(qat(qfloat("w4a4", share, dropout=0.2), dataset=data,
                  **{**options, "checkpoint": None}))
inner = module._Training._step

def stop(self, *args):
    if self.done == 7:
        raise KeyboardInterrupt
    inner(self, *args)

module._Training._step = stop
try:
    qat(qfloat("w4a4", share, dropout=0.2), dataset=data, **options)
except KeyboardInterrupt:
    pass
module._Training._step = inner
resumed = state(qat(qfloat("w4a4", share, dropout=0.2), dataset=data, **options))
result["whole"], result["resumed"] = whole, resumed

for name, model, batch_size in (
    ("other weights", qfloat("w4a4", share, seed=rank), 32), ("odd", qfloat("w4a4", share), 31)
):
    try:
        qat(model, dataset=data, batch_size=batch_size)
    except qcore.RecipeError as error:
        result[name] = str(error)

from torch.nn.parallel import DistributedDataParallel
model = qfloat("w4a4", [data.train_inputs[rank * 32 : rank * 32 + 32]]).train()
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
for i in range(4):
    part = slice(32 * i + 16 * rank, 32 * i + 16 * rank + 16)
    optimizer.zero_grad()
    logits = parallel(data.train_inputs[part])
    nn.functional.cross_entropy(logits, data.train_labels[part]).backward()
    optimizer.step()
own = dict(model.named_parameters())
q = qcore.convert(model.eval())
own["differing"] = qcore.count_differences(model, q, [data.test_inputs]).differing
result["own"] = own
"""
)


@pytest.fixture(scope="module")
def ranks(in_ranks):
    """What each of two processes found."""
    return in_ranks(WORKER)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("run", ["learned", "observed", "learned late"])
def test_two_processes_train_the_model_of_one(ranks, run):
    """The same on both ranks; but for the order of sums that of one process with whole batches."""
    assert_same(ranks[0][run], ranks[1][run])
    alone = {}
    exec(SETUP, alone)
    preset, schedule = alone["RUNS"][run]
    data = alone["data"]
    model = alone["qfloat"](preset, [data.train_inputs[:64]])
    before = alone["state"](model)
    alone["qat"](model, dataset=data, schedule=schedule, **alone["OPTIONS"])
    for name, value in alone["state"](model).items():
        if not value.is_floating_point() or "observer" in name:
            continue
        moved = (value - before[name]).norm() if name in before else value.norm()
        # A sum in another order may round a value of QFloat to its other neighbour.
        distance = (value - ranks[0][run][name]).norm()
        assert distance <= 2e-2 * moved + 1e-4 * value.norm(), name


def test_statistics_of_batch_norm_agree(ranks):
    """With dropout, distillation and the statistics of each part of a batch."""
    assert_same(ranks[0]["whole"], ranks[1]["whole"])
    assert any("running_mean" in name for name in ranks[0]["whole"])


def test_a_stopped_training_goes_on_in_both_processes(ranks):
    """From the checkpoint of rank 0, to the weights of a training that was not stopped."""
    for found in ranks:
        assert_same(found["resumed"], found["whole"])


def test_processes_that_do_not_fit_together_are_an_error(ranks):
    """Other weights, or a batch that can't be shared out: in all processes, before any step."""
    for found in ranks:
        assert "differs between the 2 processes" in found["other weights"]
        assert "batch_size=31 can't be shared out" in found["odd"]


def test_a_loop_of_the_users_own_under_ddp(ranks):
    """DistributedDataParallel around a calibrated model, without anything else of qcore."""
    for found in ranks:
        assert found["own"].pop("differing") == 0
    assert any(name.endswith("step") for name in ranks[0]["own"])
    assert_same(*(found["own"] for found in ranks))
