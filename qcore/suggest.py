"""The "did you mean" of error messages."""

from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A clause that names the nearest allowed word, or nothing when none is near.

    Args:
        word: what was written.
        allowed: what could have been meant.

    Returns:
        ``"; did you mean 'x'?"``, to be put behind a message, or ``""``.

    >>> did_you_mean("minmx", ["ema", "minmax"])
    "; did you mean 'minmax'?"
    >>> did_you_mean("anything", ["ema", "minmax"])
    ''
    """
    # difflib is slow to import for what only an error needs.
    from difflib import get_close_matches

    options = sorted(set(allowed))
    folded = {option.lower(): option for option in options}
    near = get_close_matches(word.lower(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""
