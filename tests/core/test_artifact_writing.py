"""Writing an artifact: all of it or nothing, whatever happens in between."""

import copy
import functools
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcore


@functools.cache
def program(outputs: int) -> nn.Module:
    """A small program."""
    torch.manual_seed(0)
    qfloat = qcore.prepare(nn.Sequential(nn.Linear(4, outputs)).eval(), torch.randn(2, 4))
    qcore.calibrate(qfloat, [torch.randn(2, 4)])
    return qcore.convert(qfloat)


@pytest.fixture
def q() -> nn.Module:
    """A small program."""
    return copy.deepcopy(program(3))


@pytest.fixture
def other() -> nn.Module:
    """Another small program."""
    return copy.deepcopy(program(2))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_has_two_files(q: nn.Module, tmp_path: Path) -> None:
    """The folder, and folders above it, are made; nothing else is left beside it."""
    folder = qcore.save(q, tmp_path / "runs" / "a" / "artifact")
    assert folder == tmp_path / "runs" / "a" / "artifact"
    assert names(folder) == ["manifest.json", "tensors.safetensors"]
    assert names(folder.parent) == ["artifact"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


def test_an_existing_folder_is_kept(q: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    """Without overwrite nothing is replaced; with it the new artifact is there."""
    folder = qcore.save(q, tmp_path / "artifact")
    with pytest.raises(qcore.ArtifactError, match=r"is there already.*overwrite=True"):
        qcore.save(other, folder)
    x = torch.randn(2, 4)
    assert torch.equal(qcore.load(folder)(x), q(x))
    qcore.save(other, folder, overwrite=True)
    assert torch.equal(qcore.load(folder)(x), other(x))
    assert names(tmp_path) == ["artifact"]


def test_overwrite_replaces_artifacts_only(q: nn.Module, tmp_path: Path) -> None:
    """A folder with other things in it, or a file, is never deleted."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("text")
    for name in ("home", "file"):
        with pytest.raises(qcore.ArtifactError, match="is no artifact"):
            qcore.save(q, tmp_path / name, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "all of it"
    (tmp_path / "empty").mkdir()
    qcore.save(q, tmp_path / "empty", overwrite=True)
    assert names(tmp_path) == ["empty", "file", "home"]


class StoppedError(BaseException):
    """What no handler expects, like the signal that ends a process."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StoppedError()])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("call", range(6))
def test_an_interruption_leaves_the_old_or_nothing(
    q: nn.Module,
    other: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    overwrite: bool,
    error: BaseException,
) -> None:
    """Whichever call to the disk fails, no half artifact has the name, and no folder is left
    over."""
    folder = tmp_path / "artifact"
    if overwrite:
        qcore.save(q, folder)
    calls = 0

    def failing(name: str) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 1:
                raise error
            return original(*args)

        monkeypatch.setattr(os, name, wrapped)

    failing("fsync")
    failing("rename")
    expected = qcore.ArtifactError if isinstance(error, OSError) else StoppedError
    total = 6 if overwrite else 5
    if call >= total:
        qcore.save(other, folder, overwrite=overwrite)
    else:
        with pytest.raises(expected):
            qcore.save(other, folder, overwrite=overwrite)
    monkeypatch.undo()
    # From the last rename on, the new artifact is in place.
    done = call >= total - 1
    if done or overwrite:
        x = torch.randn(2, 4)
        assert torch.equal(qcore.load(folder)(x), (other if done else q)(x))
        assert names(tmp_path) == ["artifact"]
    else:
        assert names(tmp_path) == []


def test_what_would_not_load_is_not_saved(q: nn.Module, tmp_path: Path) -> None:
    """The artifact is read back before it gets its name, so a broken program fails here."""
    for name, tensor in q.named_buffers():
        if name.endswith("weight_scale"):
            tensor[0] = 0.0
    with pytest.raises(qcore.ArtifactError, match=r"can't save .*w_scale=0.0"):
        qcore.save(q, tmp_path / "artifact")
    assert names(tmp_path) == []


def test_a_model_without_a_program_is_an_error(tmp_path: Path) -> None:
    """A float model is not saved as something that it is not."""
    with pytest.raises(qcore.QuantizationError, match=r"holds no Q program.*qcore.convert"):
        qcore.save(nn.Linear(2, 2), tmp_path / "artifact")


def test_a_place_that_can_not_be_written_is_an_artifact_error(q: nn.Module, tmp_path: Path) -> None:
    """The error of the file system is the cause of an ArtifactError that names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(qcore.ArtifactError, match="file/artifact"):
        qcore.save(q, tmp_path / "file" / "artifact")


def test_a_link_to_a_folder_is_followed(q: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    """Overwriting through a link replaces what it leads to and keeps the link."""
    qcore.save(q, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert qcore.save(other, tmp_path / "link", overwrite=True) == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    x = torch.randn(2, 4)
    assert torch.equal(qcore.load(tmp_path / "link")(x), other(x))
