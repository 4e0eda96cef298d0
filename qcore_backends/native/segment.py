"""A run of operations that one native call executes: its plans by input shape, and the call."""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, Self

import attrs
import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from qcore import BackendError

from ..processor import check_on_processor
from .layer import BYTES, Layer
from .library import chosen_isa, library
from .memory import Value
from .moves import write_move
from .planner import Plan, Planner

__all__ = ["Place", "Segment", "Step", "Workspace"]

_PLANS = 32
"""Plans that a segment keeps, for as many sets of input shapes."""


@attrs.frozen(kw_only=True)
class Place:
    """Stands for a value in the arguments of a step.

    Args:
        is_input: whether it is an input of the segment, not the result of a step.
        index: of the input or step.
    """

    is_input: bool
    index: int


@attrs.frozen(eq=False, kw_only=True)
class Step:
    """One operation of a segment.

    Args:
        target: the operation.
        args: its arguments: :class:`Place` for values of the run, meta tensors for constants.
        layer: what writes it; None for one that only moves.
        inputs: by the layer's names.
        is_output: whether it is used outside.
    """

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    layer: Layer | None
    inputs: dict[str, Place]
    is_output: bool


class Workspace:
    """Memory that the segments of a program share, as they run one after the other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def address(self, size: int) -> int:
        """Where ``size`` bytes start; valid until more are asked for."""
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.uint8)
        return self._memory.data_ptr()


class Segment(nn.Module):
    """Executes steps by the native kernels.

    It holds what can be computed once, so copies of a program share it. Calls from several threads
    take turns.

    Args:
        steps: the operations, in order.
        names: of the inputs, for messages.
        workspace: shared by the segments of a program.
    """

    def __init__(self, steps: Sequence[Step], names: Sequence[str], workspace: Workspace) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.names = tuple(names)
        self.workspace = workspace
        self._single = sum(step.is_output for step in steps) == 1
        self._plans: dict[Any, Plan] = {}
        self._library = library()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, *inputs: Any) -> Any:
        """The values of the steps that are outputs: one tensor, or a tuple of them."""
        isa = chosen_isa(self._library)
        threads = torch.get_num_threads()
        # At each call: a plan is found by shapes and dtypes, and kernels read bare addresses.
        check_on_processor("native", self.names, inputs)
        values = [_readable(x) if isinstance(x, Tensor) else x for x in inputs]
        key = (isa, threads, *[_key(x) for x in values])
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(values, isa, threads)
            if len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = plan
        outputs = [torch.empty_strided(o.shape, o.strides, dtype=o.dtype) for o in plan.outputs]
        tensors = [x for x in values if isinstance(x, Tensor)]
        if len(plan.ops):
            self._run(plan, tensors, outputs, isa, threads)
        return outputs[0] if self._single else tuple(outputs)

    def _run(
        self, plan: Plan, tensors: list[Tensor], outputs: list[Tensor], isa: str, threads: int
    ) -> None:
        works = self._library.isas().index(isa)
        with self.workspace.lock:
            addresses = [self.workspace.address(plan.arena_bytes)]
            for group in (tensors, outputs, plan.constants):
                addresses += [tensor.data_ptr() for tensor in group]
            slots = (ctypes.c_void_p * len(addresses))(*addresses)
            self._library.run(plan.ops, slots, threads, works)

    def _plan(self, inputs: Sequence[Any], isa: str, threads: int) -> Plan:
        """The program for inputs of these shapes."""
        metas = [_meta(x) if isinstance(x, Tensor) else x for x in inputs]
        expected = self._expected(metas)
        planner = Planner(
            inputs=sum(isinstance(x, Tensor) for x in inputs),
            outputs=sum(step.is_output for step in self.steps),
            threads=threads,
            tiles=isa == "amx",
        )
        if any(isinstance(x, Tensor) and not x.numel() for x in inputs):
            return self._empty(planner, expected)
        starts = self._inputs(planner, inputs, metas)
        values: list[Value] = []

        def value(place: Place) -> Any:
            return starts[place.index] if place.is_input else values[place.index]

        def size(argument: Any) -> Any:
            return metas[argument.index] if isinstance(argument, Place) else argument

        for step, result in zip(self.steps, expected, strict=True):
            if step.layer is None:
                x, *rest = step.args
                plain = map_aggregate(tuple(rest), size)
                values.append(write_move(planner, step.target, value(x), plain, result))
            else:
                given = {name: value(place) for name, place in step.inputs.items()}
                values.append(step.layer.write(planner, given, result))
        for step, found, result in zip(self.steps, values, expected, strict=True):
            if step.is_output:
                planner.output(found, result)
        return planner.plan()

    def _expected(self, metas: Sequence[Any]) -> list[Tensor]:
        """Shapes, strides and dtypes of the steps by the definitions of their operations."""
        results: list[Tensor] = []

        def known(argument: Any) -> Any:
            if not isinstance(argument, Place):
                return argument
            return (metas if argument.is_input else results)[argument.index]

        for step in self.steps:
            results.append(step.target(*map_aggregate(step.args, known)))
        return results

    def _empty(self, planner: Planner, expected: Sequence[Tensor]) -> Plan:
        """A program that does nothing, because there is nothing to compute."""
        wanted = [r for s, r in zip(self.steps, expected, strict=True) if s.is_output]
        if any(result.numel() for result in wanted):
            raise BackendError(
                "backend 'native': an input without elements gives an output with some; lower to "
                "'reference' for such inputs"
            )
        for result in wanted:
            planner.output(planner.new(result, result.dtype), result)
        return attrs.evolve(planner.plan(), ops=())

    def _inputs(
        self, planner: Planner, inputs: Sequence[Any], metas: Sequence[Any]
    ) -> list[Value | None]:
        """The inputs as values; integers are copied to where they may be read past their end."""
        values: list[Value | None] = []
        index = 0
        for name, x, meta in zip(self.names, inputs, metas, strict=True):
            if not isinstance(x, Tensor):
                values.append(None)
                continue
            self._check(name, x)
            value = planner.input(index, meta, x.dtype)
            index += 1
            if x.dtype in BYTES:
                dense = torch.ops.aten.is_non_overlapping_and_dense(x)
                layout = meta if dense else torch.empty(x.shape, device="meta")
                value = planner.copy(value, layout, flip=x.dtype == torch.int8)
            values.append(value)
        return values

    @staticmethod
    def _check(name: str, x: Tensor) -> None:
        """Refuses dtypes that the kernels would misread."""
        if x.dtype not in (torch.float32, *BYTES):
            raise BackendError(
                f"backend 'native': {name!r} is {x.dtype}; the kernels take float32, float16, "
                "bfloat16, int8 or uint8. Convert it, or lower to 'reference'"
            )


def _readable(x: Tensor) -> Tensor:
    """``x``, in float32 if it has fewer bits, and with strides that a copy can follow."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x if x.ndim <= 4 else x.contiguous()


def _key(x: Any) -> Any:
    return (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x


def _meta(x: Tensor) -> Tensor:
    """Shape, strides and dtype of ``x``; its memory is taken to start where ``x`` does."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
