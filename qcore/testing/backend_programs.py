"""A case as a program, by definition and on a backend, and what a backend may differ by."""

import copy
from typing import Any, Literal, get_args

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..backend import Backend
from .backend_draw import Case, Packed, Place
from .contract import ContractViolation

__all__ = ["LAYOUTS", "Layout", "Tried", "agree", "laid_out", "program_of", "tried"]

Layout = Literal["contiguous", "transposed", "strided", "offset", "channels last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""How a tensor may lie in memory; operations of Q are defined on values alone."""


def program_of(
    case: Case, layout: Layout = "contiguous", *, inputs_too: bool = False
) -> tuple[fx.GraphModule, fx.Node, tuple[Tensor, ...]]:
    """A program of one operation.

    Args:
        case: the operation.
        layout: of its run-time tensors when it gets them.
        inputs_too: the program also gives what the operation was given, as it is afterwards.

    Returns:
        The program, the operation's node, and what to call the program with. An integer input goes
        through a ``qrequantize`` that changes nothing, so that the graph says what is stored, as it
        does in programs of ``convert``.
    """
    graph = fx.Graph()
    root: dict[str, Any] = {}
    given = [graph.placeholder(f"x{i}") for i in range(len(case.inputs))]
    inputs = []
    places = []
    for x, node in zip(case.inputs, given, strict=True):
        stored, node = laid_out(x, layout, node)
        inputs.append(stored)
        places.append(node)

    def value(argument: Any) -> Any:
        if isinstance(argument, Place):
            return places[argument.index]
        if isinstance(argument, list):
            return [value(item) for item in argument]
        if not isinstance(argument, Tensor | Packed):
            return argument
        name = f"constant_{len(root)}"
        root[name] = argument if isinstance(argument, Tensor) else argument.packed()
        node = graph.get_attr(name)
        if isinstance(argument, Tensor):
            return node
        unpack = torch.ops.qcore.unpack.default
        return graph.call_function(unpack, (node, argument.bits, True, argument.values.shape[-1]))

    operation = getattr(torch.ops.qcore, case.op).default
    node = graph.call_function(operation, tuple(value(a) for a in case.arguments))
    graph.output((node, *places) if inputs_too else node)
    return fx.GraphModule(root, graph), node, tuple(inputs)


def laid_out(x: Tensor, layout: Layout, node: fx.Node) -> tuple[Tensor, fx.Node]:
    """A tensor to be given, and the node at which it has the values of ``x`` in that layout."""
    graph = node.graph
    views: list[tuple[Any, tuple[Any, ...]]] = []
    if layout == "transposed" and x.ndim > 1:
        x = x.transpose(-1, -2).contiguous()
        views = [(torch.ops.aten.transpose.int, (-1, -2))]
    elif layout == "strided" and x.ndim > 0:
        x = torch.stack((x, x.flip(0)), dim=-1).flatten(-2)
        views = [(torch.ops.aten.slice.Tensor, (-1, 0, x.shape[-1], 2))]
    elif layout == "offset" and x.ndim > 0:
        x = torch.cat((x[-1:], x))
        views = [(torch.ops.aten.slice.Tensor, (0, 1, x.shape[0]))]
    elif layout == "channels last" and x.ndim in (4, 5):
        x = x.contiguous(
            memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        )
    if x.dtype in (torch.int8, torch.uint8, torch.int16):
        node = _typed(node, x.dtype)
    for function, arguments in views:
        node = graph.call_function(function, (node, *arguments))
    return x, node


def _typed(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The node behind an operation that says what it stores, and changes nothing."""
    info = torch.iinfo(dtype)
    contract = "half_even.multiplier.int32.after.int32"
    args = (node, 1.0, 0, 1.0, 0, info.min, info.max, dtype, contract)
    return node.graph.call_function(torch.ops.qcore.qrequantize.default, args)


@attrs.frozen(kw_only=True, eq=False)
class Tried:
    """A case on a backend.

    Args:
        case: the operation.
        program: its program, which defines the result.
        inputs: what to call it with.
        lowered: what the backend made of it; None where it leaves the operation to the reference.
        reason: why it does; empty where it does not.
    """

    case: Case
    program: fx.GraphModule
    inputs: tuple[Tensor, ...]
    lowered: nn.Module | None = None
    reason: str = ""

    def run(self, *inputs: Tensor) -> Tensor:
        """The backend's result; an error in it breaks the contract.

        Args:
            inputs: other ones than those of the case.
        """
        result = self.call(*inputs)
        if not isinstance(result, Tensor):
            raise ContractViolation(f"{self.case}: gave {type(result).__name__}; due is a tensor")
        return result

    def call(self, *inputs: Tensor) -> Any:
        """Whatever the lowered program gives."""
        assert self.lowered is not None
        try:
            with torch.no_grad():
                result = self.lowered(*(inputs or self.inputs))
                # A backend of a device leaves its results there.
                return pytree.tree_map_only(Tensor, Tensor.cpu, result)
        except Exception as error:
            raise ContractViolation(
                f"{self.case}: the backend takes the operation, and running it raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def wanted(self, *inputs: Tensor) -> Tensor:
        """The result by definition."""
        with torch.no_grad():
            result: Tensor = self.program(*(inputs or self.inputs))
        return result


def tried(
    backend: Backend, case: Case, layout: Layout = "contiguous", *, inputs_too: bool = False
) -> Tried:
    """Lowers a case as :func:`qcore.lower` lowers the programs that it is given.

    Args:
        backend: that is checked.
        case, layout, inputs_too: as of :func:`program_of`.

    Raises:
        ContractViolation: the backend says neither yes nor why not, or fails at what it takes.
    """
    program, node, inputs = program_of(case, layout, inputs_too=inputs_too)
    why = backend.why_not(node)
    if why is not None:
        if not isinstance(why, str) or not why.strip():
            raise ContractViolation(
                f"{case}: why_not gave {why!r}; due is None, or a reason that people can read"
            )
        return Tried(case=case, program=program, inputs=inputs, reason=why)
    try:
        kernel = backend.kernel(node)
        lowered = backend.compile(copy.deepcopy(program), frozenset({node.name}))
    except Exception as error:
        raise ContractViolation(
            f"{case}: the backend takes the operation, and compiling it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(kernel, str) or not kernel.strip():
        raise ContractViolation(f"{case}: kernel gave {kernel!r}; due is a name that plans show")
    return Tried(case=case, program=program, inputs=inputs, lowered=lowered)


def agree(what: object, found: Tensor, wanted: Tensor, lsb_bound: int) -> None:
    """Compares a backend's result with the definition.

    Args:
        what: the case, for the message.
        found, wanted: the results.
        lsb_bound: as :attr:`qcore.Backend.lsb_bound`. A step of a float result is its largest value
            over 127.

    Raises:
        ContractViolation: they differ by more, or in shape or dtype.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ContractViolation(
            f"{what}: gave {found.dtype} {list(found.shape)}; due is {wanted.dtype} "
            f"{list(wanted.shape)}"
        )
    a, b = found.double(), wanted.double()
    off = (a - b).abs()
    # Equal infinities and two NaN differ by nothing; one NaN, by more than anything.
    off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, torch.nan_to_num(off, nan=torch.inf))
    allowed = float(lsb_bound)
    if wanted.is_floating_point():
        finite = b[b.isfinite()].abs()
        allowed *= float(finite.max()) / 127 if finite.numel() else 0.0
    wrong = off > allowed
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise ContractViolation(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} values differ, by up to "
            f"{float(off.max()):g} with lsb_bound={lsb_bound}; the first at {list(at)}: gave "
            f"{found[at].item()}, due is {wanted[at].item()}"
        )
