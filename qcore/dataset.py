"""A labelled data set, held in memory as the tensors that a model takes."""

import hashlib
from collections.abc import Iterator
from typing import Literal

import attrs
import torch

from .errors import QcoreError

__all__ = ["Dataset", "DatasetError"]

Split = Literal["train", "test"]


class DatasetError(QcoreError, ValueError):
    """A data set is missing, damaged or does not fit together."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Dataset:
    """Training and test examples of a classification task.

    Compares by identity; :meth:`fingerprint` compares by content.

    Args:
        name: how recipes and reports call it.
        train_inputs: shape ``[N, ...]``, usually ``[N, C, H, W]``; float32, normalised as its
            loader documents.
        train_labels: shape ``[N]``; int64 class indices in ``0..num_classes - 1``.
        test_inputs: shape ``[M, ...]``, the same but for the first size; float32.
        test_labels: shape ``[M]``; int64.
        num_classes: number of classes.

    Raises:
        DatasetError: a tensor has another dtype, a split is empty, inputs and labels differ in
            number, the splits differ in shape, or a label lies outside of the classes.

    >>> import torch
    >>> data = Dataset(
    ...     name="toy", num_classes=2,
    ...     train_inputs=torch.arange(6.0).reshape(3, 2), train_labels=torch.tensor([0, 1, 1]),
    ...     test_inputs=torch.zeros(1, 2), test_labels=torch.tensor([0]),
    ... )
    >>> data
    Dataset(name='toy', train=3, test=1, input_shape=(2,), num_classes=2)
    >>> [labels.tolist() for _, labels in data.batches("train", 2)]
    [[0, 1], [1]]
    """

    name: str
    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int

    def __attrs_post_init__(self) -> None:
        for split in ("train", "test"):
            _check_split(self, split, *self.split(split))
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            raise DatasetError(
                f"data set {self.name!r}: train_inputs {list(self.train_inputs.shape)} and "
                f"test_inputs {list(self.test_inputs.shape)} differ after the first size; give "
                "both splits examples of one shape"
            )

    def __repr__(self) -> str:
        return (
            f"Dataset(name={self.name!r}, train={len(self.train_labels)}, "
            f"test={len(self.test_labels)}, input_shape={self.input_shape}, "
            f"num_classes={self.num_classes})"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch."""
        return tuple(self.train_inputs.shape[1:])

    def split(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of one split, not copied.

        Args:
            split: ``"train"`` or ``"test"``.

        Returns:
            inputs ``[N, ...]`` float32 and labels ``[N]`` int64.

        Raises:
            DatasetError: no such split.
        """
        if split == "train":
            return self.train_inputs, self.train_labels
        if split == "test":
            return self.test_inputs, self.test_labels
        raise DatasetError(f"data set {self.name!r}: split={split!r}; use 'train' or 'test'")

    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of one split, in the same order for the same arguments on every machine.

        Args:
            split: ``"train"`` or ``"test"``.
            batch_size: examples in a batch; the last batch may be smaller.
            shuffle: draw a permutation from ``seed`` instead of the stored order. Neither reads nor
                moves torch's global random state.
            seed: of the permutation; unused without ``shuffle``.
            limit: stop after this many examples (of the permutation, if shuffled).
            drop_last: leave out a last batch that is smaller.

        Returns:
            An iterator of inputs ``[B, ...]`` float32 and labels ``[B]`` int64: views of the stored
            tensors in stored order, copies when shuffled.

        Raises:
            DatasetError: no such split, or ``batch_size`` or ``limit`` is below 1.
        """
        inputs, labels = self.split(split)
        for name, value in (("batch_size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise DatasetError(f"data set {self.name!r}: {name}={value}; use 1 or more")
        total = len(labels) if limit is None else min(limit, len(labels))
        order = (
            torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
            if shuffle
            else None
        )
        if drop_last:
            total -= total % batch_size
        return _batches(inputs, labels, order, total, batch_size)

    def fingerprint(self) -> str:
        """SHA-256 of the content: shapes, values and number of classes, but not the name.

        Two data sets of equal fingerprint train equal models, so it serves as part of a cache key.
        Computed anew at each call, because tensors can change.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256(f"classes={self.num_classes}".encode())
        for split in ("train", "test"):
            for tensor in self.split(split):
                digest.update(f";{tensor.dtype}{list(tensor.shape)}:".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _batches(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor | None,
    total: int,
    batch_size: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, total, batch_size):
        stop = min(start + batch_size, total)
        rows = slice(start, stop) if order is None else order[start:stop]
        yield inputs[rows], labels[rows]


def _check_split(data: Dataset, split: str, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    where = f"data set {data.name!r}: {split}"
    if inputs.dtype != torch.float32 or labels.dtype != torch.int64:
        raise DatasetError(
            f"{where}_inputs is {inputs.dtype} and {split}_labels is {labels.dtype}; use "
            "torch.float32 and torch.int64"
        )
    if inputs.ndim < 2 or labels.ndim != 1 or len(inputs) != len(labels):
        raise DatasetError(
            f"{where}_inputs has shape {list(inputs.shape)} and {split}_labels "
            f"{list(labels.shape)}; use [N, ...] and [N]"
        )
    if not inputs.numel():
        raise DatasetError(f"{where} has no examples; give at least one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= data.num_classes:
        raise DatasetError(
            f"{where}_labels span {low}..{high}; use 0..{data.num_classes - 1}, the "
            f"{data.num_classes} classes"
        )
