"""The data set ``fashion_mnist``: 70,000 grey images of clothing of 28x28 pixels.

References:
    Xiao et al., 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms <https://arxiv.org/abs/1708.07747>
"""

import hashlib
import math
import os
import tempfile
import urllib.request
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F

from qcore import Dataset, DatasetError, RecipeError, progress

from .idx import decompress, read_idx

__all__ = ["FILES", "MEAN", "SOURCES", "STD", "IdxFile", "fashion_mnist", "locate"]

MEAN = 0.2860
STD = 0.3530

# The authors' two places; what they serve is checked, so plain http is as good as https.
SOURCES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
# Where Debian's package dataset-fashion-mnist puts the files.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_TIMEOUT_S = 30


@attrs.frozen(kw_only=True)
class IdxFile:
    """A published file.

    Args:
        name: of the compressed file; a folder may hold it decompressed, without ``.gz``.
        shape: sizes that its header states.
        sha256: of the decompressed content. Distributors compress the same content anew, so a
            checksum of the compressed file would reject good copies.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str

    def path_in(self, folder: Path) -> Path | None:
        """Where the file lies in ``folder``, or None."""
        for name in (self.name, self.name.removesuffix(".gz")):
            if (folder / name).is_file():
                return folder / name
        return None


FILES = (
    IdxFile(
        name="train-images-idx3-ubyte.gz",
        shape=(60000, 28, 28),
        sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    IdxFile(
        name="train-labels-idx1-ubyte.gz",
        shape=(60000,),
        sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    IdxFile(
        name="t10k-images-idx3-ubyte.gz",
        shape=(10000, 28, 28),
        sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    IdxFile(
        name="t10k-labels-idx1-ubyte.gz",
        shape=(10000,),
        sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


def fashion_mnist(*, root: str | None = None, pad: int = 0, download: bool = True) -> Dataset:
    """Fashion-MNIST: 60,000 images for training and 10,000 for testing.

    Pixels are scaled to [0, 1], padded with black, and normalised: ``(x - 0.2860) / 0.3530``. The
    content of every file is checked by SHA-256 at each load.

    Args:
        root: folder with the four IDX files, compressed or not; nowhere else is looked. By default
            the first folder that has all four: ``$QCORE_DATA/fashion-mnist``,
            ``/usr/share/datasets/fashion-mnist``, then ``qcore/fashion-mnist`` in the user's cache
            (``$XDG_CACHE_HOME`` or ``~/.cache``).
        pad: black pixels added on each side; 2 gives 32x32.
        download: where no folder has the files, download them once, 30 MB, to
            ``$QCORE_DATA/fashion-mnist`` if that is set, else to the user's cache.

    Returns:
        Inputs ``[N, 1, 28 + 2 pad, 28 + 2 pad]`` float32, labels ``[N]`` int64, 10 classes.

    Raises:
        RecipeError: a negative ``pad``.
        DatasetError: the files are nowhere and can't be downloaded, or one is damaged.
    """
    if pad < 0:
        raise RecipeError(f"data set 'fashion_mnist': pad={pad}; use 0 or more")
    folder = locate(root=root, download=download)
    values = [_read(file, folder) for file in FILES]
    return Dataset(
        name="fashion_mnist",
        train_inputs=_normalise(values[0], pad),
        train_labels=values[1].long(),
        test_inputs=_normalise(values[2], pad),
        test_labels=values[3].long(),
        num_classes=10,
    )


def locate(*, root: str | None = None, download: bool = True) -> Path:
    """The folder with the four files, filled by a download where it has to be.

    The arguments and errors are those of :func:`fashion_mnist`.
    """
    own = _own_folder()
    folders = [Path(root).expanduser()] if root else [own, SYSTEM_FOLDER, _cache_folder()]
    for folder in folders:
        if all(file.path_in(folder) for file in FILES):
            return folder
    places = ", ".join(map(str, dict.fromkeys(folders)))
    if root or not download:
        raise DatasetError(
            f"data set 'fashion_mnist': {', '.join(file.name for file in FILES)} are not all in "
            f"{places}; {'correct root, or leave it out' if root else 'allow download=true'}"
        )
    missing = [file for file in FILES if file.path_in(own) is None]
    with closing(progress(missing, label=f"download fashion_mnist to {own}")) as shown:
        for file in shown:
            try:
                _download(file, own)
            except (OSError, DatasetError) as error:
                raise DatasetError(
                    f"data set 'fashion_mnist': not found in {places}, and {file.name} can't be "
                    f"downloaded ({error}). Connect to the internet once, or get the four files "
                    f"from {SOURCES[0]} (on Debian: apt-get install dataset-fashion-mnist) and set "
                    "root, or QCORE_DATA to the folder that has them in fashion-mnist/"
                ) from error
    return own


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "qcore" / "fashion-mnist"


def _own_folder() -> Path:
    data = os.environ.get("QCORE_DATA")
    return Path(data).expanduser() / "fashion-mnist" if data else _cache_folder()


def _normalise(images: torch.Tensor, pad: int) -> torch.Tensor:
    scaled = images.unsqueeze(1).float().div_(255)
    return (F.pad(scaled, (pad,) * 4) if pad else scaled).sub_(MEAN).div_(STD)


def _read(file: IdxFile, folder: Path) -> torch.Tensor:
    path = file.path_in(folder) or folder / file.name
    try:
        values, content = read_idx(path, shape=file.shape)
        _check_sha256(file, content, where=str(path))
    except DatasetError as error:
        raise DatasetError(
            f"data set 'fashion_mnist': {error}. Delete the file and get it anew"
        ) from error
    return values


def _check_sha256(file: IdxFile, content: bytes, *, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DatasetError(
            f"{where}: SHA-256 of the content is {found}, not {file.sha256}: the file is damaged "
            "or of another data set"
        )


def _download(file: IdxFile, folder: Path) -> None:
    """Put ``file`` into ``folder``, from the first source that serves the right content."""
    size = 4 + 4 * len(file.shape) + math.prod(file.shape)
    refusals = []
    for source in SOURCES:
        try:
            with urllib.request.urlopen(source + file.name, timeout=_TIMEOUT_S) as response:
                # Compression makes nothing larger than this.
                compressed = response.read(size + 1024)
            content = decompress(compressed, limit=size, where=file.name)
            _check_sha256(file, content, where=file.name)
        except (OSError, HTTPException, DatasetError) as error:
            refusals.append(f"{source}: {error}")
        else:
            _write(folder / file.name, compressed)
            return
    raise DatasetError("; ".join(refusals))


def _write(path: Path, content: bytes) -> None:
    # Written beside its place and renamed, so that nobody ever sees a part of the file.
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
