"""Importing what a record points to, and checking that it is what its kind must be."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .activation import QuarantineError, import_object
from .discovery import InstalledPlugin
from .errors import PluginError
from .missing import MissingExtraError
from .specs import AlgorithmSpec, ConverterSpec, FusionSpec, PresetSpec, SchemeSpec, Spec

__all__ = ["load_examples", "load_fusion_check", "load_target"]


def load_target(spec: Spec, entry: InstalledPlugin | None) -> Any:
    """What a record stands for.

    Args:
        spec: a record that a host returned.
        entry: the entry point of its plug-in; None for a plug-in of this process.

    Returns:
        The imported target; for a scheme or a preset its data, for a fusion the record itself.

    Raises:
        MissingExtraError: the target needs an extra that is not installed.
        PluginError: the target can't be imported, or is not what its kind must be.
    """
    match spec:
        case SchemeSpec():
            return spec.scheme
        case PresetSpec():
            return spec.qconfig
        case FusionSpec():
            return spec
    target = _import(spec, spec.target, entry)
    if spec.contract is None:
        fits, wanted = callable(target), "callable"
    else:
        import qcore

        bases = tuple(getattr(qcore, name) for name in spec.contract)
        fits = inspect.isclass(target) and issubclass(target, bases)
        wanted = f"a class that derives from qcore.{' or qcore.'.join(spec.contract)}"
    if not fits:
        raise PluginError(
            f"{_describe(spec)}: the target {spec.target!r} is {_what(target)}; it must be {wanted}"
        )
    return target


def load_fusion_check(
    fusion: FusionSpec, entry: InstalledPlugin | None
) -> Callable[..., str | None] | None:
    """The function that may refuse a match of a fusion; None if the fusion has none.

    Raises:
        MissingExtraError: the function's module needs an extra that is not installed.
        PluginError: it can't be imported or called.
    """
    return _function(fusion, "check", fusion.check, entry)


def load_examples(
    spec: FusionSpec | ConverterSpec | AlgorithmSpec, entry: InstalledPlugin | None
) -> Callable[[], Iterable[Any]] | None:
    """The function that yields modules with inputs for a contribution; None if it names none.

    Raises:
        MissingExtraError: the function's module needs an extra that is not installed.
        PluginError: it can't be imported or called.
    """
    return _function(spec, "examples", spec.examples, entry)


def _function(
    spec: Spec, field: str, where: str | None, entry: InstalledPlugin | None
) -> Callable[..., Any] | None:
    if where is None:
        return None
    found = _import(spec, where, entry)
    if not callable(found):
        raise PluginError(
            f"{_describe(spec)}: {field}={where!r} is {_what(found)}; it must be callable"
        )
    return found


def _import(spec: Spec, where: str, entry: InstalledPlugin | None) -> object:
    if spec.origin is None:
        raise PluginError(
            f"{_describe(spec)} has no origin; only records that a host returned are loaded"
        )
    module, _, attribute = where.partition(":")
    try:
        return import_object(
            module,
            attribute,
            distribution=spec.origin.distribution,
            folder=entry.folder if entry else None,
            extras=entry.extras if entry else (),
        )
    except QuarantineError as fault:
        error = MissingExtraError if fault.unavailable else PluginError
        raise error(f"{_describe(spec)}: {fault.text}") from fault.__cause__


def _what(value: object) -> str:
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return f"of type {type(value).__name__}"


def _describe(spec: Spec) -> str:
    return f"{spec.kind} {spec.name!r}" + (f" of {spec.origin.describe()}" if spec.origin else "")
