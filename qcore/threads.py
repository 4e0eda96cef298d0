"""How many threads torch uses, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["num_threads"]


@contextmanager
def num_threads(number: int | None) -> Iterator[None]:
    """Lets torch use ``number`` threads inside of the block, then as many as before.

    Args:
        number: at least 1; None leaves it as it is.

    >>> with num_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
