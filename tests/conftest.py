"""The whole pipeline in one call, for tests of its parts."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import attrs
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import qcore

# Progress lines are for people.
os.environ.setdefault("QCORE_PROGRESS", "off")
# Without a GPU kernels run in Triton's interpreter. Triton looks once, when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


class Net(nn.Module):
    """A model from a function of itself and its inputs, and the modules that it uses."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


@pytest.fixture
def loaded_by() -> Callable[[str, str], list[str]]:
    """The modules that are loaded after a plug-in's module was, and one of its hooks called."""

    def loaded(module: str, hook: str) -> list[str]:
        code = f"import sys; from {module} import *; {hook}(); print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return loaded


@pytest.fixture(scope="session")
def in_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Runs Python code in several processes of one gloo group.

    What each leaves under the name ``result`` comes back, one a rank. The code finds ``rank``,
    ``world_size`` and ``folder``, which all share.
    """
    head = """
        import faulthandler, os, sys
        from datetime import timedelta
        import torch
        import torch.distributed as dist
        rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        os.environ["QCORE_CACHE"] = folder
        faulthandler.dump_traceback_later(90)
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                                world_size=world_size, timeout=timedelta(seconds=60))
    """
    tail = """
        torch.save(result, f"{folder}/{rank}.pt")
        # A process that ends while a thread of gloo still holds a tensor is aborted.
        dist.barrier()
        dist.destroy_process_group()
    """

    def run(code: str, *, world_size: int = 2) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        script = folder / "script.py"
        script.write_text("\n".join(map(textwrap.dedent, (head, code, tail))))
        with ExitStack() as stack:
            started = []
            for rank in range(world_size):
                log = stack.enter_context((folder / f"{rank}.log").open("w"))
                command = [sys.executable, str(script), str(rank), str(world_size), str(folder)]
                process = subprocess.Popen(command, stdout=log, stderr=log)
                stack.callback(process.wait)
                stack.callback(process.kill)
                started.append(process)
            # One that fails leaves the others waiting for it.
            end = time.monotonic() + 120
            while time.monotonic() < end and not any(p.poll() for p in started):
                if all(p.poll() == 0 for p in started):
                    break
                time.sleep(0.05)
        said = "\n".join((folder / f"{rank}.log").read_text() for rank in range(world_size))
        assert all(process.returncode == 0 for process in started), said
        return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]

    return run


@pytest.fixture
def net() -> type[Net]:
    """Builds a model: ``net(lambda m, x: m.a(x) + x, a=nn.Linear(4, 4))``."""
    return Net


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """What the pipeline made of a model.

    Args:
        model: in eval mode.
        plan, qfloat, q: of the pipeline.
        batches: what QFloat and Q were compared on.
        fidelity: the outcome.
        sqnr: signal to quantization noise of Q against the float model, in dB, over all outputs.
    """

    model: nn.Module
    plan: "qcore.Plan"
    qfloat: nn.Module
    q: nn.Module
    batches: list[Any]
    fidelity: "qcore.Fidelity"
    sqnr: float

    def statuses(self) -> dict[str, str]:
        """Status of each layer of the plan."""
        return {row.name: row.status for row in self.plan.rows}


def resized(example: Any, batch: int) -> Any:
    """Random inputs like ``example`` of another batch size."""

    def draw(tensor: Tensor) -> Tensor:
        shape = (batch, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape)
        if tensor.dtype == torch.bool:
            return torch.rand(shape) > 0.5
        return torch.randint(0, int(tensor.max()) + 1, shape, dtype=tensor.dtype)

    return pytree.tree_map_only(Tensor, draw, example)


def called(model: nn.Module, batch: Any) -> Tensor:
    """All float outputs for a batch as one flat tensor."""
    args, kwargs = ((), batch) if isinstance(batch, dict) else (batch, {})
    if isinstance(args, Tensor):
        args = (args,)
    with torch.no_grad():
        output = model(*args, **kwargs)
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
    return torch.cat([t.reshape(-1).float() for t in leaves if t.is_floating_point()])


@pytest.fixture
def pipeline() -> Callable[..., Run]:
    """Runs a model through prepare, calibrate and convert, and compares QFloat and Q."""

    def run(
        model: nn.Module,
        example: Any,
        recipe: Any = "int8_minmax",
        *,
        sizes: Iterable[int] = (1, 5),
        host: "qcore.PluginHost | None" = None,
    ) -> Run:
        """
        Args:
            model: put into eval mode.
            example: as for prepare; None is replaced by module swap on inputs that must be given as
                a pair ``(None, inputs)``.
            recipe: as for prepare.
            sizes: batch sizes to compare on, besides the calibration's.
            host: as for prepare.
        """
        torch.manual_seed(0)
        given, like = (
            example if isinstance(example, tuple) and example[0] is None else (example,) * 2
        )
        model.eval()
        calibration = [resized(like, 4), resized(like, 3)]
        qfloat = qcore.prepare(model, given, recipe, host=host)
        qcore.calibrate(qfloat, calibration)
        q = qcore.convert(qfloat)
        batches = [*calibration, *(resized(like, size) for size in sizes)]
        fidelity = qcore.count_differences(qfloat, q, batches)
        wanted = torch.cat([called(model, batch) for batch in calibration]).double()
        noise = torch.cat([called(q, batch) for batch in calibration]).double() - wanted
        ratio = wanted.square().sum() / noise.square().sum().clamp(min=1e-30)
        return Run(
            model=model,
            plan=qcore.info_of(qfloat).plan,
            qfloat=qfloat,
            q=q,
            batches=batches,
            fidelity=fidelity,
            sqnr=float(10 * ratio.log10()),
        )

    return run


@pytest.fixture
def exact(pipeline: Callable[..., Run]) -> Callable[..., Run]:
    """Runs the pipeline and asserts that QFloat equals Q on every integer, and that Q is near
    float."""

    def check(
        model: nn.Module,
        example: Any,
        recipe: Any = "int8_minmax",
        *,
        sqnr: float = 25.0,
        **options: Any,
    ) -> Run:
        done = pipeline(model, example, recipe, **options)
        assert done.fidelity.compared > 0
        assert done.fidelity.differing == 0, done.fidelity.layers
        assert done.sqnr > sqnr, f"{done.sqnr:.1f} dB\n{done.plan}"
        return done

    return check
