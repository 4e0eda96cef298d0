"""What a captured graph may be called with.

A trace holds for the structure, the dtypes, the static sizes and the plain values of its example
inputs. Another image size or ``return_dict=False`` would silently run the wrong program, so a
captured graph checks its inputs first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..errors import CaptureError
from .simplify import static_size

__all__ = ["Condition", "Input", "InputGuard", "guard_of"]


# The value of a placeholder of a graph that was not traced: a tensor of any kind.
_UNKNOWN = object()


@attrs.frozen(kw_only=True)
class Input:
    """One leaf of the inputs of a captured graph.

    Args:
        name: the argument, followed by the way into it (``"batch['ids']"``).
        is_tensor: a tensor, not a plain value.
        dtype: of a tensor; None: any.
        shape: of a tensor; a symbol's name for a size that may change. Sizes of one name must
            agree. None: any shape.
        value: a plain value, which is part of the program.
        same_as: name of an earlier input that is the very same tensor. The program reads only one.
    """

    name: str
    is_tensor: bool
    dtype: torch.dtype | None = None
    shape: tuple[int | str, ...] | None = None
    value: Any = None
    same_as: str | None = None

    def describe(self) -> str:
        """Kind and shape, or the plain value.

        >>> Input(name="x", is_tensor=True, dtype=torch.float32, shape=("s0", 3, 32, 32)).describe()
        'float32 [s0, 3, 32, 32]'
        """
        if not self.is_tensor:
            return repr(self.value)
        kind = "tensor" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        sizes = "..." if self.shape is None else ", ".join(map(str, self.shape))
        return f"{kind} [{sizes}]"


@attrs.frozen(kw_only=True)
class Condition:
    """A relation between sizes that the forward asked for while it was traced.

    Args:
        expression: symbolic truth value over the names of sizes.
        place: ``file:line`` of the code that asked, or empty.
    """

    expression: Any
    place: str = ""

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it can be true for these sizes; they may not say all that it is about."""
        known = {s: sizes[s.name] for s in self.expression.free_symbols if s.name in sizes}
        return str(self.expression.subs(known)) != "False"

    def describe(self) -> str:
        """The relation, and where it comes from."""
        return f"{self.expression}" + (f" (asked at {self.place})" if self.place else "")


