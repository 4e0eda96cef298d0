"""The IDX format, in which MNIST and its relatives are published.

A file is a magic number (two zero bytes, the type of the values, the number of dimensions), the
sizes as big-endian 32-bit integers, then the values in C order; here of unsigned bytes only. Files
may be compressed with gzip.

References:
    LeCun et al., The MNIST database of handwritten digits (file formats)
    <http://yann.lecun.com/exdb/mnist/>
"""

import math
import zlib
from pathlib import Path

import torch

from qcore import DatasetError

__all__ = ["decompress", "parse_idx", "read_idx"]

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08


def parse_idx(content: bytes, *, shape: tuple[int, ...], where: str) -> torch.Tensor:
    """The values of an IDX file.

    Args:
        content: the whole file, not compressed.
        shape: sizes that the file must state.
        where: how errors call the file.

    Returns:
        uint8, of ``shape``; a copy.

    Raises:
        DatasetError: the magic number, the sizes or the length of the file are not as they must be.

    >>> header = bytes([0, 0, 8, 2]) + (2).to_bytes(4) + (3).to_bytes(4)
    >>> parse_idx(header + bytes(range(6)), shape=(2, 3), where="example").tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    magic = bytes([0, 0, _UINT8, len(shape)])
    if content[:4] != magic:
        raise DatasetError(
            f"{where}: it starts with {content[:4].hex(' ') or 'nothing'}; an IDX file of "
            f"{len(shape)} dimensions of bytes starts with {magic.hex(' ')}"
        )
    start = 4 + 4 * len(shape)
    sizes = tuple(int.from_bytes(content[i : i + 4]) for i in range(4, start, 4))
    if len(content) < start or sizes != shape:
        raise DatasetError(f"{where}: its header says {sizes}; expected {shape}")
    if len(content) - start != math.prod(shape):
        raise DatasetError(
            f"{where}: {len(content) - start} values follow the header, which says {sizes}: "
            f"{math.prod(shape)}; the file is cut short or too long"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)


def decompress(content: bytes, *, limit: int, where: str) -> bytes:
    """The content of a gzip file, or ``content`` itself where it is not compressed.

    Args:
        content: the whole file.
        limit: largest size in bytes of what may come out; nothing beyond it is decompressed.
        where: how errors call the file.

    Raises:
        DatasetError: the file is cut short or damaged, or holds more than ``limit``.
    """
    if content[:2] != _GZIP_MAGIC:
        return content
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = decompressor.decompress(content, limit + 1)
    except zlib.error as error:
        raise DatasetError(f"{where}: damaged gzip file ({error})") from error
    if len(plain) > limit:
        raise DatasetError(f"{where}: it holds more than the {limit} bytes that it may")
    if not decompressor.eof:
        raise DatasetError(f"{where}: the gzip file is cut short")
    return plain


def read_idx(path: Path, *, shape: tuple[int, ...]) -> tuple[torch.Tensor, bytes]:
    """Read a file, compressed or not.

    Args:
        path: the file.
        shape: sizes that the file must state.

    Returns:
        The values, uint8 of ``shape``, and the whole content that was parsed, for a checksum.

    Raises:
        DatasetError: the file can't be read, or is not such a file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error
    limit = 4 + 4 * len(shape) + math.prod(shape)
    content = decompress(content, limit=limit, where=str(path))
    return parse_idx(content, shape=shape, where=str(path)), content
