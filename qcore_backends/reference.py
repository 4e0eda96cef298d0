"""The reference backend: it runs a program by the kernels that define it."""

from typing import ClassVar

from torch import fx, nn

from qcore import Backend, Numerics

__all__ = ["ReferenceBackend"]


class ReferenceBackend(Backend):
    """Runs every operation as it is defined, for any contract, on any device."""

    name: ClassVar[str] = "reference"

    def computes(self, numerics: Numerics) -> bool:
        return True

    def why_not(self, node: fx.Node) -> str | None:
        return None

    def kernel(self, node: fx.Node) -> str:
        return "reference" if getattr(node.target, "namespace", "") == "qcore" else "torch"

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        return program
