"""Counts the integers at which a QFloat model and its program differ, layer by layer."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn

from .codegen import SharedGraphModule, shared_codegen
from .conversion import ProgramInfo, programs
from .errors import QuantizationError
from .fake_quantize import FakeQuantize
from .op import QFloatOp
from .preparation import info_of, is_qfloat, positional
from .progressbar import progress

__all__ = ["Fidelity", "count_differences", "layer_values"]


@attrs.frozen(kw_only=True)
class Fidelity:
    """The outcome of a comparison.

    Args:
        compared: number of values compared; integers, and floats where a layer leaves them.
        differing: number of those that differ.
        layers: both numbers by layer.
    """

    compared: int
    differing: int
    layers: Mapping[str, tuple[int, int]]


def layer_values(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The result of each quantized layer of a QFloat model or a program for one batch.

    Args:
        model: from :func:`qcore.prepare` (its mode is used as it is) or :func:`qcore.convert`.

    Returns:
        By layer, integers (in float32 for QFloat, in their storage dtype for Q), or the float
        result of a layer that is not quantized again. A layer of a module that is called several
        times within a model that was not captured whole keeps the values of the last call.
    """
    return _Watched(model)(args, kwargs)[1]


class _Keep(nn.Module):
    """Puts what passes through it into a dictionary."""

    def __init__(self, values: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.values = values
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        self.values[self.name] = x
        return x


class _Watched:
    """A QFloat model or a program that shows the results of its layers."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[str, Tensor] = {}
        self.qfloat = is_qfloat(model)
        self.model = model if self.qfloat else _instrumented(model, self.values)

    def __call__(self, args: Any, kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """Output for one batch, and the result of each quantized layer."""
        self.values.clear()
        with torch.no_grad():
            if not self.qfloat:
                return self.model(*args, **kwargs), dict(self.values)
            handles = [
                module.register_forward_hook(_keeping(self.values, name))
                for name, module in _layers(self.model)
            ]
            try:
                return self.model(*args, **kwargs), dict(self.values)
            finally:
                for handle in handles:
                    handle.remove()


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each layer of a QFloat model by the name that its program knows it by."""
    for graph in model.modules():
        if isinstance(graph, fx.GraphModule):
            for node in graph.graph.nodes:
                if node.op == "call_module" and "qcore_name" in node.meta:
                    yield node.meta["qcore_name"], graph.get_submodule(str(node.target))


def _keeping(values: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        quantizer = module.output_quantizer if isinstance(module, QFloatOp) else module
        if isinstance(quantizer, FakeQuantize):
            p = quantizer.qparams()
            output = torch.round(output / p.scale) + p.zero_point
        values[name] = output.detach()

    return keep


def _instrumented(model: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """A copy of a model with programs, sharing their tensors, that keeps the results of layers."""
    found = programs(model)
    copies = {path: _with_keepers(program, values) for path, program in found.items()}
    if "" in copies:
        return copies[""]
    memo = {id(found[path]): new for path, new in copies.items()}
    return copy.deepcopy(model, memo)


def _with_keepers(program: fx.GraphModule, values: dict[str, Tensor]) -> fx.GraphModule:
    info: ProgramInfo = program.meta["qcore"]
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(program.graph, places)
    graph.output(output)
    graph.set_codegen(shared_codegen(program.graph))
    by_name = {old.name: new for old, new in places.items()}
    root: dict[str, Any] = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    for number, layer in enumerate(info.layers):
        node = by_name[layer.node]
        with graph.inserting_after(node):
            graph.call_module(f"keep_{number}", (node,))
        root[f"keep_{number}"] = _Keep(values, layer.name)
    return SharedGraphModule(root, graph, class_name="Q")


def count_differences(
    qfloat: nn.Module,
    q: nn.Module,
    batches: Iterable[Any],
    *,
    watch: Callable[[Any, Any, Any], None] | None = None,
) -> Fidelity:
    """Compares every value of every quantized layer of QFloat in eval mode and Q.

    Args:
        qfloat: calibrated, from :func:`qcore.prepare`; put into eval mode for the comparison.
        q: its program.
        batches: as for :func:`qcore.calibrate`.
        watch: called with each batch and the outputs of QFloat and Q.

    Returns:
        Fidelity; ``differing == 0`` is what qcore promises.

    Raises:
        QuantizationError: no batch at all, so that nothing was compared.
    """
    info = info_of(qfloat)
    layers: dict[str, tuple[int, int]] = {}
    watched_qfloat, watched_q = _Watched(qfloat), _Watched(q)
    modes = {module: module.training for module in qfloat.modules()}
    qfloat.eval()
    try:
        for batch in progress(batches, label="compare QFloat and Q"):
            args, kwargs = positional(batch, info.arity)
            left_output, left = watched_qfloat(args, kwargs)
            right_output, right = watched_q(args, kwargs)
            if watch is not None:
                watch(batch, left_output, right_output)
            for name in left.keys() | right.keys():
                compared, differing = layers.get(name, (0, 0))
                a, b = left.get(name), right.get(name)
                if a is None or b is None:
                    missing = (a if a is not None else b).numel()  # type: ignore[union-attr]
                    layers[name] = (compared + missing, differing + missing)
                    continue
                different = int((a != b.to(a.dtype)).sum())
                layers[name] = (compared + a.numel(), differing + different)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not layers:
        raise QuantizationError(
            "the comparison got no batch; give an iterable of inputs that is not empty (a "
            "generator "
            "can be used only once)"
        )
    return Fidelity(
        compared=sum(c for c, _ in layers.values()),
        differing=sum(d for _, d in layers.values()),
        layers=dict(sorted(layers.items())),
    )
