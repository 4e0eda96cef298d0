"""The tensor file: every tensor once, in the safetensors format, each with its sha256 in the
manifest.

Tensors of equal dtype, shape, layout and bytes are stored once, whatever they are called.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ArtifactError
from .dtypes import DTYPES, name_of_dtype
from .manifest import TensorFile, TensorSpec

__all__ = ["TensorTable", "bytes_of", "digest", "hash_file", "read_tensors"]

_CHUNK = 2**20
_MAX_DIMENSIONS = 64
# What safetensors allows its own header, and the eight bytes of its length.
_MAX_HEADER = 100 * 10**6 + 8


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, row-major, little-endian; any dtype."""
    flat = tensor.detach().contiguous().reshape(-1)
    if sys.byteorder == "big":
        raise ArtifactError("artifacts are little-endian, and this machine is not")
    # numpy has no bfloat16, but bytes are bytes.
    data: Any = flat.view(torch.uint8).numpy()
    return memoryview(data) if flat.numel() else memoryview(b"")


def digest(tensor: Tensor) -> str:
    """sha256 of the bytes of a tensor.

    >>> digest(torch.zeros(2, dtype=torch.int8))[:8]
    '96a296d2'
    """
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def hash_file(path: Path) -> TensorFile:
    """Size and sha256 of a file."""
    state, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            size += len(chunk)
    return TensorFile(bytes=size, sha256=state.hexdigest())


def _order(tensor: Tensor) -> tuple[int, ...] | None:
    """Dimensions from slowest to fastest of a dense tensor that is not row-major; else None."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))
    return tuple(order) if tensor.permute(order).is_contiguous() else None


class TensorTable:
    """Collects the tensors of an artifact.

    Attributes:
        specs: what is known of each, by its name in the file.
    """

    def __init__(self) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self._tensors: dict[str, Tensor] = {}
        self._names: dict[TensorSpec, str] = {}

    def add(self, name: str, tensor: Tensor) -> str:
        """Store a tensor; returns its name in the file, which is another if an equal one is there.

        Raises:
            ArtifactError: its dtype or layout has no place in an artifact.
        """
        dtype = name_of_dtype(tensor.dtype)
        if dtype not in DTYPES or tensor.layout != torch.strided:
            raise ArtifactError(
                f"tensor {name!r} is {dtype}, {tensor.layout}; an artifact stores dense tensors of "
                f"{', '.join(DTYPES)}"
            )
        if tensor.is_meta:
            raise ArtifactError(f"tensor {name!r} has no values (it is on the meta device)")
        order = _order(tensor)
        tensor = tensor.detach().to("cpu").contiguous()
        spec = TensorSpec(
            dtype=dtype, shape=tuple(tensor.shape), order=order, sha256=digest(tensor)
        )
        if spec not in self._names:
            unique, i = name, 0
            while unique in self.specs:
                i += 1
                unique = f"{name}~{i}"
            self._names[spec] = unique
            self.specs[unique] = spec
            self._tensors[unique] = tensor
        return self._names[spec]

    def write(self, path: Path) -> TensorFile:
        """Write all tensors to a new file and force it to the disk."""
        # safetensors refuses tensors that share memory; these may be views of one parameter.
        save_file({name: _own(tensor) for name, tensor in self._tensors.items()}, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return hash_file(path)


def _own(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def read_tensors(
    path: Path, specs: Mapping[str, TensorSpec], expected: TensorFile
) -> dict[str, Tensor]:
    """Every tensor of a file, checked against the manifest before and after it is read.

    Args:
        path: of the file.
        specs: the tensors that the manifest lists.
        expected: size and hash of the whole file.

    Raises:
        ArtifactError: the file, or a tensor, is not what the manifest says.
    """
    where = path.name
    total = sum(_size(spec, f"{where}: tensor {name[:80]!r}") for name, spec in specs.items())
    size = path.stat().st_size
    if size != expected.bytes or not total <= size <= total + _MAX_HEADER:
        raise ArtifactError(
            f"{where}: it has {size} bytes, and the manifest says {expected.bytes}, {total} of "
            "them in tensors; copy the artifact again"
        )
    if hash_file(path) != expected:
        raise ArtifactError(
            f"{where}: its content is not what the manifest's sha256 says: it was damaged or "
            "edited after it was written; copy the artifact again"
        )
    with safe_open(path, framework="pt", device="cpu") as file:
        names = set(file.keys())
        if names != set(specs):
            odd = sorted(names ^ set(specs))[0]
            raise ArtifactError(
                f"{where}: tensor {odd[:80]!r} is in {'it' if odd in names else 'the manifest'} "
                "only"
            )
        return {
            name: _read(file, name, spec, f"{where}: tensor {name[:80]!r}")
            for name, spec in specs.items()
        }


def _size(spec: TensorSpec, where: str) -> int:
    """Bytes of a tensor, from its record alone."""
    if spec.dtype not in DTYPES:
        raise ArtifactError(f"{where}: {spec.dtype[:40]!r} is no dtype; use {', '.join(DTYPES)}")
    if len(spec.shape) > _MAX_DIMENSIONS or any(n < 0 for n in spec.shape):
        raise ArtifactError(f"{where}: {str(spec.shape)[:80]} is no shape")
    if spec.order is not None and sorted(spec.order) != list(range(len(spec.shape))):
        raise ArtifactError(f"{where}: {str(spec.order)[:80]} is no order of its dimensions")
    size = DTYPES[spec.dtype].itemsize
    for n in spec.shape:
        size *= n
    return size


def _read(file: Any, name: str, spec: TensorSpec, where: str) -> Tensor:
    view = file.get_slice(name)
    if tuple(view.get_shape()) != spec.shape:
        raise ArtifactError(
            f"{where}: its shape is {list(view.get_shape())}, and the manifest says "
            f"{list(spec.shape)}"
        )
    # A copy: the library may hand out a view of the file, which somebody could change later on.
    tensor: Tensor = file.get_tensor(name).clone(memory_format=torch.contiguous_format)
    if tensor.dtype != DTYPES[spec.dtype]:
        raise ArtifactError(f"{where}: it is {tensor.dtype}, and the manifest says {spec.dtype}")
    if digest(tensor) != spec.sha256:
        raise ArtifactError(f"{where}: its values are not what its sha256 says")
    if spec.order is None:
        return tensor
    return torch.empty_permuted(spec.shape, spec.order, dtype=tensor.dtype, device="cpu").copy_(
        tensor
    )
