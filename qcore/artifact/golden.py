"""Golden values: one call of each program, kept with its results.

The inputs are the user's, or made here: floats that cover the range of the quantizer they meet and
a little more, so that every integer and both ends of the clamp occur; token ids within the table
they index. The integers of each layer are kept as a sha256, the results of the program in full.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..conversion import ProgramInfo
from ..errors import ArtifactError
from ..preparation import as_arguments
from .dtypes import name_of_dtype
from .manifest import Golden, GoldenLayer
from .replay import Replay, input_leaves, output_leaves, replay
from .tensor_file import TensorTable, bytes_of
from .values import decode_value, encode_value

__all__ = [
    "decode_leaves",
    "digest_layer",
    "golden_of",
    "observed_inputs",
    "on_cpu",
    "store_golden",
]

_SEED = 20_240_229
_BATCH = 2
_BEYOND = 1.1
"""How far inputs go beyond what their quantizer can represent."""

_THROUGH = frozenset(
    (
        *("alias", "clone", "contiguous", "detach", "expand", "flatten", "permute", "reshape"),
        *("select", "slice", "squeeze", "to", "_to_copy", "transpose", "unsqueeze", "view"),
    )
)
"""Operations of torch that hand on values as they are."""

_ANY_INTEGER = frozenset(("sym_size", "sym_numel", "eq", "ne", "lt", "le", "gt", "ge"))
"""Operations that are as happy with one integer as with another."""


_TABLES: Mapping[Any, int] = {
    torch.ops.aten.embedding.default: 0,
    torch.ops.qcore.qembedding.default: 1,
    torch.ops.qcore.qembedding_bag.default: 3,
}
"""Operations that look up rows, and which of their arguments is the table."""


def observed_inputs(
    model: nn.Module, programs: Mapping[str, fx.GraphModule], inputs: Any
) -> dict[str, tuple[Any, ...]]:
    """The leaves that each program of a model is called with, by its path, in one call of the
    model.

    Args:
        model: the whole model, or program.
        programs: its programs.
        inputs: for the model: a tensor, a tuple of positional arguments (labels may follow where
            the model is one program), or a dict of keyword arguments.

    Raises:
        ArtifactError: the model can't be called so, or the call reaches a program not.
    """
    found: dict[str, tuple[Any, ...]] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            found.setdefault(path, input_leaves(programs[path], args, kwargs))

        return keep

    args, kwargs = as_arguments(inputs)
    guard = programs[""].meta["qcore"].guard if "" in programs else None
    if guard is not None:
        args = args[: guard.positional]
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack, torch.no_grad():
        for path, program in programs.items():
            handle = program.register_forward_pre_hook(hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        try:
            # BatchNorm between the programs must not learn from this batch.
            model.eval()
            model(*args, **kwargs)
        except ArtifactError:
            raise
        # The user's model and inputs: anything can come out of their meeting.
        except Exception as error:
            raise ArtifactError(
                f"the model can't be called with golden_inputs: {type(error).__name__}: {error}"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
    for path in programs:
        if path not in found:
            raise ArtifactError(
                f"golden_inputs do not reach the program at {path!r}; give inputs that do"
            )
    return found


def on_cpu(program: fx.GraphModule) -> fx.GraphModule:
    """The program on the CPU, where golden values come from; itself if it is there already."""
    tensors = [*program.buffers(), *program.parameters()]
    devices = [
        value
        for node in program.graph.nodes
        for value in pytree.tree_leaves((list(node.args), dict(node.kwargs)))
        if isinstance(value, torch.device)
    ]
    if all(t.device.type == "cpu" for t in tensors) and all(d.type == "cpu" for d in devices):
        return program
    moved = copy.deepcopy(program).to("cpu")
    cpu = torch.device("cpu")
    for node in moved.graph.nodes:
        node.args, node.kwargs = pytree.tree_map_only(
            torch.device, lambda device: cpu, (tuple(node.args), dict(node.kwargs))
        )
    moved.recompile()
    return moved


def golden_of(
    program: fx.GraphModule, path: str, leaves: tuple[Any, ...] | None
) -> tuple[tuple[Any, ...], Replay]:
    """Inputs of a program and its results on them.

    Args:
        program: on the CPU.
        path: of it, for messages.
        leaves: its inputs; None: made here.

    Raises:
        ArtifactError: inputs can't be made, or the program can't run on them.
    """
    layers = program.meta["qcore"].layers
    if leaves is not None:
        leaves = output_leaves(leaves)
        return leaves, replay(program, layers, leaves)
    # A small batch keeps the artifact small; a program that was captured for one size runs on that.
    attempts = [_made_inputs(program, path, batch=_BATCH), _made_inputs(program, path, batch=None)]
    for made in attempts:
        try:
            guard = program.meta["qcore"].guard
            if guard is not None:
                args, kwargs = pytree.tree_unflatten(list(made), guard.spec)
                guard(program, args, kwargs)
            return made, replay(program, layers, made)
        except Exception as error:
            failure = error
    raise ArtifactError(
        f"program {path!r}: it can't run on inputs made at random ({type(failure).__name__}: "
        f"{failure}); give a batch of real ones: qcore.save(..., golden_inputs=batch)"
    )


def _made_inputs(program: fx.GraphModule, path: str, *, batch: int | None) -> tuple[Any, ...]:
    info: ProgramInfo = program.meta["qcore"]
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    generator = torch.Generator().manual_seed(_SEED)
    specs = info.guard.inputs if info.guard is not None else (None,) * len(nodes)
    first = next((s.shape[0] for s in specs if s is not None and s.shape), None)
    made: dict[str, Any] = {}
    leaves = []
    for node, spec in zip(nodes, specs, strict=True):
        if spec is not None and spec.same_as is not None:
            leaf = made[spec.same_as]
        elif spec is not None and not spec.is_tensor:
            leaf = spec.value
        else:
            example = node.meta.get("val")
            if not isinstance(example, Tensor):
                raise _ask(path, node.name, "its shape was never seen")
            shape = [int(n) for n in example.shape]
            symbolic = spec is not None and isinstance(first, str)
            if symbolic and batch is not None:
                names = spec.shape or ()  # type: ignore[union-attr]
                shape = [batch if n == first else m for n, m in zip(names, shape, strict=True)]
            leaf = _made_tensor(node, shape, example.dtype, generator, path)
        made[spec.name if spec is not None else node.name] = leaf
        leaves.append(leaf)
    return tuple(leaves)


def _made_tensor(
    node: fx.Node, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, path: str
) -> Tensor:
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    if dtype == torch.bool:
        return uniform < 0.5
    if dtype.is_floating_point:
        low, high = _float_range(node)
        return (low + uniform * (high - low)).to(dtype)
    count = _index_range(node)
    if count is None:
        raise _ask(
            path,
            node.name,
            f"it is {name_of_dtype(dtype)}, and which values it may have can't be told",
        )
    return (uniform * count).floor().clamp(max=count - 1).to(dtype)


def _float_range(node: fx.Node) -> tuple[float, float]:
    """The range of the quantizer that an input meets first, and a little more; else -1 to 1."""
    for user in node.users:
        if user.target is torch.ops.qcore.quantize.default:
            given: Any = user.args
            _, scale, zero_point, low, high, *_ = given
            return (low - zero_point) * scale * _BEYOND, (high - zero_point) * scale * _BEYOND
    return -1.0, 1.0


def _index_range(node: fx.Node) -> int | None:
    """How many values an input may have that only selects rows of tables; None for any other."""
    sizes: list[int] = []
    pending, seen = list(node.users), set()
    while pending:
        user = pending.pop()
        if user in seen:
            continue
        seen.add(user)
        name = str(user.target).removeprefix("aten.").partition(".")[0]
        table = _TABLES.get(user.target)
        flat = user.target is torch.ops.qcore.qembedding_bag.default and user.args[1] is not None
        if table is not None and not flat:
            sizes.append(_rows(user.args[table]))
        elif name in _THROUGH:
            pending.extend(user.users)
        elif name not in _ANY_INTEGER:
            return None  # a flat list of bags too, of which the offsets must ascend
    return min(sizes) if sizes and min(sizes) > 0 else None


def _rows(table: Any) -> int:
    """Rows of a table, through the steps that turn stored integers into floats."""
    while isinstance(table, fx.Node) and table.op == "call_function":
        table = table.args[0]
    if not isinstance(table, fx.Node) or table.op != "get_attr":
        return 0
    module = table.graph.owning_module
    assert module is not None
    owner, _, field = str(table.target).rpartition(".")
    return int(getattr(module.get_submodule(owner), field).shape[0])


def _ask(path: str, name: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"program {path!r}: no inputs for its golden values can be made, because of input "
        f"{name!r}: {why}; give a batch of real ones: qcore.save(..., golden_inputs=batch)"
    )


def store_golden(leaves: Sequence[Any], result: Replay, table: TensorTable, prefix: str) -> Golden:
    """The record of a call; its inputs and results go into the tensor file.

    Args:
        leaves: the inputs.
        result: what they gave.
        table: of the artifact.
        prefix: of the names of the tensors.
    """

    def stored(values: Sequence[Any], kind: str) -> tuple[Any, ...]:
        return tuple(
            {"tensor": table.add(f"{prefix}{kind}.{i}", value)}
            if isinstance(value, Tensor)
            else encode_value(value)
            for i, value in enumerate(values)
        )

    return Golden(
        inputs=stored(leaves, "input"),
        layers=tuple(map(digest_layer, result.layers)),
        outputs=stored(result.outputs, "output"),
    )


def digest_layer(value: Tensor) -> GoldenLayer:
    """Dtype, shape and sha256 of the result of a layer."""
    return GoldenLayer(
        dtype=name_of_dtype(value.dtype),
        shape=tuple(value.shape),
        sha256=hashlib.sha256(bytes_of(value)).hexdigest(),
    )


def decode_leaves(
    leaves: Sequence[Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[Any, ...]:
    """The tensors and plain values of a golden record.

    Raises:
        ArtifactError: one is neither, or its tensor is not in the file.
    """
    found = []
    for i, leaf in enumerate(leaves):
        here = f"{where}[{i}]"
        if isinstance(leaf, dict) and set(leaf) == {"tensor"}:
            name = leaf["tensor"]
            if not isinstance(name, str) or name not in tensors:
                raise ArtifactError(f"{here}: the tensor file has no tensor {str(name)[:80]!r}")
            found.append(tensors[name])
        else:
            found.append(decode_value(leaf, {}, here))
    return tuple(found)
