"""Loading an artifact: everything is checked before anything of it is believed.

The order is that of trust. Sizes of the files, then the form and the checksum of the manifest, then
its fields, then the tensor file against it, then each graph: its operations, their arguments, the
shapes and dtypes of every value, and the rules of quantization. Only what passed all of that
becomes a module.

Paths come from the caller alone, names of files are fixed, and no name in an artifact is ever
imported.
"""

import copy
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..codegen import SharedGraphModule
from ..conversion import Layer, ProgramInfo
from ..errors import ArtifactError, CaptureError
from ..preparation import replace_module
from .golden import decode_leaves
from .manifest import MANIFEST_FILE, TENSORS_FILE, Manifest, ProgramData, read_manifest
from .program_reading import CheckedGraph, read_graph
from .propagation import propagate
from .semantics import check_call, check_scale
from .strict_json import MAX_BYTES
from .tensor_file import read_tensors

__all__ = ["Artifact", "load", "outside_state", "read_artifact", "read_manifest_of"]

# What a guard is asked about that is not on a module yet.
_NOTHING = nn.Identity()


@attrs.frozen(kw_only=True, eq=False)
class Artifact:
    """An artifact in memory, checked.

    Args:
        folder: where it was read from.
        manifest: what it says about itself.
        tensors: by name in the tensor file.
        programs: by path in the model.
    """

    folder: Path
    manifest: Manifest
    tensors: Mapping[str, Tensor]
    programs: Mapping[str, fx.GraphModule]


