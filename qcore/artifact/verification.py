"""Replaying the golden inputs of an artifact on this machine, and counting what differs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, fx, nn

from ..backend import lower
from ..conversion import ProgramInfo
from ..errors import ArtifactError, BackendError
from .golden import decode_leaves, digest_layer
from .manifest import Golden
from .reading import read_artifact
from .replay import Replay, call_leaves, output_leaves, replay

if TYPE_CHECKING:
    from ..host import PluginHost

__all__ = ["LayerCheck", "Verification", "verify"]

_OUTPUT = "(output)"


@attrs.frozen(kw_only=True)
class LayerCheck:
    """One layer, or one result of a program, against the golden values.

    Args:
        program: path of the program.
        name: of the layer; ``"(output)"``, with a number where there are several, is a result.
        compared: number of its values.
        differing: how many of them differ; None: they differ, and how many can't be told, because
            of a layer's values only a checksum is kept.
        largest: the largest difference, in steps of the scale for integers; None where it can't be
            told.
    """

    program: str
    name: str
    compared: int
    differing: int | None
    largest: float | None

    @property
    def equal(self) -> bool:
        """Whether every value is the golden one, bit by bit."""
        return self.differing == 0


@attrs.frozen(kw_only=True)
class Verification:
    """What :func:`verify` found.

    Args:
        folder: of the artifact.
        backend: that ran it.
        checks: by program, layer by layer in the order of execution, then the results. Layers of a
            backend that does not show its values inside are not among them.
    """

    folder: str
    backend: str
    checks: tuple[LayerCheck, ...]

    @property
    def equal(self) -> bool:
        """Whether every value of every check is the golden one."""
        return all(check.equal for check in self.checks)

    @property
    def first(self) -> LayerCheck | None:
        """The first layer or result that differs."""
        return next((check for check in self.checks if not check.equal), None)


def verify(
    folder: str | os.PathLike[str],
    backend: str = "reference",
    *,
    host: "PluginHost | None" = None,
) -> Verification:
    """Run an artifact on its golden inputs here, and compare with what it gave when it was saved.

    The integers are the same on every machine. Parts of a network that stay in float (a softmax)
    may be rounded otherwise by another processor, and integers computed from them then differ too.

    Args:
        folder: the artifact.
        backend: what to run it on.
        host: plug-ins to find the backend in; by default those installed.

    Raises:
        ArtifactError: as for :func:`qcore.load`.
        BackendError: the backend is not available, has another arithmetic contract, or fails.
    """
    artifact = read_artifact(folder)
    checks: list[LayerCheck] = []
    for path, program in artifact.programs.items():
        golden = artifact.manifest.programs[path].golden
        leaves = decode_leaves(golden.inputs, artifact.tensors, "golden.inputs")
        outputs = decode_leaves(golden.outputs, artifact.tensors, "golden.outputs")
        lowered = lower(program, backend, host=host)
        checks += _check_program(path, program, lowered, golden, leaves, outputs)
    return Verification(folder=str(artifact.folder), backend=backend, checks=tuple(checks))


def _check_program(
    path: str,
    program: fx.GraphModule,
    lowered: nn.Module,
    golden: Golden,
    leaves: Sequence[Any],
    outputs: Sequence[Any],
) -> list[LayerCheck]:
    info: ProgramInfo = program.meta["qcore"]
    checks: list[LayerCheck] = []
    try:
        if isinstance(lowered, fx.GraphModule) and _shows_layers(lowered, info):
            ran = replay(lowered, info.layers, leaves)
            results = ran.outputs
            checks += _check_layers(path, program, ran, golden, leaves)
        else:
            results = output_leaves(call_leaves(program, lowered, leaves))
    # A kernel can fail on values where shapes and dtypes were right: an index beyond its table.
    except Exception as error:
        raise _failure(path, program, leaves, error) from error
    if len(results) != len(outputs):
        raise BackendError(
            f"the lowered program gives {len(results)} results, the program {len(outputs)}"
        )
    for i, (got, wanted) in enumerate(zip(results, outputs, strict=True)):
        differing, largest = _compare(got, wanted)
        checks.append(
            LayerCheck(
                program=path,
                name=_OUTPUT if len(outputs) == 1 else f"{_OUTPUT[:-1]} {i})",
                compared=wanted.numel() if isinstance(wanted, Tensor) else 1,
                differing=differing,
                largest=largest,
            )
        )
    return checks


def _failure(
    path: str, program: fx.GraphModule, leaves: Sequence[Any], error: Exception
) -> ArtifactError | BackendError:
    """Whose fault it is that a lowered program fails: the backend's if the reference does not."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        replay(program, program.meta["qcore"].layers, leaves)
    except Exception:
        return ArtifactError(f"program {path!r} can't run on its golden inputs: {said}")
    return BackendError(f"program {path!r} runs on the reference kernels, but here: {said}")


def _check_layers(
    path: str, program: fx.GraphModule, ran: Replay, golden: Golden, leaves: Sequence[Any]
) -> Iterator[LayerCheck]:
    layers = program.meta["qcore"].layers
    reference: Replay | None = None
    for i, (layer, record, value) in enumerate(zip(layers, golden.layers, ran.layers, strict=True)):
        differing: int | None = 0
        largest: float | None = 0.0
        if digest_layer(value) != record:
            # Where the reference still has the golden values, the differing ones can be counted.
            reference = reference or replay(program, layers, leaves)
            known = digest_layer(reference.layers[i]) == record
            differing, largest = _compare(value, reference.layers[i]) if known else (None, None)
        yield LayerCheck(
            program=path,
            name=layer.name,
            compared=value.numel(),
            differing=differing,
            largest=largest,
        )


def _shows_layers(lowered: fx.GraphModule, info: ProgramInfo) -> bool:
    """Whether a lowered program still has every layer as a node of its own."""
    nodes = {node.name for node in lowered.graph.nodes}
    return all(layer.node in nodes for layer in info.layers)


def _compare(got: Any, wanted: Any) -> tuple[int, float | None]:
    """Number of values that differ in their bits, and the largest difference."""
    if not isinstance(got, Tensor) or not isinstance(wanted, Tensor):
        return int(got != wanted), None
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return wanted.numel(), None
    bits: Mapping[int, torch.dtype] = {
        1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64,
    }  # fmt: skip
    a, b = got.contiguous(), wanted.contiguous()
    width = bits[a.element_size()]
    different = a.view(width) != b.view(width)
    count = int(different.sum())
    if not count:
        return 0, 0.0
    return count, float((a.double() - b.double()).abs()[different].max())
