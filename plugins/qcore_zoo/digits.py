"""The data set ``digits``: 1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn.

References:
    Alpaydin and Kaynak, 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository <https://doi.org/10.24432/C50P49>
"""

import numpy as np
import numpy.typing as npt
import torch

from qcore import Dataset, MissingExtraError

__all__ = ["MEAN", "STD", "digits", "stratified_split"]

MEAN = 0.3053
STD = 0.3761
_TEST_EXAMPLES = 360


def stratified_split(
    labels: npt.NDArray[np.int64], test_examples: int, *, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows for training and for testing, with the classes in equal proportions in both.

    Each class gives its share of the test rows rounded down; the rows that are missing then come
    from the classes with the largest remainders, lower class first. Within a class they are drawn
    with NumPy's legacy generator, whose stream is frozen for good.

    Args:
        labels: shape ``[N]``, int64.
        test_examples: number of test rows, 0 to ``N``.
        seed: of the draw.

    Returns:
        train rows ``[N - test_examples]`` and test rows ``[test_examples]``, ascending.

    >>> train, test = stratified_split(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2, seed=0)
    >>> len(train), np.array([0, 0, 0, 0, 1, 1, 1, 1])[test].tolist()
    (6, [0, 1])
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * test_examples / len(labels)
    taken = shares.astype(np.int64)
    by_remainder = np.argsort(taken - shares, kind="stable")
    taken[by_remainder[: test_examples - taken.sum()]] += 1
    random = np.random.RandomState(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label, number in zip(classes, taken, strict=True):
        is_test[random.permutation(np.flatnonzero(labels == label))[:number]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def digits(*, seed: int = 0) -> Dataset:
    """Handwritten digits: 1,437 for training and 360 for testing, stratified by class.

    Pixels (0 to 16 in the source) are scaled to [0, 1] and normalised:
    ``(x - 0.3053) / 0.3761``, the mean and standard deviation of all pixels.

    Args:
        seed: of the split; the same seed gives the same split on every machine.

    Returns:
        Inputs ``[N, 1, 8, 8]`` float32, labels ``[N]`` int64, 10 classes.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    >>> digits()
    Dataset(name='digits', train=1437, test=360, input_shape=(1, 8, 8), num_classes=10)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "data set 'digits': it ships with scikit-learn, which is not installed here; run "
            "pip install 'qcore-quant[zoo]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    images = (pixels.reshape(-1, 1, 8, 8) / 16 - MEAN) / STD
    train, test = stratified_split(labels, _TEST_EXAMPLES, seed=seed)
    return Dataset(
        name="digits",
        train_inputs=torch.from_numpy(images[train].astype(np.float32)),
        train_labels=torch.from_numpy(labels[train]),
        test_inputs=torch.from_numpy(images[test].astype(np.float32)),
        test_labels=torch.from_numpy(labels[test]),
        num_classes=10,
    )
