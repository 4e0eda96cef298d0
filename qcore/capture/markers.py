"""Marker operations that show, inside an exported graph, where each call of a leaf module lies.

An exported program knows tensors and operations but no modules. So each leaf instance gets two
hooks while it is exported: the tensors that enter a call go through ``qcore_capture::enter``, those
that leave it through ``qcore_capture::exit``. Both are the identity; they carry the number of the
call and the position of the tensor, and what lies between them is the body of that call.

Hooks are used, not a replaced ``forward``: the first pre-hook and the last hook lie outside all
other hooks of the instance, which therefore belong to the body and are not run a second time when
the graph calls the instance. Leaves may nest; the outermost call is the one that is marked.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

__all__ = ["ENTER", "EXIT", "MARKERS", "Call", "Recorder", "Slot", "is_torch_layer"]

# What a graph can hold as it is. Everything else among the arguments of a call must be a tensor.
_LITERALS = (
    type(None), bool, int, float, complex, str, type(Ellipsis),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_ARGUMENT_CONTAINERS = (tuple, list, dict)


_LIBRARY: Any = torch.library.Library("qcore_capture", "DEF")  # type: ignore[no-untyped-call]
# sizes: the symbolic sizes among the arguments of the call; only the first tensor carries them.
_LIBRARY.define("enter(Tensor x, int call, int index, SymInt[] sizes) -> Tensor")
_LIBRARY.define("exit(Tensor x, int call, int index) -> Tensor")


def _copy(x: Tensor, *marks: Any) -> Tensor:
    return x.clone()


def _fake(x: Tensor, *marks: Any) -> Tensor:
    # The very strides: they decide whether what is done next makes a copy or a view.
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


for _name in ("enter", "exit"):
    _LIBRARY.impl(_name, _copy, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"qcore_capture::{_name}", _fake, lib=_LIBRARY)

ENTER = torch.ops.qcore_capture.enter.default
EXIT = torch.ops.qcore_capture.exit.default
MARKERS = (ENTER, EXIT)


@attrs.frozen(kw_only=True)
class Slot:
    """One leaf of a pytree of arguments or results.

    Args:
        kind: ``"tensor"`` (``index`` counts the distinct tensors of the call), ``"size"``
            (``index`` counts its symbolic sizes) or ``"literal"`` (``value``).
        accessors: for a result, how to get here from what the module returned: pairs of ``"item"``
            and a key, or ``"attr"`` and a name.
    """

    kind: str
    index: int = 0
    value: Any = None
    accessors: tuple[tuple[str, Any], ...] = ()


@attrs.define(kw_only=True)
class Call:
    """One call of a leaf instance: what went in, and what came out once it has returned.

    Args:
        index: number of the call, which its markers carry.
        path: qualified name of the instance.
        arg_spec: tree of ``(args, kwargs)``, with one of ``arg_slots`` for each leaf.
        out_spec: tree of the result, with one of ``out_slots`` for each leaf.
    """

    index: int
    path: str
    arg_spec: pytree.TreeSpec
    arg_slots: tuple[Slot, ...]
    out_spec: pytree.TreeSpec | None = None
    out_slots: tuple[Slot, ...] = ()


def is_torch_layer(module: nn.Module) -> bool:
    """Whether this is a layer that torch.nn defines, without children, and not a mere container."""
    containers = (
        nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict,
    )  # fmt: skip
    kind = type(module)
    return (
        (kind.__module__ == "torch.nn" or kind.__module__.startswith("torch.nn."))
        and kind is not nn.Module
        and not isinstance(module, containers)
        and next(module.children(), None) is None
    )


class Recorder:
    """Marks the calls of leaf instances, and keeps a :class:`Call` for each.

    Args:
        leaves: the instances to mark, by qualified name.

    Attributes:
        calls: the marked calls, in the order in which they began.
        reached: names of the leaves that were called, nested ones too.
        unmarked: for leaves that could not be marked: name and reason.
    """

    def __init__(self, leaves: Mapping[str, nn.Module]) -> None:
        self._leaves = leaves
        # One entry for each leaf call that is now running; None where it is not marked.
        self._running: list[Call | None] = []
        self.calls: list[Call] = []
        self.reached: set[str] = set()
        self.unmarked: dict[str, str] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every leaf for the time of the context."""
        with ExitStack() as stack:
            for path, module in self._leaves.items():
                before, after = self._hooks(path)
                stack.callback(
                    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove
                )
                # always_call: a forward may catch the exception of a layer and go on.
                stack.callback(
                    module.register_forward_hook(after, with_kwargs=True, always_call=True).remove
                )
            yield

    def _hooks(self, path: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        # The hooks know the leaf by its path: the module they are given may be a stand-in of
        # export.
        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            self.reached.add(path)
            if any(self._running):
                self._running.append(None)
                return None
            call, marked = self._enter(path, args, kwargs)
            self._running.append(call)
            return marked

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            call = self._running.pop()
            return None if call is None else self._exit(call, output)

        return before, after

    def _enter(self, path: str, args: Any, kwargs: Any) -> tuple[Call | None, Any]:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors: list[Tensor] = []
        sizes: list[Any] = []
        slots: list[Slot] = []
        reason = _unfit_container(spec)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                slots.append(Slot(kind="tensor", index=_position(tensors, leaf)))
            elif isinstance(leaf, torch.SymInt):
                slots.append(Slot(kind="size", index=len(sizes)))
                sizes.append(leaf)
            elif isinstance(leaf, _LITERALS):
                slots.append(Slot(kind="literal", value=leaf))
            else:
                reason = reason or type(leaf).__name__
        if sizes and not tensors:
            reason = reason or "symbolic size and no tensor"
        if reason is not None:
            self.unmarked[path] = (
                f"is called with a {reason}, which a graph can't hold; captured as its parts"
            )
            return None, None
        call = Call(index=len(self.calls), path=path, arg_spec=spec, arg_slots=tuple(slots))
        self.calls.append(call)
        # The same tensor twice stays the same tensor: attention asks "query is key".
        marked = [
            ENTER(tensor, call.index, index, [] if index else sizes)
            for index, tensor in enumerate(tensors)
        ]
        leaves = [
            marked[slot.index] if slot.kind == "tensor" else leaf
            for slot, leaf in zip(slots, leaves, strict=True)
        ]
        return call, pytree.tree_unflatten(leaves, spec)

    def _exit(self, call: Call, output: Any) -> Any:
        paths, spec = pytree.tree_flatten_with_path(output)
        tensors: list[Tensor] = []
        slots: list[Slot] = []
        for path, leaf in paths:
            if isinstance(leaf, Tensor):
                index = _position(tensors, leaf)
                slots.append(Slot(kind="tensor", index=index, accessors=_accessors(path)))
            else:
                # The trace has used the value already. An object that is no literal may hold traced
                # tensors, which must not outlive the trace.
                value = leaf if isinstance(leaf, _LITERALS) else None
                slots.append(Slot(kind="literal", value=value))
        call.out_spec, call.out_slots = spec, tuple(slots)
        marked = [EXIT(tensor, call.index, index) for index, tensor in enumerate(tensors)]
        leaves = [
            marked[slot.index] if slot.kind == "tensor" else leaf
            for slot, (_, leaf) in zip(slots, paths, strict=True)
        ]
        return pytree.tree_unflatten(leaves, spec)


def _position(tensors: list[Tensor], tensor: Tensor) -> int:
    """Index of this very tensor in the list, to which it is added where it is new."""
    for index, known in enumerate(tensors):
        if known is tensor:
            return index
    tensors.append(tensor)
    return len(tensors) - 1


def _unfit_container(spec: pytree.TreeSpec) -> str | None:
    """Name of the first container in the tree that a graph can't write down, or None."""
    if spec.is_leaf():
        return None
    if spec.type not in _ARGUMENT_CONTAINERS:
        return str(getattr(spec.type, "__name__", spec.type))
    return next(filter(None, map(_unfit_container, spec.children())), None)


def _accessors(path: tuple[Any, ...]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        ("attr", key.name) if isinstance(key, pytree.GetAttrKey) else ("item", _item(key))
        for key in path
    )


def _item(key: Any) -> Any:
    return key.idx if isinstance(key, pytree.SequenceKey) else key.key
