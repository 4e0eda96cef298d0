"""Marks on public functions and classes that may change, or that will go.

    @experimental("0.2")                                        may change between any two versions
    @deprecated("0.3", removed="0.5", use="qcore.prepare")      goes, and what takes its place

What is marked works as before. Each place that calls it is warned once, by a category of its own,
so ``python -W error::DeprecationWarning`` or a filter of pytest finds every use. The docstring says
the same, and ``__stability__`` holds it for tools. Plug-ins may mark what they bring in the same
way. Which names keep their meaning, and for how long: ``docs/plugins/versioning.md``.
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import PluginError

__all__ = [
    "QcoreDeprecationWarning",
    "QcoreExperimentalWarning",
    "QcoreWarning",
    "deprecated",
    "experimental",
]

_Marked = TypeVar("_Marked", bound=Callable[..., Any])
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+")


class QcoreWarning(Warning):
    """Base of the warnings that marks give."""


class QcoreExperimentalWarning(QcoreWarning, FutureWarning):
    """Something is used that may change in any version."""


class QcoreDeprecationWarning(QcoreWarning, DeprecationWarning):
    """Something is used that will be removed; the message says what takes its place."""


def experimental(since: str) -> Callable[[_Marked], _Marked]:
    """Marks a function, a method or a class that may change without notice.

    A call, or making an instance, warns with :class:`qcore.QcoreExperimentalWarning`.

    Args:
        since: the version that brought it, such as ``"0.2"``.

    Raises:
        PluginError: ``since`` is no version.

    >>> @experimental("0.2")
    ... def halve(x: float) -> float:
    ...     '''Half of ``x``.'''
    ...     return x / 2
    >>> with warnings.catch_warnings(action="ignore"):
    ...     halve(3.0)
    1.5
    >>> print(halve.__doc__)
    Half of ``x``.
    <BLANKLINE>
    Note:
        Experimental since 0.2: it may change in any version.
    """
    _version("experimental", since=since)
    return _mark(
        f"experimental since {since}: it may change in any version", QcoreExperimentalWarning
    )


def deprecated(since: str, *, removed: str, use: str) -> Callable[[_Marked], _Marked]:
    """Marks a function, a method or a class that will be removed.

    A call, or making an instance, warns with :class:`qcore.QcoreDeprecationWarning`.

    Args:
        since: the version that deprecated it.
        removed: the version that will not have it any more; later than ``since``.
        use: what takes its place, in a few words: ``"qcore.prepare"``.

    Raises:
        PluginError: a version that is none, ``removed`` not after ``since``, or an empty ``use``.

    >>> @deprecated("0.3", removed="0.5", use="len")
    ... def size(values: list[int]) -> int:
    ...     return len(values)
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     _ = size([1, 2])
    >>> print(caught[0].message)
    size is deprecated since 0.3 and will be removed in 0.5; use len
    """
    if _version("deprecated", since=since) >= _version("deprecated", removed=removed):
        raise PluginError(
            f"deprecated: removed={removed!r} is not after since={since!r}; name a later version, "
            "so that there is one with both ways"
        )
    if not use.strip():
        raise PluginError(f"deprecated: use={use!r}; say what takes its place")
    return _mark(
        f"deprecated since {since} and will be removed in {removed}; use {use}",
        QcoreDeprecationWarning,
    )


def _version(mark: str, **given: str) -> tuple[int, ...]:
    ((argument, version),) = given.items()
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise PluginError(f"{mark}: {argument}={version!r}; write a version such as '0.2'")
    return tuple(map(int, version.split(".")))


def _mark(what: str, category: type[Warning]) -> Callable[[_Marked], _Marked]:
    def mark(marked: Any) -> Any:
        if not (inspect.isfunction(marked) or inspect.isclass(marked)):
            raise PluginError(
                f"{marked!r} is marked as {what.partition(' since')[0]}; mark a function or a "
                "class, below @property, @classmethod or @staticmethod"
            )
        name = marked.__qualname__.rpartition("<locals>.")[2]
        message = f"{name} is {what}"
        result: Any = marked
        if inspect.isclass(marked):
            # The class stays itself, so that isinstance, subclasses and pickles go on working.
            result.__init__ = _warns(result.__init__, message, category)
        else:
            result = _warns(marked, message, category)
        note = f"{what[0].upper()}{what[1:]}."
        if marked.__doc__:
            note = f"{inspect.cleandoc(marked.__doc__)}\n\nNote:\n    {note}"
        result.__doc__ = note
        result.__stability__ = what
        return result

    return mark


def _warns(function: Callable[..., Any], message: str, category: type[Warning]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # The place that calls, not this one.
        warnings.warn(message, category, stacklevel=2)
        return function(*args, **kwargs)

    return call
