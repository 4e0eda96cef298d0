"""Capture a model whole, or else its largest submodules that can be, or else single layers."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..errors import CaptureError
from .markers import is_torch_layer
from .piece import Piece, build_piece, lone_leaf
from .reasons import reason_of
from .tracing import Trace, double_batch, trace, trace_static
from .untouched import untouched
from .verification import difference

__all__ = ["Capture", "capture"]

_UNREACHED = "not reached by the example inputs"
_UNUSED = "called, but its results are not used"
_LONE = "the forward treats a batch of 1 in another way"

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@attrs.frozen(kw_only=True)
class Capture:
    """What was captured of a model, and what was not.

    Args:
        pieces: disjoint parts, in the order of the model's modules; one piece of path ``""`` where
            the whole could be captured.
        failures: qualified name (``""`` for the whole) and one line that says why, for each module
            that could not be captured or that the example inputs don't reach.
    """

    pieces: tuple[Piece, ...]
    failures: tuple[tuple[str, str], ...]


@attrs.define
class _Seen:
    """The calls of one module in a run: the inputs of the first, and the shapes of all."""

    first: _Inputs
    shapes: list[_Inputs]


def capture(
    model: nn.Module,
    example_args: tuple[Any, ...] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    is_leaf: Callable[[nn.Module], bool],
) -> Capture:
    """Graphs of ``model`` that call its own module instances.

    Three rungs, each tried where the one before fails: the whole model; its largest submodules that
    can be captured, from the outside in; single leaves. Without example inputs, single leaves only.

    The graphs are traced in eval mode. They run in train mode too: the instances they call do then
    what they do in training, while functions between them stay as they are in eval mode (a
    functional dropout is gone, and so are gradient stops). Batch size 1 to n is a symbol where the
    model allows it.

    Args:
        model: left exactly as it is. Its instances are in the graphs; pass a deep copy to have
            others.
        example_args: positional example inputs. Tensors of any values; shapes and dtypes count.
        example_kwargs: example inputs by keyword.
        is_leaf: whether calls of this instance are to stay calls. They do too for layers of
            torch.nn without children.

    Raises:
        CaptureError: the model itself fails on the example inputs.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> found = capture(model, (torch.ones(2, 4),), is_leaf=lambda m: isinstance(m, nn.Linear))
    >>> [n.target for n in found.pieces[0].graph.graph.nodes if n.op == "call_module"]
    ['0', '1']
    >>> found.pieces[0].graph(torch.ones(5, 4)).shape
    torch.Size([5, 8])
    """
    if not isinstance(example_args, tuple | list):
        raise CaptureError(
            f"example_args is a {type(example_args).__name__}; give a tuple of inputs, such as (x,)"
        )
    ladder = _Ladder(model, is_leaf)
    if example_args or example_kwargs:
        ladder.climb_down(*_distinct(tuple(example_args), dict(example_kwargs or {})))
    else:
        ladder.failures.append(("", "no example inputs"))
        ladder.take_leaves(model)
    return Capture(pieces=tuple(ladder.pieces), failures=tuple(ladder.failures))


def _distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
    """The inputs with a tensor that is given twice copied: a trace would take both for one."""
    seen: set[int] = set()

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) in seen:
            return tensor.clone()
        seen.add(id(tensor))
        return tensor

    distinct: _Inputs = pytree.tree_map_only(Tensor, once, (args, kwargs))
    return distinct


class _Ladder:
    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> None:
        self.model = model
        self.is_leaf = is_leaf
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        self.done: set[nn.Module] = set()
        self.pieces: list[Piece] = []
        self.failures: list[tuple[str, str]] = []

    def climb_down(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The whole model, or its parts."""
        try:
            self.accept(*self.attempt(self.model, args, kwargs))
        except Exception as error:  # export, and the forward in it, may raise anything
            self.failures.append(("", reason_of(error)))
            self.descend(self.model, _Runs(self.model, args, kwargs))

    def attempt(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Piece, Trace]:
        """One module as one piece."""
        path, *aliases = self.names[module]
        leaves = {
            name: part
            for name, part in module.named_modules()
            if (self.is_leaf(part) or is_torch_layer(part))
            and not isinstance(part, torch.jit.ScriptModule)
        }
        rung = "module" if "" in leaves else "submodule" if path else "whole"
        with untouched(module):
            found = trace(module, args, kwargs, leaves)
        piece = build_piece(module, found, path=path, aliases=tuple(aliases), rung=rung)
        why = difference(module, piece.graph, args, kwargs)
        if why is not None and piece.static is None and double_batch(args, kwargs) is not None:
            with untouched(module):
                found = trace_static(module, args, kwargs, leaves, why=_LONE)
            piece = build_piece(module, found, path=path, aliases=tuple(aliases), rung=rung)
            why = difference(module, piece.graph, args, kwargs)
        if why is not None:
            raise CaptureError(f"the graph does not compute what the module does: {why}")
        return _checked_for_one(piece, module, args, kwargs), found

    def accept(self, piece: Piece, found: Trace) -> None:
        """Keep a piece, and note what of its module it leaves out."""
        self.keep(piece)
        self.failures.extend((piece.qualified(name), why) for name, why in found.unmarked.items())
        module = self.model.get_submodule(piece.path)
        used = {id(parameter) for parameter in piece.graph.parameters()}
        for name in _unused(module, used):
            called = any(leaf == name or leaf.startswith(f"{name}.") for leaf in found.reached)
            self.failures.append((_join(piece.path, name), _UNUSED if called else _UNREACHED))

    def keep(self, piece: Piece) -> None:
        piece.graph.register_forward_pre_hook(piece.guard, with_kwargs=True)
        self.pieces.append(piece)

    def descend(self, module: nn.Module, runs: "_Runs") -> None:
        """The children of a module that could not be captured."""
        for child in module.children():
            if child in self.done:
                continue
            self.done.add(child)
            path = self.names[child][0]
            if isinstance(child, torch.jit.ScriptModule):
                self.failures.append((path, "a TorchScript module can't be captured"))
            elif not runs.reach(child):
                if any(runs.reach(part) for part in child.modules()):
                    self.descend(child, runs)
                elif next(child.parameters(), None) is not None:
                    self.failures.append((path, _UNREACHED))
            elif self.is_leaf(child) or not is_torch_layer(child):
                self.take(child, runs)

    def take(self, module: nn.Module, runs: "_Runs") -> None:
        """A submodule that is called: as one piece, or its children, or a bare call of a leaf."""
        path, *aliases = self.names[module]
        why = _not_alone(module) if self.is_leaf(module) else None
        if why is not None:
            self.failures.append((path, why))
            return
        try:
            self.accept(*self.fitting(module, runs))
        except Exception as error:  # as above
            if not self.is_leaf(module):
                self.failures.append((path, reason_of(error)))
                self.descend(module, runs)
            elif runs.with_one_tensor(module):
                self.keep(lone_leaf(module, path=path, aliases=tuple(aliases)))
            else:
                self.failures.append((path, reason_of(error)))

    def fitting(self, module: nn.Module, runs: "_Runs") -> tuple[Piece, Trace]:
        """The piece of a submodule, if it fits all the calls that the run made of it."""
        seen = runs.doubled.get(module)
        if seen is not None:
            try:
                piece, found = self.attempt(module, *seen.first)
            except Exception:  # may still go with the batch size of the example
                seen = None
            else:
                if piece.static is not None:
                    seen = None
        if seen is None:
            seen = runs.plain[module]
            piece, found = self.attempt(module, *seen.first)
        for args, kwargs in seen.shapes:
            piece.guard(module, args, kwargs)
        return piece, found

    def take_leaves(self, module: nn.Module) -> None:
        """Bare calls of the outermost leaves."""
        if module in self.done:
            return
        self.done.add(module)
        path, *aliases = self.names[module]
        why = _not_alone(module) if path else None
        if why is not None:
            self.failures.append((path, why))
            return
        if self.is_leaf(module):
            self.keep(lone_leaf(module, path=path, aliases=tuple(aliases)))
            return
        for child in module.children():
            self.take_leaves(child)


