"""Fashion-MNIST: where it is looked for, how it is downloaded and checked, what it gives.

The files are small ones of the same form, the network is a server on this machine.
"""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest
import torch

import qcore_zoo.fashion_mnist as module
from qcore import DatasetError, RecipeError
from qcore_zoo.fashion_mnist import FILES, IdxFile, fashion_mnist, locate

CLOSED = "http://127.0.0.1:9/"


def _content(shape: tuple[int, ...]) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4) for size in shape)
    values = torch.arange(torch.Size(shape).numel()) % (10 if len(shape) == 1 else 256)
    return header + bytes(values.tolist())


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[IdxFile, ...]:
    """Four small published files, and a machine that has no copy and no network."""
    files = []
    for file in FILES:
        shape = (12 if "train" in file.name else 4, *file.shape[1:])
        sha256 = hashlib.sha256(_content(shape)).hexdigest()
        files.append(attrs.evolve(file, shape=shape, sha256=sha256))
    monkeypatch.setattr(module, "FILES", tuple(files))
    monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(module, "SOURCES", (CLOSED,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("QCORE_PROGRESS", "off")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("QCORE_DATA", raising=False)
    return tuple(files)


def _fill(folder: Path, files: tuple[IdxFile, ...], *, compress: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        content = _content(file.shape)
        if compress:
            (folder / file.name).write_bytes(gzip.compress(content))
        else:
            (folder / file.name.removesuffix(".gz")).write_bytes(content)


class _Server(SimpleHTTPRequestHandler):
    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        self.requests.append(self.path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Address of a server on this machine, the folder that it serves, and what was asked of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests: list[str] = []
    handler = type("Handler", (_Server,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", folder, requests
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_root_is_read_and_normalised(
    tmp_path: Path, small: tuple[IdxFile, ...], compress: bool
) -> None:
    """Pixels are scaled and normalised, labels are classes, whatever the compression."""
    _fill(tmp_path / "mine", small, compress=compress)
    data = fashion_mnist(root=str(tmp_path / "mine"))
    pixels = (torch.arange(12 * 784) % 256).double().reshape(12, 1, 28, 28)
    expected = (pixels / 255 - 0.2860) / 0.3530
    assert data.test_inputs.shape == (4, 1, 28, 28)
    torch.testing.assert_close(data.train_inputs.double(), expected, rtol=1e-6, atol=1e-6)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_padding_is_black(tmp_path: Path, small: tuple[IdxFile, ...]) -> None:
    """Padding adds pixels of the value that black has after normalisation, not zeros."""
    _fill(tmp_path / "system", small)
    padded = fashion_mnist(pad=2).train_inputs
    assert padded.shape == (12, 1, 32, 32)
    torch.testing.assert_close(padded[:, :, 2:30, 2:30], fashion_mnist().train_inputs)
    torch.testing.assert_close(padded[:, :, :2], torch.full((12, 1, 2, 32), -0.2860 / 0.3530))
    with pytest.raises(RecipeError, match="pad=-1"):
        fashion_mnist(pad=-1)


def test_folders_are_searched_in_order(
    tmp_path: Path, small: tuple[IdxFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QCORE_DATA comes before the system's folder, and that before the user's cache."""
    monkeypatch.setenv("QCORE_DATA", str(tmp_path / "data"))
    expected = [
        tmp_path / "cache" / "qcore" / "fashion-mnist",
        tmp_path / "system",
        tmp_path / "data" / "fashion-mnist",
    ]
    for folder in expected:
        _fill(folder, small)
        assert locate() == folder


def test_folder_that_lacks_a_file_is_passed_over(
    tmp_path: Path, small: tuple[IdxFile, ...]
) -> None:
    """A folder with three of the four files does not count; the next one does."""
    _fill(tmp_path / "system", small[:3])
    _fill(tmp_path / "cache" / "qcore" / "fashion-mnist", small)
    assert locate() == tmp_path / "cache" / "qcore" / "fashion-mnist"


def test_given_root_is_the_only_place(tmp_path: Path, small: tuple[IdxFile, ...]) -> None:
    """A root without the files is an error that names it, even if another folder has them."""
    _fill(tmp_path / "system", small)
    with pytest.raises(DatasetError, match=r"not all in .*wrong; correct root"):
        fashion_mnist(root=str(tmp_path / "wrong"))


def test_no_file_and_no_network_is_one_clear_error(tmp_path: Path) -> None:
    """Without files and network the error lists the places, the cause and the cures."""
    with pytest.raises(DatasetError) as caught:
        fashion_mnist()
    message = str(caught.value)
    for part in (
        str(tmp_path / "system"),
        str(tmp_path / "cache" / "qcore" / "fashion-mnist"),
        "train-images-idx3-ubyte.gz can't be downloaded",
        "refused",
        "apt-get install dataset-fashion-mnist",
        "QCORE_DATA",
    ):
        assert part in message
    with pytest.raises(DatasetError, match="allow download=true"):
        fashion_mnist(download=False)


def test_download_happens_once_and_from_the_next_source(
    tmp_path: Path,
    small: tuple[IdxFile, ...],
    server: tuple[str, Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A source that is down is passed over; what was downloaded is not asked for again."""
    address, folder, requests = server
    _fill(folder, small)
    monkeypatch.setattr(module, "SOURCES", (CLOSED, address))
    monkeypatch.setenv("QCORE_DATA", str(tmp_path / "data"))
    assert len(fashion_mnist().train_labels) == 12
    assert sorted(requests) == sorted(f"/{file.name}" for file in small)
    assert sorted(path.name for path in (tmp_path / "data" / "fashion-mnist").iterdir()) == sorted(
        file.name for file in small
    )
    assert len(fashion_mnist().train_labels) == 12
    assert len(requests) == 4


def test_broken_off_download_goes_on(
    tmp_path: Path,
    small: tuple[IdxFile, ...],
    server: tuple[str, Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the files that are missing are downloaded."""
    address, folder, requests = server
    _fill(folder, small)
    _fill(tmp_path / "cache" / "qcore" / "fashion-mnist", small[:3])
    monkeypatch.setattr(module, "SOURCES", (address,))
    fashion_mnist()
    assert requests == [f"/{small[3].name}"]


def test_wrong_download_is_never_kept(
    tmp_path: Path,
    small: tuple[IdxFile, ...],
    server: tuple[str, Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page in place of a file, or another file, is refused and leaves nothing behind."""
    address, folder, _ = server
    _fill(folder, small)
    monkeypatch.setattr(module, "SOURCES", (address,))
    for wrong in (b"<html>log in</html>", gzip.compress(b"other"), gzip.compress(bytes(10**6))):
        (folder / small[0].name).write_bytes(wrong)
        with pytest.raises(DatasetError, match=r"can't be downloaded .*(SHA-256|more than the)"):
            fashion_mnist()
        assert not list((tmp_path / "cache").rglob("*ubyte*"))


def test_changed_file_fails_its_checksum(tmp_path: Path, small: tuple[IdxFile, ...]) -> None:
    """One changed pixel is found at the next load; the error names file, both sums and the cure."""
    folder = tmp_path / "mine"
    _fill(folder, small)
    content = bytearray(_content(small[2].shape))
    content[-1] ^= 1
    path = folder / small[2].name
    path.write_bytes(gzip.compress(bytes(content)))
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        DatasetError, match=f"{path}: .*{found}.*{small[2].sha256}.*Delete the file"
    ):
        fashion_mnist(root=str(folder))


def test_truncated_file_is_named(tmp_path: Path, small: tuple[IdxFile, ...]) -> None:
    """A file that is cut short is an error that names it and says so."""
    folder = tmp_path / "mine"
    _fill(folder, small)
    path = folder / small[0].name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=f"{path}: the gzip file is cut short"):
        fashion_mnist(root=str(folder))


@pytest.mark.skipif(
    not all(file.path_in(module.SYSTEM_FOLDER) for file in FILES),
    reason="needs the published files in the system's folder",
)
def test_published_files_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files pass, and the constants of the normalisation are theirs."""
    monkeypatch.undo()
    data = fashion_mnist(root=str(module.SYSTEM_FOLDER))
    assert data.train_inputs.shape == (60000, 1, 28, 28)
    assert data.test_labels.bincount().tolist() == [1000] * 10
    assert abs(float(data.train_inputs.mean())) < 1e-3
    assert abs(float(data.train_inputs.std()) - 1) < 1e-3
