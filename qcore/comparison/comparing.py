"""Running two sides over the same inputs, freely and operation by operation."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from itertools import chain
from typing import TYPE_CHECKING, Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..artifact.replay import input_leaves
from ..backend import lowered_from
from ..errors import QuantizationError
from ..preparation import positional
from ..progressbar import progress
from ..watching import Values, Watched, WatchedPrograms
from .alignment import aligned
from .causes import diagnose, float_arithmetic, unknown
from .evidence import Case, Recomputation, recomputation, stored
from .measuring import Meter, on_lattice
from .records import Cause, Comparison, OperationComparison
from .sides import Side, float_side, is_quantized, lost_kernels, quantized_side, recipe_of

if TYPE_CHECKING:
    from ..host import PluginHost

__all__ = ["compare"]

_OUTPUT = "(output)"


def compare(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[Any],
    *,
    names: tuple[str, str] | None = None,
    host: "PluginHost | None" = None,
) -> Comparison:
    """Runs two phases, programs or backends over the same inputs: where they part, and why.

    Each side is run freely. Then each operation of B is run on the inputs that A's had: an
    operation that differs there is a source, and its cause is looked for.

    Args:
        a, b: each one QFloat from :func:`qcore.prepare`, calibrated; a program from
            :func:`qcore.convert` or :func:`qcore.load`; a program on a backend, from
            :func:`qcore.lower` (keep the program that it was made from); or a Float model, which
            is compared by its distance. At most one is Float. They stay as they are: QFloat is
            compared in eval mode with every quantizer on.
        batches: as for :func:`qcore.calibrate`.
        names: what to call the two; by default their phase.
        host: plug-ins to look into a Float model with; by default those installed.

    Returns:
        Comparison; operations in the order in which A executes them.

    Raises:
        QuantizationError: both are Float; they have no layer in common, or layers of other shapes;
            there is no batch, or nothing in it; QFloat is not calibrated.
        CaptureError: a batch does not fit what a side was captured for.
        BackendError: the program that a lowered one was made from is gone.

    >>> import torch, qcore
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    >>> x = torch.linspace(-1, 1, 40).reshape(10, 4)
    >>> qfloat = qcore.calibrate(qcore.prepare(model, x, "int8_minmax"), [x])
    >>> q = qcore.convert(qfloat)
    >>> compare(qfloat, q, [x]).equal
    True
    >>> _ = q.get_buffer("0.bias").add_(torch.tensor([0, 0, 2000], dtype=torch.int32))
    >>> found = compare(qfloat, q, [x])
    >>> found.first.name, found.first.cause.name, found.first.cause.reason
    ('0', 'bias', 'the bias of channel 2 is off in B, by 2000 steps of the accumulator')
    """
    if not is_quantized(a) and not is_quantized(b):
        raise QuantizationError(
            "compare: neither of the two is quantized, so there are no layers to compare; give a "
            "QFloat model from qcore.prepare or a program from qcore.convert for one of them"
        )
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise QuantizationError(
            "the comparison got no batch; give an iterable of inputs that is not empty (a "
            "generator can be used only once)"
        )
    quantized = b if is_quantized(b) else a
    left, right = (_side(model, quantized, first, host) for model in (a, b))
    with ExitStack() as stack:
        for side in (left, right):
            stack.enter_context(side.ready())
        job = _Job(left, right, names or (left.label, right.label))
        for batch in stack.enter_context(
            closing(progress(chain([first], remaining), label="compare"))
        ):
            job.add(batch)
    return job.result()


def _side(model: nn.Module, quantized: nn.Module, batch: Any, host: "PluginHost | None") -> Side:
    """One side; a Float one is looked into as the quantized one was made."""
    if is_quantized(model):
        return quantized_side(model)
    args, kwargs = positional(batch, quantized_side(quantized).arity)
    return float_side(model, recipe_of(quantized), kwargs or args, host)


@attrs.frozen(kw_only=True, eq=False)
class _Meters:
    free: Meter = attrs.field(factory=Meter)
    isolated: Meter = attrs.field(factory=Meter)


class _Job:
    """One comparison."""

    def __init__(self, a: Side, b: Side, names: tuple[str, str]) -> None:
        self.a, self.b, self.names = a, b, names
        self.in_b = aligned(a, b)
        """By each layer of A that is compared, its name in B."""
        if not self.in_b:
            raise QuantizationError(
                f"compare: A ({names[0]}) and B ({names[1]}) have no layer in common; A has "
                f"{_some(a.operations)}, B has {_some(b.operations)}: give two forms of one model"
            )
        self.notes: list[str] = []
        self.run_a = a.watched(frozenset())
        self.run_b = b.watched(frozenset())
        self.forced_b = b.watched(frozenset(self.in_b.values()))
        for which, side, watched in (
            ("A", a, self.run_a), ("B", b, self.run_b), ("B", b, self.forced_b),
        ):  # fmt: skip
            lost = lost_kernels(side, watched)
            if lost:
                self.notes.append(
                    f"{which}: to show the values between them, {len(lost)} operations run on the "
                    f"reference kernels instead of the backend's: {_some(lost)}"
                )
        self.meters: dict[str, _Meters] = {}
        self.causes: dict[str, Cause] = {}
        self.batches = 0

    def add(self, batch: Any) -> None:
        """Compares one batch."""
        args, kwargs = positional(batch, max(self.a.arity, self.b.arity))
        out_a, of_a = self.run_a(args, kwargs)
        out_b, of_b = self.run_b(args, kwargs)
        self._check(of_a, of_b)
        if self.batches == 0:
            self._check_watching(args, kwargs, out_a, out_b)
        self.batches += 1
        given = {b: self._for_b(a, b, of_a[a]) for a, b in self.in_b.items() if a in of_a}
        out_forced, alone = self.forced_b(args, kwargs, given)
        for name in of_a:
            other = self.in_b.get(name)
            if other is None:
                continue
            on_a, on_b = self.a.lattices[name], self.b.lattices[other]
            meters = self.meters.setdefault(name, _Meters())
            for call, value in enumerate(of_a[name]):
                meters.free.add(value, on_a, of_b[other][call], on_b)
                if meters.isolated.add(value, on_a, alone[other][call], on_b):
                    self._diagnose(name, call, (args, kwargs), of_a, given, alone[other][call])
        self._outputs(out_a, out_b, out_forced)

    def _check(self, of_a: Values, of_b: Values) -> None:
        for name, other in self.in_b.items():
            values = of_a.get(name, []), of_b.get(other, [])
            shapes = [[list(value.shape) for value in calls] for calls in values]
            if shapes[0] != shapes[1]:
                raise QuantizationError(
                    f"layer {name!r}: its values have the shapes {shapes[0]} in A "
                    f"({self.names[0]}) and {shapes[1]} in B ({self.names[1]}), by call; give two "
                    "forms of one model"
                )

    def _check_watching(self, args: Any, kwargs: Any, *outputs: Any) -> None:
        """Notes where a backend computes something else when nobody looks."""
        for which, side, seen in (("A", self.a, outputs[0]), ("B", self.b, outputs[1])):
            if lowered_from(side.model) is None:
                continue
            with torch.no_grad():
                plain = side.model(*args, **kwargs)
            pairs = zip(_tensors(plain), _tensors(seen), strict=True)
            if not all(torch.equal(x, y) for x, y in pairs):
                self.notes.append(
                    f"{which}: the backend gives other results when the values between its "
                    "operations are looked at; what is shown is what it computes then"
                )

    def _for_b(self, a: str, b: str, values: list[Tensor]) -> list[Tensor]:
        """The values of A's layer ``a`` as B holds them in ``b``."""
        on_a, on_b = self.a.lattices[a], self.b.lattices[b]
        return [on_lattice(value, on_a, on_b) for value in values]

    def _outputs(self, *outputs: Any) -> None:
        leaves = [_tensors(output) for output in outputs]
        if len({len(found) for found in leaves}) != 1:
            counts = ", ".join(str(len(found)) for found in leaves[:2])
            raise QuantizationError(f"compare: A and B give other numbers of tensors: {counts}")
        for i, (x, y, alone) in enumerate(zip(*leaves, strict=True)):
            name = _OUTPUT if len(leaves[0]) == 1 else f"{_OUTPUT[:-1]} {i})"
            meters = self.meters.setdefault(name, _Meters())
            meters.free.add(x, None, y, None)
            count = meters.isolated.add(x, None, alone, None)
            if count and name not in self.causes and self.a.exact and self.b.exact:
                self.causes[name] = float_arithmetic(x, alone, "B") or unknown(
                    "the steps behind the last operation, in float, give other values", count
                )

    def _diagnose(
        self, name: str, call: int, inputs: Any, of_a: Values, given: Values, got: Tensor
    ) -> None:
        """Looks for the cause of an isolated difference, once."""
        if name in self.causes or not (self.a.exact and self.b.exact):
            return
        other_name = self.in_b[name]
        on_a, on_b = self.a.lattices[name], self.b.lattices[other_name]
        expected = given[other_name][call]
        data_a = self._recomputation(self.a, self.run_a, name, call, inputs, of_a)
        data_b = self._recomputation(self.b, self.forced_b, other_name, call, inputs, given)
        # The side that computes what its own data say is the one to measure the other by.
        a_is_right = data_a is not None and _gives(data_a, of_a[name][call])
        swapped = data_b is not None and not a_is_right and on_a == on_b and _gives(data_b, got)
        right, other = (data_b, data_a) if swapped or data_a is None else (data_a, data_b)
        if right is None:
            differing = int((expected.double() != got.double()).sum())
            self.causes[name] = unknown(
                "its inputs are not known, so no cause is sought", differing
            )
            return
        case = Case(
            right=right,
            other=other,
            expected=got if swapped else expected,
            got=expected if swapped else got,
            floats=on_b is None,
            reference="B" if swapped else "A",
            suspect="A" if swapped else "B",
        )
        self.causes[name] = diagnose(case)

    def _recomputation(
        self, side: Side, watched: Watched, name: str, call: int, inputs: Any, values: Values
    ) -> Recomputation | None:
        """A layer of a side as data, with the values of the layers before it."""
        places = side.places()
        place = places.get(name)
        if place is None:
            return None
        known = {
            places[other].node.name: stored(places[other], found[call])
            for other, found in values.items()
            if other != name and other in places and places[other].path == place.path
        }
        leaves = None
        if isinstance(watched, WatchedPrograms):
            leaves = watched.leaves[place.path][call]
        elif place.path == "":
            leaves = input_leaves(place.program, *inputs)
        return recomputation(place, known, leaves)

    def result(self) -> Comparison:
        """What was found."""
        operations = tuple(
            OperationComparison(
                name=name,
                operation=self.a.operations.get(name, "float"),
                free=meters.free.result(),
                isolated=meters.isolated.result(),
                cause=self.causes.get(name),
            )
            for name, meters in self.meters.items()
        )
        if not any(operation.free.compared for operation in operations):
            raise QuantizationError("the comparison got batches without a value; give real inputs")
        return Comparison(
            a=self.names[0],
            b=self.names[1],
            exact=self.a.exact and self.b.exact,
            batches=self.batches,
            operations=operations,
            only_a=_only(self.a, set(self.in_b)),
            only_b=_only(self.b, set(self.in_b.values())),
            notes=tuple(self.notes),
        )


def _only(side: Side, compared: set[str]) -> tuple[str, ...]:
    """What was not compared, because the other side does not have it."""
    # A pool is no layer of QFloat, so nothing is missing there.
    return tuple(n for n in side.operations if n not in compared and n not in side.moves)


def _gives(data: Recomputation, value: Tensor) -> bool:
    """Whether the reference kernels compute a value from the data."""
    with torch.no_grad():
        return torch.equal(data.run().to(torch.float64), value.to(torch.float64))


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _some(names: Iterable[str], most: int = 6) -> str:
    found = list(names)
    return ", ".join(map(repr, found[:most])) + (", ..." if len(found) > most else "")
