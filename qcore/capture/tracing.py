"""One run of ``torch.export`` over a module, with its leaf calls marked.

The batch, dimension 0 of the inputs that have the first one's size there, is traced as a symbol. An
example of batch 1 is doubled first, because export takes a size of 1 for a constant. Where the
symbol can't be kept, the module is traced for the example's shapes alone, and the result says why.
"""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .guard import Condition
from .markers import Call, Recorder
from .program import argument_names, flat_module
from .reasons import decides, reason_of
from .simplify import static_size

__all__ = ["Trace", "double_batch", "trace", "trace_static"]

# Warnings about what capture itself takes care of: attributes set in a forward are put back.
_EXPECTED_WARNINGS = (
    r"The tensor attributes? .* assigned during export",
    r"Detected \d+ fake tensors that are still alive after export",
)
# Loggers on which export says again what its exception says.
_NOISY_LOGGERS = (
    "torch.export._trace",
    "torch._export.non_strict_utils",
    "torch.fx.experimental.symbolic_shapes",
)


_FIXED = "the forward fixes the batch size"
_NO_BATCH = "the example inputs have no batch dimension"


@attrs.frozen(kw_only=True)
class Trace:
    """What export found.

    Args:
        module: the flat graph with markers in it; parameters, buffers and constants by
            ``get_attr``.
        constants: the tensors of the graph that are no parameters and buffers, by their name in it.
        calls: the marked calls of leaf instances.
        reached: names of the leaves that were called.
        unmarked: leaves that were called in a way that can't be marked: name and reason.
        aliases: for each leaf of the inputs, the position of an earlier one that is the same
            tensor.
        conditions: relations between symbolic sizes that the trace relies on.
        static: why the batch is a constant of the graph; None where it is a symbol.
    """

    module: fx.GraphModule
    constants: Mapping[str, Tensor]
    calls: tuple[Call, ...]
    reached: frozenset[str]
    unmarked: Mapping[str, str]
    aliases: tuple[int | None, ...]
    conditions: tuple[Condition, ...]
    static: str | None


def trace(
    root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: Mapping[str, nn.Module]
) -> Trace:
    """Export ``root``, which must be in eval mode, with a symbolic batch where that is possible.

    Args:
        root: the module.
        args: positional example inputs.
        kwargs: example inputs by keyword.
        leaves: instances to mark, by qualified name relative to ``root``.

    Raises:
        Exception: whatever export raises for a module that it can't trace.
    """
    try:
        doubled = double_batch(args, kwargs)
        found = _export(root, *(doubled or (args, kwargs)), leaves, dynamic=True)
    except GuardOnDataDependentSymNode:
        raise  # depends on values, so static shapes would not help
    except Exception as error:  # a forward may raise anything on symbolic shapes
        why = f"no symbolic batch: {reason_of(error)}"
    else:
        if found.static is None or doubled is None:
            return found
        why = found.static
    return trace_static(root, args, kwargs, leaves, why=why)


def trace_static(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Mapping[str, nn.Module],
    *,
    why: str,
) -> Trace:
    """Export ``root`` for the shapes of the example alone; ``why`` becomes :attr:`Trace.static`."""
    found = _export(root, args, kwargs, leaves, dynamic=False)
    return attrs.evolve(found, static=why)


def double_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The same inputs twice along dimension 0, or None where that size is not 1 for all of them."""
    shaped = [t for t in _tensors((args, kwargs)) if t.ndim]
    if not shaped or any(t.shape[0] != 1 for t in shaped):
        return None
    doubled = {id(t): torch.cat([t, t]) for t in shaped}  # the same tensor twice stays the same
    both: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
        Tensor, lambda t: doubled.get(id(t), t), (args, kwargs)
    )
    return both


def _aliases(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | None, ...]:
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(
        next((j for j in range(i) if leaves[j] is leaf and isinstance(leaf, Tensor)), None)
        for i, leaf in enumerate(leaves)
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _export(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Mapping[str, nn.Module],
    *,
    dynamic: bool,
) -> Trace:
    shapes = None
    batched = _batched(args, kwargs) if dynamic else []
    if batched:
        collection = ShapesCollection()  # type: ignore[no-untyped-call]
        for tensor in batched:
            collection[tensor] = {0: Dim.AUTO}
        shapes = collection.dynamic_shapes(root, args, kwargs)  # type: ignore[no-untyped-call]
    recorder = Recorder(leaves)
    with _quiet(), recorder.attached():
        program = torch.export.export(root, args, kwargs, dynamic_shapes=shapes, strict=False)
    return Trace(
        module=flat_module(program, argument_names(root, args, kwargs)),
        constants={k: v for k, v in program.constants.items() if isinstance(v, Tensor)},
        calls=tuple(recorder.calls),
        reached=frozenset(recorder.reached),
        unmarked=dict(recorder.unmarked),
        aliases=_aliases(args, kwargs),
        conditions=_conditions(program),
        static=None if _has_symbolic_input(program.graph) else _FIXED if batched else _NO_BATCH,
    )


def _batched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Inputs whose dimension 0 has the size of the first one's; 0 and 1 can't be symbols."""
    shaped = [t for t in _tensors((args, kwargs)) if t.ndim]
    if not shaped or shaped[0].shape[0] < 2:
        return []
    return [t for t in shaped if t.shape[0] == shaped[0].shape[0]]


def _has_symbolic_input(graph: fx.Graph) -> bool:
    values = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    return any(
        static_size(size) is None
        for value in values
        if isinstance(value, Tensor)
        for size in value.shape
    )


def _conditions(program: ExportedProgram) -> tuple[Condition, ...]:
    """What the forward asked of the symbolic sizes, in the user's code and in torch.nn.

    What torch's operations asked is left out: they are in the graph, and will ask again. That a
    size is not 0 or 1 is assumed without being asked, and so is no condition here.
    """
    values = (n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder")
    sizes: list[Any] = [s for v in values if isinstance(v, Tensor) for s in v.shape]
    symbols = [s for s in sizes if isinstance(s, torch.SymInt)]
    if not symbols:
        return ()
    known = symbols[0].node.shape_env
    conditions: dict[Any, Condition] = {}
    for guard in known.guards:
        frame = guard.sloc.framework_loc
        expression = known.replace(guard.expr)
        if expression.free_symbols and decides(getattr(frame, "filename", "<unknown>")):
            place = f"{frame.filename}:{frame.lineno}"
            conditions.setdefault(expression, Condition(expression=expression, place=place))
    return tuple(conditions.values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what export says; what the user's forward prints and warns comes through."""
    said = io.StringIO()
    partial_graph = ""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    for logger in loggers:
        logger.addFilter(_refuse)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    except Exception as error:
        # Export writes the graph it had so far to stderr, once for each of its layers.
        partial_graph = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(_refuse)
        rest = said.getvalue().replace(partial_graph, "") if partial_graph else said.getvalue()
        sys.stderr.write(rest)


def _refuse(record: logging.LogRecord) -> bool:
    return False