@attrs.frozen(kw_only=True)
class InputGuard:
    """A forward pre-hook that raises where a call does not fit what was captured.

    Register it on every module that takes a captured graph's place:
    ``module.register_forward_pre_hook(piece.guard, with_kwargs=True)``.

    Args:
        path: qualified name of the captured module, for messages.
        names: arguments by position and then by keyword, as the graph's ``forward`` names them.
        positional: how many of the names were given by position in the example.
        spec: tree of ``(args, kwargs)`` of the example.
        inputs: one entry for each leaf of it.
        conditions: what must hold between the sizes that may change.
        singles: names of sizes for which the module treats 1 in another way than the graph.
    """

    path: str
    names: tuple[str, ...]
    positional: int
    spec: pytree.TreeSpec = attrs.field(repr=False)
    inputs: tuple[Input, ...]
    conditions: tuple[Condition, ...] = ()
    singles: tuple[str, ...] = ()
    # Sizes that have passed the conditions, which are slow to work out.
    _passed: set[tuple[tuple[str, int], ...]] = attrs.field(
        factory=set, init=False, eq=False, repr=False
    )

    def __deepcopy__(self, memo: dict[int, Any]) -> "InputGuard":
        """Itself: it never changes, and trees of arguments don't copy quietly."""
        return self

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check the arguments of one call.

        Raises:
            CaptureError: an argument is missing, unknown, or of another structure, dtype, size or
                value than the captured one.
        """
        leaves = self._leaves(args, kwargs)
        sizes: dict[str, int] = {}
        tensors: dict[str, Any] = {}
        for expected, leaf in zip(self.inputs, leaves, strict=True):
            tensors[expected.name] = leaf
            if expected.same_as is not None and leaf is not tensors[expected.same_as]:
                raise CaptureError(
                    f"{self._where()}: input {expected.name} must be the same tensor as input "
                    f"{expected.same_as}, as it was when the graph was captured"
                )
            if not _fits(expected, leaf, sizes):
                raise CaptureError(
                    f"{self._where()}: input {expected.name} is {_describe(leaf)}, but the graph "
                    f"was captured for {expected.describe()}; call it with that, or capture again"
                )
        self._check_conditions(sizes)

    def at_least_two(self, symbol: str) -> "InputGuard":
        """This guard, which also refuses 1 for the size of this name."""
        return attrs.evolve(self, singles=(*self.singles, symbol))

    def _check_conditions(self, sizes: dict[str, int]) -> None:
        if not all(isinstance(size, int) for size in sizes.values()):
            return  # the graph itself is being traced
        key = tuple(sorted(sizes.items()))
        if key in self._passed:
            return
        broken = [c.describe() for c in self.conditions if not c.holds(sizes)]
        broken += [f"{name} > 1" for name in self.singles if sizes.get(name) == 1]
        if broken:
            said = ", ".join(f"{name}={size}" for name, size in key)
            raise CaptureError(
                f"{self._where()}: inputs with the sizes {said} take another way through the "
                f"forward than the captured one, for which {broken[0]}; capture with such inputs"
            )
        self._passed.add(key)

    def _where(self) -> str:
        return f"captured module '{self.path}'" if self.path else "captured model"

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        given = dict(zip(self.names, args, strict=False))
        unknown = [name for name in kwargs if name not in self.names or name in given]
        given.update(kwargs)
        missing = [name for name in self.names if name not in given]
        if len(args) > len(self.names) or unknown or missing:
            said = f"{len(args)} positional" + (f" and {', '.join(kwargs)}" if kwargs else "")
            raise CaptureError(
                f"{self._where()}: called with {said}; the example inputs gave "
                f"({', '.join(self.names)}): give exactly these, or capture again"
            )
        by_position = tuple(given[name] for name in self.names[: self.positional])
        by_keyword = {name: given[name] for name in self.names[self.positional :]}
        leaves, spec = pytree.tree_flatten((by_position, by_keyword))
        if spec != self.spec:
            raise CaptureError(
                f"{self._where()}: the inputs have the structure {spec}, but the graph was "
                f"captured for {self.spec}; call it with that, or capture again"
            )
        return leaves


def _fits(expected: Input, leaf: Any, sizes: dict[str, int]) -> bool:
    if not expected.is_tensor:
        return not isinstance(leaf, Tensor) and bool(leaf == expected.value)
    if not isinstance(leaf, Tensor) or expected.dtype not in (None, leaf.dtype):
        return False
    if expected.shape is None:
        return True
    if leaf.ndim != len(expected.shape):
        return False
    return all(
        sizes.setdefault(want, got) == got if isinstance(want, str) else want == got
        for want, got in zip(expected.shape, leaf.shape, strict=True)
    )


def _describe(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        # Arrays and the like would fill pages.
        plain = leaf is None or isinstance(leaf, bool | int | float | complex | str)
        return f"{leaf!r:.80}" if plain else f"a {type(leaf).__module__}.{type(leaf).__qualname__}"
    return Input(name="", is_tensor=True, dtype=leaf.dtype, shape=tuple(leaf.shape)).describe()


def guard_of(
    graph: fx.Graph,
    path: str,
    *,
    aliases: Sequence[int | None] = (),
    conditions: tuple[Condition, ...] = (),
    any_shape: bool = False,
) -> InputGuard:
    """The guard of an exported graph, from its argument tree and its placeholders.

    Args:
        graph: with the code generation of an export, and ``meta["val"]`` on its placeholders.
        path: qualified name of the captured module.
        aliases: for each input, the position of an earlier one that is the same tensor, or None.
        conditions: relations between the sizes.
        any_shape: shapes are not part of the program.
    """
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    names = tuple(info.orig_args)
    positional = info.in_spec.child(0).num_children
    keys = pytree.tree_flatten_with_path(
        pytree.tree_unflatten(range(len(placeholders)), info.in_spec)
    )[0]
    inputs: list[Input] = []
    for node, (key, index) in zip(placeholders, keys, strict=True):
        # The first two steps of the way: positional or keyword, and which one.
        which: Any = key[1]
        argument = names[which.idx] if isinstance(which, pytree.SequenceKey) else which.key
        alias = aliases[index] if aliases else None
        inputs.append(
            _input(
                f"{argument}{pytree.keystr(key[2:])}",
                node.meta.get("val", _UNKNOWN),
                None if alias is None else inputs[alias].name,
                any_shape,
            )
        )
    return InputGuard(
        path=path,
        names=names,
        positional=positional,
        spec=info.in_spec,
        inputs=tuple(inputs),
        conditions=() if any_shape else conditions,
    )


def _size(size: Any) -> int | str:
    """A size as a number, or as the name of its symbol."""
    number = static_size(size)
    return str(size.node.expr) if number is None else number


def _input(name: str, value: Any, same_as: str | None, any_shape: bool) -> Input:
    if value is _UNKNOWN:
        return Input(name=name, is_tensor=True)
    if not isinstance(value, Tensor):
        return Input(name=name, is_tensor=False, value=value)
    shape = tuple(_size(size) for size in value.shape)
    return Input(
        name=name,
        is_tensor=True,
        dtype=value.dtype,
        shape=None if any_shape else shape,
        same_as=same_as,
    )
