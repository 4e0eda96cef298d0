"""The process of one engine of ``qcore bench``: a float model or a lowered program."""

import functools
from collections.abc import Callable
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from safetensors.torch import load_file
from torch import Tensor, nn

from ..artifact import load
from ..artifact.golden import decode_leaves
from ..artifact.reading import Artifact, read_artifact, read_manifest_of
from ..backend import lower
from ..errors import ArtifactError
from ..host import PluginHost
from ..recipe import Recipe
from ..running import built_model
from .memory import MemoryWatch
from .profiling import profile_operations
from .serving import Engine, serve

__all__ = ["INPUTS", "Order", "golden_batch"]

INPUTS = "inputs"
"""Name of the tensor in a file of inputs."""


@attrs.frozen(kw_only=True)
class Order:
    """What to measure; goes to the process as JSON.

    Args:
        backend: what runs the program; None: the float model runs.
        batch: size of the batch.
        threads: of torch.
        device: where it runs.
        artifact: folder of the program.
        recipe: table of the recipe, for the float model, and for one that holds several programs.
        inputs: a file with the tensor ``inputs``, ``[N, ...]``; None: the golden inputs of the
            artifact.
        block: plug-ins not to use.
        profile: give the share of each operation, too.
    """

    backend: str | None
    batch: int
    threads: int
    device: str = "cpu"
    artifact: str | None = None
    recipe: dict[str, Any] | None = None
    inputs: str | None = None
    block: tuple[str, ...] = ()
    profile: bool = False


def golden_batch(artifact: Artifact, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of another batch size, made of the rows of an artifact's golden inputs.

    Raises:
        ArtifactError: the program has a fixed batch of another size.
    """
    program = artifact.programs[""]
    guard = program.meta["qcore"].guard
    leaves = decode_leaves(
        artifact.manifest.programs[""].golden.inputs, artifact.tensors, "golden.inputs"
    )
    if guard is None:
        raise ArtifactError(f"{artifact.folder}: its program does not say which sizes may change")
    sizes = next((spec.shape for spec in guard.inputs if spec.shape), ())
    symbol = sizes[0] if sizes else batch
    if isinstance(symbol, int) and symbol != batch:
        raise ArtifactError(
            f"{artifact.folder}: its program was captured for a batch of {symbol}, not {batch}; "
            f"measure that, or make it from an example whose batch may change"
        )
    resized: dict[str, Any] = {}
    for spec, leaf in zip(guard.inputs, leaves, strict=True):
        if spec.same_as is not None:
            leaf = resized[spec.same_as]
        elif isinstance(leaf, Tensor):
            for axis, size in enumerate(spec.shape or ()):
                if size == symbol:
                    rows = torch.arange(batch) % leaf.shape[axis]
                    leaf = leaf.index_select(axis, rows)
        resized[spec.name] = leaf
    args, kwargs = pytree.tree_unflatten(list(resized.values()), guard.spec)
    return args, kwargs


def _setup(values: dict[str, Any]) -> Engine:
    order = Order(**values)
    torch.set_num_threads(order.threads)
    torch.set_grad_enabled(False)
    host = PluginHost.from_environment(block=order.block)
    # Once for nothing: the modules that it imports are not the engine's memory.
    _model(order, host)
    watch = MemoryWatch()
    model, arguments = _model(order, host)
    device = torch.device(order.device)
    # A backend may have put the program where it belongs.
    for tensor in (*model.parameters(), *model.buffers()):
        device = tensor.device
        break
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(device), arguments)
    run: Callable[[], object] = functools.partial(model, *args, **kwargs)
    memory = watch.growth
    synchronize = None
    if device.type == "cuda":
        synchronize = functools.partial(torch.cuda.synchronize, device)
        memory = functools.partial(torch.cuda.max_memory_allocated, device)
        torch.cuda.reset_peak_memory_stats(device)
        run = _synchronized(run, synchronize)
    watch.restart()
    run()
    facts: dict[str, Any] = {}
    if order.profile:
        shares = profile_operations(model, run, synchronize=synchronize)
        facts["operations"] = [attrs.asdict(share) for share in shares]
    return Engine(run=run, facts=facts, memory=memory)


def _model(order: Order, host: PluginHost) -> tuple[nn.Module, Any]:
    """What runs, and the arguments it is called with."""
    if order.recipe is None:
        assert order.artifact is not None
        assert order.backend is not None
        artifact = read_artifact(order.artifact)
        program: nn.Module = artifact.programs[""]
        arguments = golden_batch(artifact, order.batch)
    else:
        assert order.inputs is not None
        inputs = load_file(order.inputs)[INPUTS]
        arguments = (inputs[torch.arange(order.batch) % len(inputs)],), {}
        recipe = Recipe.from_table(order.recipe)
        if order.backend is None:
            return built_model(recipe, host=host).to(order.device), arguments
        assert order.artifact is not None
        whole = "" in read_manifest_of(order.artifact).programs
        program = load(order.artifact, into=None if whole else built_model(recipe, host=host))
    return lower(program.to(order.device), order.backend, host=host), arguments


def _synchronized(run: Callable[[], object], synchronize: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        run()
        synchronize()

    return both


if __name__ == "__main__":
    serve(_setup)
