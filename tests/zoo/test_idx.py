"""The IDX parser: what it reads, and what it says of files that are not right."""

import gzip
from pathlib import Path

import pytest
import torch

from qcore import DatasetError
from qcore_zoo.idx import decompress, parse_idx, read_idx

SHAPE = (2, 3, 2)
HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2])
CONTENT = HEADER + bytes(range(12))


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_reads_values_in_order(tmp_path: Path, compress: bool) -> None:
    """A file gives its values in C order and its whole content, compressed or not."""
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(CONTENT) if compress else CONTENT)
    values, content = read_idx(path, shape=SHAPE)
    assert values.dtype == torch.uint8
    assert torch.equal(values, torch.arange(12, dtype=torch.uint8).reshape(SHAPE))
    assert content == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing; an IDX file of 3 dimensions of bytes starts with 00 00 08 03"),
        (b"<html>", "starts with 3c 68 74 6d"),
        (bytes([0, 0, 8, 1]) + CONTENT[4:], "starts with 00 00 08 01"),
        (bytes([0, 0, 13, 3]) + CONTENT[4:], "starts with 00 00 0d 03"),
        (HEADER[:9], r"header says \(2, 0, 0\); expected \(2, 3, 2\)"),
        (HEADER[:7] + b"\x03" + CONTENT[8:], r"header says \(3, 3, 2\); expected \(2, 3, 2\)"),
        (CONTENT[:-1], "11 values follow the header, .*: 12; the file is cut short or too long"),
        (CONTENT + b"\x00", "13 values follow the header"),
    ],
    ids=["empty", "html", "rank", "type", "header_cut", "sizes", "short", "long"],
)
def test_malformed_content_is_refused(content: bytes, message: str) -> None:
    """Each way in which a file can be wrong has its own error, which names the file."""
    with pytest.raises(DatasetError, match=message) as error:
        parse_idx(content, shape=SHAPE, where="some/file")
    assert str(error.value).startswith("some/file: ")


def test_every_truncation_of_a_gzip_file_is_refused(tmp_path: Path) -> None:
    """A gzip file cut at any byte is an error of the data set, never another one."""
    whole = gzip.compress(CONTENT)
    path = tmp_path / "cut.gz"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"cut short|starts with"):
            read_idx(path, shape=SHAPE)


def test_damaged_gzip_file_is_refused() -> None:
    """A flipped byte in the compressed data or the checksum is found."""
    whole = bytearray(gzip.compress(CONTENT * 20))
    for position in (12, len(whole) - 6):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        with pytest.raises(DatasetError, match=r"damaged gzip file|cut short"):
            decompress(bytes(damaged), limit=10_000, where="x")


def test_decompression_stops_at_the_limit() -> None:
    """A file that would grow beyond its size is refused; one that fits exactly is not."""
    bomb = gzip.compress(bytes(1 << 24))
    with pytest.raises(DatasetError, match="more than the 1000 bytes"):
        decompress(bomb, limit=1000, where="x")
    assert decompress(gzip.compress(bytes(1000)), limit=1000, where="x") == bytes(1000)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that can't be opened is an error that names it."""
    with pytest.raises(DatasetError, match=r"none\.gz: No such file"):
        read_idx(tmp_path / "none.gz", shape=SHAPE)
    with pytest.raises(DatasetError, match="directory"):
        read_idx(tmp_path, shape=SHAPE)
