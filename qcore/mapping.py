"""Converters that are given in a call, by the type of module that they are for."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn

from .errors import PluginError
from .hookspecs import hookimpl
from .match import MAPPING, loaded_class
from .op import QFloatOp
from .specs import ConverterSpec

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["host_with_mapping"]


def host_with_mapping(
    mapping: Mapping[type[nn.Module], type[QFloatOp]], host: "PluginHost"
) -> "PluginHost":
    """A host that also knows the converters of a mapping, as a plug-in of this process.

    A type that has a converter already keeps the name of its operation, so that fusions and
    overrides by operation hold for it as before; another type's operation has the type's name.

    Args:
        mapping: from a type of module to the operation that takes its place.
        host: stays as it is.

    Raises:
        PluginError: a key is no module type, a value no operation, or one of them can't be found by
            its name, by which records refer to classes.
    """
    known = {
        loaded_class(name): spec.op
        for spec in host.specs("converter")
        if isinstance(spec, ConverterSpec)
        for name in spec.types
    }
    specs = tuple(_spec(layer, op, known.get(layer)) for layer, op in mapping.items())
    return host.with_plugin(_Plugin(specs), name=MAPPING)


class _Plugin:
    def __init__(self, specs: tuple[ConverterSpec, ...]) -> None:
        self.specs = specs

    @hookimpl
    def qcore_module_converters(self) -> Iterator[ConverterSpec]:
        yield from self.specs


def _spec(layer: type[nn.Module], op: type[QFloatOp], known: str | None) -> ConverterSpec:
    for cls, base in ((layer, nn.Module), (op, QFloatOp)):
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise PluginError(
                f"mapping: {cls!r} is not a class that derives from {base.__name__}; give types of "
                "modules and, for each, the qcore.QFloatOp that takes its place"
            )
        if loaded_class(f"{cls.__module__}.{cls.__qualname__}") is not cls:
            raise PluginError(
                f"mapping: {cls.__module__}.{cls.__qualname__} can't be found by this name; define "
                "the class at the top level of a module"
            )
    return ConverterSpec(
        name=layer.__name__,
        op=known or layer.__name__,
        types=(f"{layer.__module__}.{layer.__qualname__}",),
        target=f"{op.__module__}:{op.__qualname__}",
    )
