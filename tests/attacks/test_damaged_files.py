"""Files that were damaged, cut, swapped or never written by qcore."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qcore

FILES = ("manifest.json", "tensors.safetensors")


@pytest.fixture
def copied(small_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the small artifact."""
    return Path(shutil.copytree(small_artifact, tmp_path / "copy"))


def fails(folder: Path) -> str:
    with pytest.raises(qcore.ArtifactError) as caught:
        qcore.load(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["all bits", "one bit"])
def test_every_flipped_byte_is_found(copied: Path, name: str, change: str) -> None:
    """Whatever byte of either file changes, the artifact does not load."""
    path = copied / name
    content = path.read_bytes()
    assert len(content) < 10_000
    unnoticed = []
    with path.open("r+b", buffering=0) as file:
        for i, byte in enumerate(content):
            os.pwrite(
                file.fileno(), bytes([byte ^ (0xFF if change == "all bits" else 1 << i % 8)]), i
            )
            try:
                qcore.load(copied)
            except qcore.ArtifactError:
                pass
            else:
                unnoticed.append(i)
            os.pwrite(file.fileno(), bytes([byte]), i)
    assert unnoticed == []
    qcore.load(copied)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(copied: Path, name: str) -> None:
    """Cut after any number of bytes, or with a byte more, the artifact does not load."""
    path = copied / name
    content = path.read_bytes()
    step = 1 if name == FILES[1] else 7
    for length in [*range(0, len(content), step), len(content) - 1]:
        path.write_bytes(content[:length])
        fails(copied)
    for more in (b"\n", b"\0", b" "):
        path.write_bytes(content + more)
        fails(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    """The message says which file is missing."""
    (copied / name).unlink()
    assert f"{name} is missing" in fails(copied)


def test_a_missing_folder_is_an_artifact_error(tmp_path: Path) -> None:
    """No folder, a file in its place, and an empty folder each say so."""
    assert "no such folder" in fails(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "no folder" in fails(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "manifest.json is missing" in fails(tmp_path / "empty")


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_is_never_opened(copied: Path, name: str) -> None:
    """A folder or a pipe in the place of a file is refused; the pipe would block for ever."""
    path = copied / name
    path.unlink()
    path.mkdir()
    assert "no regular file" in fails(copied)
    path.rmdir()
    os.mkfifo(path)
    assert "no regular file" in fails(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_gigabyte_is_refused_unread(copied: Path, name: str) -> None:
    """A sparse file that claims a gigabyte is refused by its size."""
    os.truncate(copied / name, 2**30)
    assert "bytes" in fails(copied)


def test_links_to_the_files_are_followed(small_artifact: Path, tmp_path: Path) -> None:
    """Caches keep files elsewhere and link to them; a link to nothing is a missing file."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in FILES:
        (folder / name).symlink_to(small_artifact / name)
    qcore.load(folder)
    (folder / FILES[1]).unlink()
    (folder / FILES[1]).symlink_to(tmp_path / "nothing")
    assert "is missing" in fails(folder)


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_is_not_opened(copied: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle, or a checkpoint of torch, in the place of a file runs nothing."""
    monkeypatch.chdir(copied.parent)
    (copied / name).write_bytes(pickle.dumps(Trap()))
    fails(copied)
    torch.save(Trap(), copied / name)
    fails(copied)
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep lists"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b"[" * 65 + b"]" * 65, id="just too deep"),
        pytest.param(b'{"format":1,"format":1}', id="key twice"),
        pytest.param(b"1" * 5000, id="5000 digits"),
        pytest.param(b"9223372036854775808", id="65 bits"),
        pytest.param(b"1e999", id="infinite"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"-Infinity", id="-Infinity"),
        pytest.param(b'"\\ud800"', id="half a character"),
        pytest.param('{"ä":1}'.encode(), id="not ASCII"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]\n", id="list"),
        pytest.param(b"{}\n", id="object"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b"{'format': 'qcore-artifact'}", id="Python"),
    ],
)
def test_a_strange_manifest_is_refused(copied: Path, content: bytes) -> None:
    """JSON that readers disagree about, choke on or let through is refused with a reason."""
    (copied / "manifest.json").write_bytes(content)
    text = fails(copied)
    assert "manifest.json" in text
    assert "it can't be read" not in text


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 8, id="header of 2**64 bytes"),
        pytest.param((2**40).to_bytes(8, "little") + b"{}", id="header of a terabyte"),
        pytest.param(header(b"{"), id="cut header"),
        pytest.param(header(b"{}"), id="no tensors"),
        pytest.param(header(b"[" * 10_000), id="deep header"),
        pytest.param(header(b"\xff\xff"), id="not text"),
        pytest.param(
            header(
                b'{"0.weight":{"dtype":"I8","shape":[4611686018427387904,4],"data_offsets":[0,4]}}'
            ),
            id="huge shape",
        ),
        pytest.param(
            header(b'{"0.weight":{"dtype":"I8","shape":[4],"data_offsets":[0,1099511627776]}}'),
            id="huge offsets",
        ),
        pytest.param(
            header(b'{"0.weight":{"dtype":"I8","shape":[4],"data_offsets":[4,0]}}'), id="backwards"
        ),
        pytest.param(
            header(b'{"0.weight":{"dtype":"I8","shape":[-4],"data_offsets":[0,4]}}'), id="negative"
        ),
        pytest.param(
            header(b'{"0.weight":{"dtype":"X9","shape":[4],"data_offsets":[0,4]}}', b"1234"),
            id="unknown dtype",
        ),
    ],
)
def test_a_strange_tensor_file_is_refused(content: bytes, forged_copy: Callable[[], Any]) -> None:
    """Headers that lie are refused, even where the manifest vouches for every byte of them."""
    forgery = forged_copy()
    forgery.seal()
    (forgery.folder / "tensors.safetensors").write_bytes(content)
    forgery.seal_manifest()
    fails(forgery.folder)
