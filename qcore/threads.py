"""How many threads torch uses, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import RecipeError

__all__ = ["num_threads"]


@contextmanager
def num_threads(number: int | None) -> Iterator[None]:
    """Lets torch use ``number`` threads inside of the block, then as many as before.

    Args:
        number: at least 1; None leaves it as it is.

    Raises:
        RecipeError: it is no whole number, or less than 1.

    >>> with num_threads(1):
    ...     torch.get_num_threads()
    1
    """
    if number is not None and (type(number) is not int or number < 1):
        raise RecipeError(
            f"threads: got {number!r}; use a whole number, 1 or more, or None for as many as torch "
            "has now"
        )
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
