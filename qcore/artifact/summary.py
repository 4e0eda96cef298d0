"""What an artifact says about itself: sizes, operations, layers, and where its parts came from."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ..errors import ArtifactError
from ..provenance import Contribution
from .dtypes import DTYPES
from .manifest import Manifest, NodeData, ProgramData, TensorSpec
from .operations import operation
from .reading import read_manifest_of

if TYPE_CHECKING:
    from ..host import PluginHost

__all__ = ["ArtifactInfo", "LayerSize", "OriginInfo", "inspect_artifact"]

_FLOAT_BYTES = 4
# A layer is the operation that gives its result, what prepares its weight, and what may end it.
_WEIGHT_STEPS = ("qcore.unpack.default", "qcore.dequantize_block.default")
_LAST_STEPS = ("aten.clamp.default", "aten.add.Tensor")
# Arguments that a float layer has too; scales and tables it has not.
_FLOAT_ARGUMENTS = ("w", "q", "packed", "weight", "bias")


@attrs.frozen(kw_only=True)
class LayerSize:
    """One layer and the bytes of its tensors.

    Args:
        program: path of its program.
        name: of the layer.
        operation: that gives its result.
        weight, inputs, output: schemes, by the plan; empty where it has no row of that name.
        scale, zero_point: of its result; None where that is float.
        float_bytes: what its weight and bias take in float32.
        bytes: what its tensors take here.
    """

    program: str
    name: str
    operation: str
    weight: str
    inputs: tuple[str, ...]
    output: str
    scale: float | None
    zero_point: int | None
    float_bytes: int
    bytes: int


@attrs.frozen(kw_only=True)
class OriginInfo:
    """A contribution that had a part in the program, and whether it is here.

    Args:
        contribution: kind, name, plug-in, distribution and version.
        installed: the version of the distribution that is installed here; None if it is not.
    """

    contribution: Contribution
    installed: str | None

    @property
    def matches(self) -> bool:
        """Whether the version that is installed is the one that was used."""
        return self.installed == self.contribution.version


@attrs.frozen(kw_only=True)
class ArtifactInfo:
    """An artifact in figures.

    Args:
        folder: of it.
        format_version: of the manifest.
        qcore, torch: versions that wrote it.
        recipe: its name.
        preset: that it starts from; empty where the configuration was given in Python.
        backend: it was prepared for.
        numerics: key of the arithmetic contract.
        programs: their paths; ``""`` is the whole model.
        operations: how often each is called.
        layers: of all programs, in the order of execution.
        origins: the contributions of plug-ins.
        float_bytes: of all tensors of the model, weights and biases of quantized layers in float32.
        bytes: of all tensors of the model here.
        golden_bytes: of the golden inputs and results.
        file_bytes: of the tensor file.
    """

    folder: str
    format_version: int
    qcore: str
    torch: str
    recipe: str
    preset: str
    backend: str
    numerics: str
    programs: tuple[str, ...]
    operations: Mapping[str, int]
    layers: tuple[LayerSize, ...]
    origins: tuple[OriginInfo, ...]
    float_bytes: int
    bytes: int
    golden_bytes: int
    file_bytes: int


def inspect_artifact(
    folder: str | os.PathLike[str], *, host: "PluginHost | None" = None
) -> ArtifactInfo:
    """Read what an artifact says about itself.

    Only the manifest is read and checked; :func:`qcore.verify` reads the tensors and runs the
    programs.

    Args:
        folder: the artifact.
        host: whose plug-ins are compared with those that were used; by default those installed.

    Raises:
        ArtifactError: the manifest is missing, malformed, damaged or edited.
    """
    from ..host import default_host

    manifest = read_manifest_of(folder)
    sizes = {name: _bytes(spec) for name, spec in manifest.tensors.items()}
    own = set(manifest.state.values())
    quantized: set[str] = set()
    layers: list[LayerSize] = []
    for path, program in manifest.programs.items():
        layers += _layers(path, program, manifest, sizes, quantized)
        own.update(program.tensors.values())
    installed = {
        (info.plugin, info.distribution): info.version
        for info in (host or default_host()).plugins(activate=False)
    }
    return ArtifactInfo(
        folder=str(Path(folder)),
        format_version=manifest.format_version,
        qcore=manifest.qcore,
        torch=manifest.torch,
        recipe=manifest.recipe.name,
        preset="" if manifest.recipe.qconfig is not None else manifest.recipe.preset,
        backend=manifest.plan.backend,
        numerics=manifest.numerics.key,
        programs=tuple(manifest.programs),
        operations=dict(
            sorted(
                Counter(
                    node.target
                    for program in manifest.programs.values()
                    for node in program.nodes
                    if node.op == "call"
                ).items()
            )
        ),
        layers=tuple(layers),
        origins=tuple(
            OriginInfo(contribution=c, installed=installed.get((c.plugin, c.distribution)))
            for c in manifest.origins
        ),
        float_bytes=sum(layer.float_bytes for layer in layers)
        + sum(sizes[name] for name in own - quantized),
        bytes=sum(sizes[name] for name in own),
        golden_bytes=sum(size for name, size in sizes.items() if name not in own),
        file_bytes=manifest.tensor_file.bytes,
    )


def _bytes(spec: TensorSpec) -> int:
    dtype = DTYPES.get(spec.dtype)
    return 0 if dtype is None else math.prod(spec.shape) * dtype.itemsize


def _layers(
    path: str,
    program: ProgramData,
    manifest: Manifest,
    sizes: Mapping[str, int],
    counted: set[str],
) -> Iterator[LayerSize]:
    """The layers of a program; a tensor that several share counts for the first, by ``counted``."""
    nodes = {node.name: node for node in program.nodes}
    rows = {row.name: row for row in manifest.plan.rows}
    for layer in program.layers:
        node = nodes.get(layer.node)
        float_bytes = own_bytes = 0
        for reader, argument, target in _tensors_of(node, nodes):
            name = program.tensors.get(target, "")
            if name in sizes and name not in counted:
                counted.add(name)
                own_bytes += sizes[name]
                if argument in _FLOAT_ARGUMENTS:
                    float_bytes += _values(manifest.tensors[name], reader) * _FLOAT_BYTES
        row = rows.get(layer.name)
        yield LayerSize(
            program=path,
            name=layer.name,
            operation=node.target if node is not None else "",
            weight=row.weight if row is not None else "",
            inputs=row.inputs if row is not None else (),
            output=row.output if row is not None else "",
            scale=layer.scale,
            zero_point=layer.zero_point,
            float_bytes=float_bytes,
            bytes=own_bytes,
        )


def _values(spec: TensorSpec, reader: NodeData) -> int:
    """Number of values of a weight or bias; packed ones are more than their bytes."""
    if reader.target == "qcore.unpack.default" and spec.shape and type(reader.args[-1]) is int:
        return math.prod(spec.shape[:-1]) * reader.args[-1]
    return math.prod(spec.shape)


def _tensors_of(
    node: NodeData | None, nodes: Mapping[str, NodeData]
) -> Iterator[tuple[NodeData, str, str]]:
    """The tensors of a layer: the call that reads each, the argument's name, and the target."""
    pending = [node]
    # A file may be edited, so no chain may go round: each call is looked at once.
    seen: set[str] = set()
    while pending:
        call = pending.pop()
        if call is None or call.op != "call" or call.name in seen:
            continue
        seen.add(call.name)
        for i, (argument, value) in enumerate(
            zip(_arguments(call.target), call.args, strict=False)
        ):
            source = nodes.get(str(value.get("node"))) if isinstance(value, dict) else None
            if source is None:
                continue
            if source.op == "tensor":
                yield call, argument, source.target
            elif source.target in _WEIGHT_STEPS or (call.target in _LAST_STEPS and i == 0):
                pending.append(source)


def _arguments(name: str) -> list[str]:
    try:
        schema = operation(name).schema
    except ArtifactError:
        return []
    return [] if schema is None else [argument.name for argument in schema.arguments]
