"""Checkpoints: a training that was killed and taken up again ends as if it had not been."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open

import qcore
from qcore_algorithms import qat as module
from qcore_algorithms.qat import qat

FAST = {"batch_size": 32, "epochs": 3, "checkpoint_every": 5}
SCHEDULE = [{"step": 3, "do": "enable_observer"}, {"step": 14, "do": "freeze_batch_norm"}]


class EndError(Exception):
    """Stands for the end of a process."""


def final(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def stop_at(monkeypatch, step):
    """The training ends before this step."""
    inner = module._Training._step

    def watch(self, *args):
        if self.done == step:
            raise EndError
        inner(self, *args)

    monkeypatch.setattr(module._Training, "_step", watch)


@pytest.mark.parametrize("step", [5, 8, 17])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.05, "preset": "w4a4"},
        {
            "lr": 0.01,
            "preset": "w2a4",
            "optimizer": "adamw",
            "scale_optimizer": "sgd",
            "augment": ["flip", "shift"],
            "shift_pixels": 1,
            "validation": 32,
            "distillation": 0.5,
            "batch_norm_fold": "exact",
        },
        {"lr": 0.05, "preset": "int8_minmax", "schedule": SCHEDULE, "momentum": 0.0},
    ],
    ids=["sgd", "everything", "schedule"],
)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(qfloat, data, monkeypatch, step, options):
    """Bit for bit, wherever it stops: weights, scales, statistics, the best epoch."""
    options = dict(options)
    preset = options.pop("preset")
    whole = final(qat(qfloat(preset, dropout=0.1), dataset=data, **FAST, **options))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(EndError):
            qat(qfloat(preset, dropout=0.1), dataset=data, **FAST, **options)
    started = []
    inner = module._Training._step
    monkeypatch.setattr(
        module._Training, "_step", lambda self, *a: (started.append(self.done), inner(self, *a))
    )
    resumed = final(qat(qfloat(preset, dropout=0.1), dataset=data, **FAST, **options))
    assert started[0] == step // 5 * 5
    assert_same(resumed, whole)


def test_the_default_checkpoint_is_in_the_cache_and_goes_at_the_end(qfloat, data, monkeypatch):
    """Named by content; nothing is left of a training that ended."""
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(EndError):
            qat(qfloat(), dataset=data, **FAST)
    (file,) = (qcore.cache_folder() / "qat").iterdir()
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["step"] == "10"
        assert opened.metadata()["key"] == file.stem
    # Another training does not take it for its own.
    qat(qfloat(), dataset=data, **{**FAST, "epochs": 1})
    assert file.exists()
    qat(qfloat(), dataset=data, **FAST)
    assert not list((qcore.cache_folder() / "qat").iterdir())


def test_a_named_checkpoint_stays_and_is_the_end_of_it(qfloat, data, monkeypatch, tmp_path):
    """Run again, it gives the trained model without a step; another training refuses it."""
    path = tmp_path / "runs" / "qat.safetensors"
    first = final(qat(qfloat(), dataset=data, checkpoint=str(path), **FAST))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    stop_at(monkeypatch, 24)
    again = qat(qfloat(), dataset=data, checkpoint=str(path), **FAST)
    assert_same(final(again), first)
    with pytest.raises(qcore.RecipeError, match="another training"):
        qat(qfloat(), dataset=data, checkpoint=str(path), lr=0.5, **FAST)
    with pytest.raises(qcore.RecipeError, match="another training"):
        qat(qfloat("w2a4"), dataset=data, checkpoint=str(path), **FAST)


def test_a_damaged_checkpoint_is_an_error(qfloat, data, tmp_path):
    """It says which file, and what to do."""
    path = tmp_path / "qat.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all!")
    with pytest.raises(qcore.RecipeError, match=r"qat\.safetensors' can't be read .*; remove it"):
        qat(qfloat(), dataset=data, checkpoint=str(path), **FAST)


def test_without_checkpoints_nothing_is_written(qfloat, data):
    """checkpoint_every = 0."""
    qat(qfloat(), dataset=data, **{**FAST, "checkpoint_every": 0})
    assert not (qcore.cache_folder() / "qat").exists()


PROGRAM = """
    import os, signal, sys
    import torch
    from torch import nn
    import qcore
    from qcore_algorithms import qat as module

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kill_at, out = int(sys.argv[1]), sys.argv[2]
    x = torch.randn(160, 1, 8, 8)
    data = qcore.Dataset(
        name="noise", train_inputs=x, train_labels=(x.mean((1, 2, 3)) > 0).long(),
        test_inputs=x[:8], test_labels=torch.zeros(8).long(), num_classes=2,
    )
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(288, 2),
    )
    model = qcore.calibrate(qcore.prepare(model, x[:2], "w4a4"), [x[:32]])
    inner = module._Training._step

    def step(self, *args):
        inner(self, *args)
        if self.done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    module._Training._step = step
    model = module.qat(
        model, dataset=data, epochs=4, batch_size=16, checkpoint_every=7, augment=["flip"],
        validation=16, optimizer="adamw", lr=0.01,
        schedule=[
            {"step": 5, "do": "freeze_scales"}, {"step": 16, "do": "unfreeze_scales"},
            {"epoch": 2.5, "do": "freeze_batch_norm"},
        ],
    )
    torch.save(model.state_dict(), out)
"""


def test_a_killed_process_loses_no_more_than_the_last_interval(tmp_path):
    """kill -9 twice, on either side of scheduled actions; the final weights, learned steps and
    statistics are those of one run, and of its best epoch."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))

    def run(kill_at, cache):
        out = tmp_path / f"{cache}.pt"
        environment = {**os.environ, "QCORE_CACHE": str(tmp_path / cache), "QCORE_PROGRESS": "off"}
        done = subprocess.run(
            [sys.executable, str(program), str(kill_at), str(out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, out

    done, whole = run(-1, "whole")
    assert done.returncode == 0, done.stderr
    for kill_at, saved in ((12, 7), (30, 28)):
        done, out = run(kill_at, "killed")
        assert done.returncode == -signal.SIGKILL, done.stderr
        (file,) = (tmp_path / "killed" / "qat").glob("*.safetensors")
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["step"] == str(saved)
            # After the first epoch there is a best one.
            names = list(opened.keys())
            assert any(name.startswith("best.") for name in names) is (saved > 9)
    done, out = run(-1, "killed")
    assert done.returncode == 0, done.stderr
    assert_same(torch.load(out), torch.load(whole))
    assert any(name.endswith("weight_quantizer.step") for name in torch.load(out))