def load(folder: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """The program that :func:`qcore.save` wrote, or a model with its programs in place.

    No plug-in is needed for it.

    Args:
        folder: the artifact.
        into: where the artifact holds programs for parts of a model: the model, for its code. It
            stays as it is.

    Returns:
        A program on the CPU, called like the model it was made from. Where that has containers of
        classes of its own, such as the ``ModelOutput`` of transformers, the program has
        dictionaries whose items are attributes too. With ``into``, a copy of the model in eval mode
        that has the programs in the place of the parts, and the parameters and buffers it was saved
        with.

    Raises:
        ArtifactError: the artifact is missing, malformed, damaged or edited, has a newer format, or
            does not fit ``into``.
    """
    artifact = read_artifact(folder)
    where = str(artifact.folder)
    if "" in artifact.programs:
        if into is not None:
            raise ArtifactError(
                f"{where}: it holds a program that is the whole model; load it without into="
            )
        return artifact.programs[""]
    if into is None:
        paths = ", ".join(list(artifact.programs)[:8])
        raise ArtifactError(
            f"{where}: it holds programs for {len(artifact.programs)} parts of a model ({paths}); "
            "give the model they belong to: qcore.load(folder, into=model)"
        )
    with _boundary(artifact.folder):
        return _put_into(artifact, into)


def read_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """Read and check an artifact.

    Raises:
        ArtifactError: as for :func:`load`.
    """
    folder = Path(folder)
    with _boundary(folder):
        manifest = _read_manifest(folder)
        tensors = read_tensors(
            _regular(folder / TENSORS_FILE), manifest.tensors, manifest.tensor_file
        )
        _check_use(manifest)
        programs = {
            path: _read_program(path, data, manifest, tensors)
            for path, data in manifest.programs.items()
        }
    return Artifact(folder=folder, manifest=manifest, tensors=tensors, programs=programs)


def read_manifest_of(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of an artifact, whose tensors and graphs are not looked at.

    Raises:
        ArtifactError: it is missing or not as it was written.
    """
    with _boundary(Path(folder)):
        return _read_manifest(Path(folder))


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise ArtifactError("there is no such folder" if not folder.exists() else "it is no folder")
    path = _regular(folder / MANIFEST_FILE)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ArtifactError(f"{MANIFEST_FILE}: {size} bytes; at most {MAX_BYTES} are read")
    with path.open("rb") as file:
        # It may grow while it is read.
        content = file.read(MAX_BYTES + 1)
    try:
        return read_manifest(content)
    except ArtifactError as error:
        raise ArtifactError(f"{MANIFEST_FILE}: {error}") from None


def _regular(path: Path) -> Path:
    """The path of a file that can be read to its end: no folder, pipe or device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ArtifactError(
            f"{path.name} is missing; an artifact is a folder with {MANIFEST_FILE} and "
            f"{TENSORS_FILE}"
        ) from None
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{path.name} is no regular file")
    return path


@contextmanager
def _boundary(folder: Path) -> Iterator[None]:
    """Lets nothing out but an ArtifactError that names the folder."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"artifact {str(folder)!r}: {error}") from error.__cause__
    # The last line of defence: whatever a library says to bytes it was never meant to see. It also
    # turns the errors of the file system and exhausted memory into the one that callers expect.
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"artifact {str(folder)!r}: it can't be read: {type(error).__name__}: {said}"
        ) from error


def _check_use(manifest: Manifest) -> None:
    """Every tensor is for something, and every tensor that is asked for is there."""
    if not manifest.programs:
        raise ArtifactError(f"{MANIFEST_FILE}: programs: there is none")
    if "" in manifest.programs and (len(manifest.programs) > 1 or manifest.state):
        raise ArtifactError(f"{MANIFEST_FILE}: programs: one is the whole model, and there is more")
    used = set(manifest.state.values())
    for data in manifest.programs.values():
        used.update(data.tensors.values())
        for leaf in (*data.golden.inputs, *data.golden.outputs):
            if isinstance(leaf, dict) and isinstance(leaf.get("tensor"), str):
                used.add(leaf["tensor"])
    odd = sorted(used ^ set(manifest.tensors))
    if odd:
        what = "nothing uses it" if odd[0] in manifest.tensors else "it is not in the file"
        raise ArtifactError(f"{MANIFEST_FILE}: tensor {odd[0][:80]!r}: {what}")


def _read_program(
    path: str, data: ProgramData, manifest: Manifest, tensors: Mapping[str, Tensor]
) -> fx.GraphModule:
    where = f"{MANIFEST_FILE}: programs[{path[:80]!r}]"
    checked = read_graph(data, path, where)
    _check_layers(data.layers, checked, where)
    own = {name: tensors[key] for name, key in data.tensors.items()}
    inputs = _check_golden(data, checked, tensors, where)
    propagate(checked, own, inputs, check_call)
    program = SharedGraphModule(dict(own), checked.graph, class_name="Q")
    if checked.guard is not None:
        program.register_forward_pre_hook(checked.guard, with_kwargs=True)
    # What a size of an input that may change was when the program was saved.
    for node, leaf in zip(_inputs_of(checked), inputs, strict=True):
        if isinstance(leaf, Tensor):
            node.meta["val"] = torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    program.eval()
    program.meta["qcore"] = ProgramInfo(
        plan=manifest.plan,
        recipe=manifest.recipe,
        layers=data.layers,
        origins=manifest.origins,
        guard=checked.guard,
    )
    return program


def _inputs_of(checked: CheckedGraph) -> list[fx.Node]:
    return [node for node in checked.graph.nodes if node.op == "placeholder"]


def _check_layers(layers: tuple[Layer, ...], checked: CheckedGraph, where: str) -> None:
    nodes = {node.name for node in checked.graph.nodes if node.op not in ("placeholder", "output")}
    for i, layer in enumerate(layers):
        here = f"{where}.layers[{i}] {layer.name[:60]!r}"
        if layer.node not in nodes:
            raise ArtifactError(f"{here}: the graph has no operation {layer.node[:60]!r}")
        if (layer.scale is None) != (layer.zero_point is None):
            raise ArtifactError(f"{here}: scale and zero_point come together")
        if layer.scale is not None:
            try:
                check_scale(layer.scale)
            except ArtifactError as error:
                raise ArtifactError(f"{here}: {error}") from None


def _check_golden(
    data: ProgramData, checked: CheckedGraph, tensors: Mapping[str, Tensor], where: str
) -> tuple[Any, ...]:
    """The golden inputs, which fit what the inputs may be."""
    inputs = decode_leaves(data.golden.inputs, tensors, f"{where}.golden.inputs")
    decode_leaves(data.golden.outputs, tensors, f"{where}.golden.outputs")
    expected = (len(_inputs_of(checked)), len(data.layers))
    if (len(inputs), len(data.golden.layers)) != expected:
        raise ArtifactError(
            f"{where}.golden: {len(inputs)} inputs and {len(data.golden.layers)} layers where the "
            f"program has {expected[0]} and {expected[1]}"
        )
    if checked.guard is not None:
        args, kwargs = pytree.tree_unflatten(list(inputs), checked.guard.spec)
        try:
            checked.guard(_NOTHING, args, kwargs)
        except CaptureError as error:
            raise ArtifactError(f"{where}.golden.inputs: {error}") from None
    return inputs


def _put_into(artifact: Artifact, into: nn.Module) -> nn.Module:
    model = copy.deepcopy(into)
    for path, program in artifact.programs.items():
        for place in (path, *artifact.manifest.programs[path].aliases):
            try:
                model.get_submodule(place)
            except AttributeError:
                raise ArtifactError(
                    f"it holds a program for {place!r}, and {type(into).__name__} has no module of "
                    "that name; give the model that was quantized"
                ) from None
            replace_module(model, place, program)
    own = outside_state(model, artifact.manifest.programs)
    odd = sorted(set(own) ^ set(artifact.manifest.state))
    if odd:
        has = type(into).__name__ if odd[0] in own else "the artifact"
        raise ArtifactError(
            f"{odd[0]!r} is a parameter or buffer of {has} only; give the model that was quantized"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            saved = artifact.tensors[artifact.manifest.state[name]]
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise ArtifactError(
                    f"{name!r} is {saved.dtype} {list(saved.shape)}, in {type(into).__name__} it "
                    f"is {tensor.dtype} {list(tensor.shape)}; give the model that was quantized"
                )
            tensor.copy_(saved)
    return model.eval()


def outside_state(model: nn.Module, programs: Mapping[str, ProgramData]) -> dict[str, Tensor]:
    """The parameters and buffers of a model that don't belong to its programs, by name.

    Args:
        model: with programs in place.
        programs: by path.

    Raises:
        ArtifactError: a module keeps a state that is no tensor.
    """
    places = [place for path, data in programs.items() for place in (path, *data.aliases)]
    prefixes = tuple(f"{place}." for place in places)
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(prefixes):
            continue
        if not isinstance(value, Tensor):
            raise ArtifactError(
                f"{name!r} is a {type(value).__name__}; an artifact stores tensors only"
            )
        state[name] = value
    return state
