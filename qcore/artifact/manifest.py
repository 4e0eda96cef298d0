"""The records of a manifest, and the file they are written to.

``manifest.json`` is data: text, numbers, lists and tables, of which :mod:`qcore.artifact.records`
reads exactly the fields declared here. Its last field is the sha256 of all others.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs

from ..conversion import Layer
from ..errors import ArtifactError
from ..numerics import Numerics
from ..planning import Plan
from ..provenance import Contribution
from ..recipe import Recipe
from .records import from_data, to_data
from .strict_json import check_form, parse, render

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "TENSORS_FILE",
    "ConditionData",
    "Golden",
    "GoldenLayer",
    "InputSpec",
    "Manifest",
    "NodeData",
    "ProgramData",
    "Signature",
    "TensorFile",
    "TensorSpec",
    "read_manifest",
    "write_manifest",
]

FORMAT = "qcore-artifact"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TENSORS_FILE = "tensors.safetensors"


@attrs.frozen(kw_only=True)
class TensorSpec:
    """One tensor of the tensor file.

    Args:
        dtype: its name, such as ``"int8"``.
        shape: its sizes.
        order: its dimensions from the slowest to the fastest in memory; None: as they are numbered.
            Kernels of floats may add up in another order for another layout.
        sha256: of its bytes, row-major in the order of ``shape``, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None
    sha256: str


@attrs.frozen(kw_only=True)
class TensorFile:
    """Size in bytes and sha256 of the tensor file."""

    bytes: int
    sha256: str


@attrs.frozen(kw_only=True)
class NodeData:
    """One node of a program.

    Args:
        name: unique in the program.
        op: ``"input"``, ``"tensor"``, ``"call"`` or ``"output"``.
        target: of an input its name, of a tensor its name in the program, of a call the operation.
        args, kwargs: as :mod:`qcore.artifact.values` writes them.
    """

    name: str
    op: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Signature:
    """How a program is called.

    Args:
        names: its arguments.
        positional: how many of them may be given by position.
        inputs: tree of ``(args, kwargs)``, as :mod:`qcore.artifact.structure` writes it.
        outputs: tree of the result; None: the result as the graph gives it.
    """

    names: tuple[str, ...]
    positional: int
    inputs: Any
    outputs: Any


@attrs.frozen(kw_only=True)
class InputSpec:
    """What one input of a program, one leaf of its arguments, may be.

    Args:
        name: for messages.
        tensor: whether it is a tensor; otherwise a plain value that is part of the program.
        dtype: of a tensor; None: any.
        shape: of a tensor; a size that may change (the batch) by a name, the same name being the
            same size. None: any.
        value: the plain value.
        same_as: name of an earlier input that must be the very same tensor.
    """

    name: str
    tensor: bool
    dtype: str | None
    shape: tuple[int | str, ...] | None
    value: Any
    same_as: str | None


@attrs.frozen(kw_only=True)
class ConditionData:
    """A relation between sizes that may change, as :mod:`qcore.artifact.conditions` writes it.

    Args:
        expression: the tree.
        place: ``file:line`` of the model's code that asked for it, or empty.
    """

    expression: Any
    place: str


@attrs.frozen(kw_only=True)
class GoldenLayer:
    """Dtype, shape and sha256 of the result of a layer, as of a :class:`TensorSpec`."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@attrs.frozen(kw_only=True)
class Golden:
    """One call of a program and its results.

    Args:
        inputs: each leaf of the arguments: ``{"tensor": name}`` or a plain value.
        layers: the result of each layer of the program, in their order.
        outputs: each leaf of the result, like ``inputs``.
    """

    inputs: tuple[Any, ...]
    layers: tuple[GoldenLayer, ...]
    outputs: tuple[Any, ...]


@attrs.frozen(kw_only=True)
class ProgramData:
    """One program.

    Args:
        aliases: other places in the model where the same program stands.
        signature: how it is called; None: by position, one argument an input.
        inputs: what each may be; None: not recorded.
        conditions: what must hold between the sizes in ``inputs``.
        singles: sizes that must not be 1.
        nodes: the graph, in the order of execution.
        tensors: for each tensor of the program by its name in it, the name in the tensor file.
        layers: where the result of each quantized layer stands.
        golden: a call with its results.
    """

    aliases: tuple[str, ...]
    signature: Signature | None
    inputs: tuple[InputSpec, ...] | None
    conditions: tuple[ConditionData, ...]
    singles: tuple[str, ...]
    nodes: tuple[NodeData, ...]
    tensors: Mapping[str, str]
    layers: tuple[Layer, ...]
    golden: Golden


@attrs.frozen(kw_only=True)
class Manifest:
    """All that an artifact says about itself.

    Args:
        format, format_version: what this file is.
        qcore, torch: versions that wrote it.
        numerics: the arithmetic contract.
        recipe: what was asked.
        plan: what was done.
        origins: every contribution of a plug-in that had a part in it.
        programs: by path in the model; ``""`` is a program that is the whole model.
        state: for each parameter and buffer of the model outside the programs, by its name there,
            the name in the tensor file.
        tensors: what the tensor file holds, by name.
        tensor_file: the file itself.
    """

    format: str
    format_version: int
    qcore: str
    torch: str
    numerics: Numerics
    recipe: Recipe
    plan: Plan
    origins: tuple[Contribution, ...]
    programs: Mapping[str, ProgramData]
    state: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    tensor_file: TensorFile


def write_manifest(manifest: Manifest) -> bytes:
    """The file of a manifest.

    Raises:
        ArtifactError: a value in it, such as an option of the recipe, has no form in JSON.
    """
    data = to_data(manifest, "manifest")
    return render({**data, "sha256": _digest(data)})


def read_manifest(content: bytes) -> Manifest:
    """The manifest that a file holds.

    Checked in this order: that it is JSON, that it is a manifest of a version that this qcore
    knows, that nothing was changed since it was written, that every field is there and has its
    type. A later version may look quite different, and should be told by its number.

    Raises:
        ArtifactError: one of these does not hold.
    """
    data = parse(content)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f"it is no manifest of an artifact: format is not {FORMAT!r}")
    version = data.get("format_version")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"format_version={version!r:.40} is no version of the format")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"it has version {version} of the format, and this qcore reads up to {FORMAT_VERSION}; "
            f"it was written by qcore {data.get('qcore')!r:.40}: pip install --upgrade qcore-quant"
        )
    check_form(data, content)
    written = data.pop("sha256", None)
    if written != _digest(data):
        raise ArtifactError(
            "its content is not what its sha256 says: it was damaged or edited after it was "
            "written; copy it again, or save the program again"
        )
    manifest = from_data(Manifest, data, "manifest")
    if manifest.plan.numerics != manifest.numerics.key:
        raise ArtifactError(
            f"numerics is {manifest.numerics.key}, but the plan is for "
            f"{manifest.plan.numerics!r:.80}"
        )
    return manifest


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(render(dict(data))).hexdigest()
