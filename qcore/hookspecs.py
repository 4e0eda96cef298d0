"""The hooks that a plug-in may implement; each returns an iterable of records.

A plug-in is a module, named by an entry point of the group ``qcore.v1``, with one or more of these
functions marked by :data:`hookimpl`. It must be light: no torch at import. Records point to the
heavy parts by name.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import get_args, get_type_hints

import pluggy

from .specs import (
    AlgorithmSpec,
    BackendSpec,
    ConverterSpec,
    DatasetSpec,
    FakeQuantSpec,
    FusionSpec,
    ModelSpec,
    ObserverSpec,
    PresetSpec,
    SchemeSpec,
    Spec,
)

__all__ = ["ENTRY_POINT_GROUP", "HOOKS", "KINDS", "PROJECT_NAME", "hookimpl"]

PROJECT_NAME = "qcore"
ENTRY_POINT_GROUP = "qcore.v1"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def qcore_observers() -> Iterable[ObserverSpec]:  # type: ignore[empty-body]
    """Observers: what turns the values of a tensor into a scale and a zero point."""


@hookspec
def qcore_fake_quants() -> Iterable[FakeQuantSpec | SchemeSpec | PresetSpec]:  # type: ignore[empty-body]
    """Fake quantizers, and the named schemes and presets that go with them."""


@hookspec
def qcore_fusion_patterns() -> Iterable[FusionSpec]:  # type: ignore[empty-body]
    """Chains of operations that become one."""


@hookspec
def qcore_module_converters() -> Iterable[ConverterSpec]:  # type: ignore[empty-body]
    """Operations that can be quantized."""


@hookspec
def qcore_backends() -> Iterable[BackendSpec]:  # type: ignore[empty-body]
    """Execution backends for Q."""


@hookspec
def qcore_algorithms() -> Iterable[AlgorithmSpec]:  # type: ignore[empty-body]
    """Stages of the pipeline."""


@hookspec
def qcore_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Float models that a recipe can name."""


@hookspec
def qcore_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Data sets that a recipe can name."""


def _hooks() -> Mapping[str, tuple[type[Spec], ...]]:
    """Every hook and the records that it may return, read from the signatures above."""
    hooks = {}
    for name, function in globals().items():
        if hasattr(function, f"{PROJECT_NAME}_spec"):
            (record,) = get_args(get_type_hints(function)["return"])
            hooks[name] = get_args(record) or (record,)
    return MappingProxyType(hooks)


HOOKS = _hooks()
"""Name of each hook -> the records that it may return."""

KINDS = tuple(record.kind for records in HOOKS.values() for record in records)
"""The kinds of contribution, in the order of the hooks."""