def _not_alone(module: nn.Module) -> str | None:
    """Why a layer, or those in it, can't be replaced without the forward around it."""
    if isinstance(module, nn.MultiheadAttention):
        return (
            "attention computes with the weights of its layers itself, so they can't be replaced "
            "one by one; give example inputs with which the module around it can be captured"
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return (
            "a forward often reads the table of an embedding itself, so it can't be replaced "
            "alone; give example inputs with which the module around it can be captured"
        )
    return None


def _checked_for_one(
    piece: Piece, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Piece:
    """The piece, which refuses a batch of 1 where the module treats that in another way."""
    symbols = [i.shape[0] if i.shape else None for i in piece.guard.inputs]
    symbol = next((s for s in symbols if isinstance(s, str)), None)
    if piece.static is not None or symbol is None:
        return piece
    leaves, spec = pytree.tree_flatten((args, kwargs))
    one = [leaf[:1] if s == symbol else leaf for s, leaf in zip(symbols, leaves, strict=True)]
    one_args, one_kwargs = pytree.tree_unflatten(one, spec)
    try:
        fits = difference(module, piece.graph, one_args, one_kwargs) is None
    except Exception:  # the module itself does not take a batch of 1
        return piece
    return piece if fits else attrs.evolve(piece, guard=piece.guard.at_least_two(symbol))


class _Runs:
    """Plain runs of the model that show how it calls its submodules.

    An example of batch 1 is run as a batch of 2 too, so that the batch of what goes into a
    submodule can be told from other sizes of 1.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.plain: dict[nn.Module, _Seen] = {}
        self.doubled: dict[nn.Module, _Seen] = {}
        try:
            self.plain = _record(model, args, kwargs)
        except Exception as error:
            raise CaptureError(
                f"the model fails on the example inputs: {reason_of(error)}; give inputs that it "
                "takes"
            ) from error
        twice = double_batch(args, kwargs)
        if twice is not None:
            with suppress(Exception):  # the model is for single examples
                self.doubled = _record(model, *twice)

    def reach(self, module: nn.Module) -> bool:
        return module in self.plain

    def with_one_tensor(self, module: nn.Module) -> bool:
        return all(
            len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
            for args, kwargs in self.plain[module].shapes
        )


def _record(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[nn.Module, _Seen]:
    """Run the model once, and note the inputs of each call of a submodule that returns."""
    calls: dict[nn.Module, _Seen] = {}
    begun: dict[nn.Module, list[_Inputs]] = {}

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begun.setdefault(module, []).append((args, kwargs))

    # The inputs of the first hook, not of the last: other hooks may change them in between.
    def end(module: nn.Module, *results: Any) -> None:
        inputs = begun[module].pop()
        calls.setdefault(module, _Seen(inputs, [])).shapes.append(_shapes(*inputs))

    with untouched(model), ExitStack() as stack:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                first = module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
                stack.callback(first.remove)
                stack.callback(module.register_forward_hook(end).remove)
        model(*args, **kwargs)
    return calls


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
    """The same inputs without values; a tensor that is given twice still is."""
    empty: dict[int, Tensor] = {}

    def shape_of(tensor: Tensor) -> Tensor:
        if id(tensor) not in empty:
            # One element of memory. Not on the meta device, which some containers refuse.
            empty[id(tensor)] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        return empty[id(tensor)]

    shapes: _Inputs = pytree.tree_map_only(Tensor, shape_of, (args, kwargs))
    return shapes


def _unused(module: nn.Module, used: Container[int], name: str = "") -> Iterator[str]:
    """Names of the outermost submodules that have parameters and of which none is used."""
    parameters = list(module.parameters())
    if parameters and not any(id(parameter) in used for parameter in parameters):
        yield name
    elif parameters:
        for child_name, child in module.named_children():
            yield from _unused(child, used, _join(name, child_name))


def _join(path: str, name: str) -> str:
    return ".".join(filter(None, (path, name)))
