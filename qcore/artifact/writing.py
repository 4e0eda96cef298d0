"""Saving: the artifact is complete and checked before it gets its name."""

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import fx, nn

from ..conversion import ProgramInfo, programs
from ..errors import ArtifactError
from ..numerics import Numerics
from ..versions import installed_version
from .golden import golden_of, observed_inputs, on_cpu, store_golden
from .manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    TENSORS_FILE,
    Manifest,
    ProgramData,
    TensorFile,
    write_manifest,
)
from .program_writing import (
    encode_guard,
    encode_nodes,
    encode_signature,
    safe_names,
    tensors_of,
)
from .reading import outside_state, read_artifact
from .tensor_file import TensorTable

__all__ = ["save"]


def save(
    q: nn.Module,
    folder: str | os.PathLike[str],
    *,
    golden_inputs: Any = None,
    overwrite: bool = False,
) -> Path:
    """Write a program, or a model with programs in it, as an artifact.

    The artifact is written to a temporary folder beside the final one, forced to the disk, read
    back and checked, and only then renamed. So there is never half an artifact. Should the machine
    stop between the two renames of an overwrite, the earlier one is beside it, as ``.NAME.*.old``.

    Args:
        q: from :func:`qcore.convert` or :func:`qcore.load`; stays as it is.
        folder: of the artifact; folders above it are made.
        golden_inputs: a batch, as the model takes it, on which the results are recorded that
            :func:`qcore.verify` compares with. By default inputs are made, always the same ones.
        overwrite: replace an artifact that is there.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder is there already; a part of the program has no place in an
            artifact; inputs are needed and can't be made; the disk is full.
        QuantizationError: ``q`` holds no program.
    """
    target = Path(os.path.realpath(folder))
    found = programs(q)
    _check_target(target, overwrite=overwrite)
    try:
        table = TensorTable()
        manifest = _describe(q, found, golden_inputs, table)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        temporary.mkdir()
        try:
            _write(temporary, manifest, table)
            _rename(temporary, target, overwrite=overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except ArtifactError as error:
        raise ArtifactError(f"can't save {str(target)!r}: {error}") from error.__cause__
    except OSError as error:
        raise ArtifactError(f"can't save {str(target)!r}: {error}") from error
    return target


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ArtifactError(
            f"{str(target)!r} is there already; use another name, or save(..., overwrite=True)"
        )
    # A slip of the path must not cost anybody a folder of other things.
    known = {MANIFEST_FILE, TENSORS_FILE}
    if not target.is_dir() or not {entry.name for entry in target.iterdir()} <= known:
        raise ArtifactError(
            f"{str(target)!r} is there already and is no artifact, so overwrite=True does not "
            "replace it; use another name"
        )


def _describe(
    q: nn.Module, found: Mapping[str, fx.GraphModule], golden_inputs: Any, table: TensorTable
) -> Manifest:
    """All that the manifest says but for the tensor file, which ``table`` is filled for."""
    info = _common_info(found)
    inputs = {} if golden_inputs is None else observed_inputs(q, found, golden_inputs)
    aliases = _aliases(q, found)
    described = {}
    for path, program in found.items():
        prefix = f"{path}/" if path else ""
        try:
            described[path] = _describe_program(
                program, path, prefix, inputs.get(path), aliases[path], table
            )
        except ArtifactError as error:
            raise ArtifactError(f"program {path!r}: {error}" if path else str(error)) from None
    state = {}
    if "" not in found:
        outside = outside_state(q, described)
        state = {name: table.add(f"state/{name}", tensor) for name, tensor in outside.items()}
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        qcore=installed_version() or "",
        torch=str(torch.__version__),
        numerics=Numerics.parse(info.plan.numerics),
        recipe=info.recipe,
        plan=info.plan,
        origins=info.origins,
        programs=described,
        state=state,
        tensors=table.specs,
        tensor_file=TensorFile(bytes=0, sha256=""),
    )


def _common_info(found: Mapping[str, fx.GraphModule]) -> ProgramInfo:
    infos: list[ProgramInfo] = [program.meta["qcore"] for program in found.values()]
    first = infos[0]
    for path, info in zip(found, infos, strict=True):
        if (info.plan, info.recipe) != (first.plan, first.recipe):
            raise ArtifactError(
                f"the programs at {next(iter(found))!r} and {path!r} come from different "
                "conversions; save each by itself"
            )
    return first


def _aliases(q: nn.Module, found: Mapping[str, fx.GraphModule]) -> dict[str, tuple[str, ...]]:
    """The other names under which each program stands in the model."""
    paths = {id(program): path for path, program in found.items()}
    aliases: dict[str, list[str]] = {path: [] for path in found}
    for name, module in q.named_modules(remove_duplicate=False):
        path = paths.get(id(module), name)
        if path != name:
            aliases[path].append(name)
    return {path: tuple(names) for path, names in aliases.items()}


def _describe_program(
    program: fx.GraphModule,
    path: str,
    prefix: str,
    leaves: tuple[Any, ...] | None,
    aliases: tuple[str, ...],
    table: TensorTable,
) -> ProgramData:
    info: ProgramInfo = program.meta["qcore"]
    tensors = tensors_of(program)
    names = safe_names(tensors)
    nodes = encode_nodes(program, names)
    inputs, result = golden_of(on_cpu(program), path, leaves)
    return ProgramData(
        aliases=aliases,
        signature=encode_signature(program),
        **encode_guard(info.guard),
        nodes=nodes,
        tensors={
            names[target]: table.add(prefix + names[target], tensor)
            for target, tensor in tensors.items()
        },
        layers=info.layers,
        golden=store_golden(inputs, result, table, f"{prefix}golden/"),
    )


def _write(folder: Path, manifest: Manifest, table: TensorTable) -> None:
    tensor_file = table.write(folder / TENSORS_FILE)
    content = write_manifest(attrs.evolve(manifest, tensor_file=tensor_file))
    with (folder / MANIFEST_FILE).open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        # Whoever may read the manifest may read the tensors, whose file safetensors makes private.
        os.chmod(folder / TENSORS_FILE, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    _sync_folder(folder)
    read_artifact(folder)


def _rename(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if not overwrite or not target.exists():
        os.rename(temporary, target)
    else:
        aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.old")
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Forces names of files to the disk, on systems that let a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
