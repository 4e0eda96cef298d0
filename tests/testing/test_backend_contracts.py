"""The contracts of backends hold for the built-in ones, and each catches what breaks it."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

import qcore
from qcore import Backend, BackendSpec, Numerics, schema_arguments
from qcore.testing import (
    BackendConformance,
    Subject,
    check_contract,
    check_subject,
    contracts,
)
from qcore.testing.backend_cases import CASES
from qcore.testing.backend_draw import Draw

LAYERS = ("qlinear", "quantize")


class TestReference(BackendConformance):
    """The definition itself."""

    subject = "backends:reference"


class TestCpu(BackendConformance):
    """Exact by its own contract."""

    subject = "backends:cpu"


def test_there_are_cases_of_every_operation() -> None:
    """What the kit draws is what the library registers."""
    names = torch._C._dispatch_get_all_op_names()
    registered = {n.split("::")[1].partition(".")[0] for n in names if n.startswith("qcore::")}
    assert set(CASES) == registered


def test_a_case_is_drawn_from_its_seed() -> None:
    """The same seed gives the same case, another one another."""
    for draw in CASES.values():
        a, b, c = (draw(Draw(seed, Numerics())) for seed in (1, 1, 2))
        assert str(a) == str(b)
        assert all(
            x.nan_to_num().equal(y.nan_to_num()) for x, y in zip(a.inputs, b.inputs, strict=True)
        )
        assert str(a) != str(c) or not all(map(torch.equal, a.inputs, c.inputs))


class Kernel(nn.Module):
    """``qlinear`` and ``quantize`` by the formula of the default contract, step by step."""

    def __init__(self, op: str, given: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.op = op
        self.given = given
        self.w, self.scale, self.bias = (tensors.get(k) for k in ("w", "w_scale", "bias"))

    def forward(self, x: Tensor) -> Tensor:
        if self.op == "quantize":
            return self.quantize(x)
        given = self.given
        acc = self.centre(x) @ self.w.double().t()
        if self.bias is not None:
            acc = acc + self.bias.double()
        scale = torch.tensor(given["x_scale"], dtype=torch.float32) * self.channels(self.scale)
        if given["y_dtype"] == torch.float32:
            return (acc.float() + 0.0) * scale
        q = self.round(acc.float() * (scale / torch.tensor(given["y_scale"])))
        return self.store(
            q + given["y_zero_point"], given["y_min"], given["y_max"], given["y_dtype"]
        )

    def quantize(self, x: Tensor) -> Tensor:
        given = self.given
        q = self.round(torch.nan_to_num(x / torch.tensor(given["scale"])))
        limits = given["quant_min"], given["quant_max"], given["dtype"]
        return self.store(q + given["zero_point"], *limits)

    def centre(self, x: Tensor) -> Tensor:
        return x.double() - self.given["x_zero_point"]

    def channels(self, scale: Tensor) -> Tensor:
        return scale

    def round(self, q: Tensor) -> Tensor:
        return q.round()

    def store(self, q: Tensor, low: int, high: int, dtype: torch.dtype) -> Tensor:
        return q.clamp(low, high).to(dtype)


def constant(program: fx.GraphModule | None, node: fx.Node) -> Tensor:
    """The tensor of a get_attr node."""
    value: Tensor = attrgetter(str(node.target))(program)
    return value


class Plain(Backend):
    """A backend for constant weights without groups; right in every step."""

    name: ClassVar[str] = "plain"
    kernel_class: ClassVar[type[Kernel]] = Kernel

    def why_not(self, node: fx.Node) -> str | None:
        if node.target not in [getattr(torch.ops.qcore, op).default for op in LAYERS]:
            return "it has only linear layers and quantize"
        given = schema_arguments(node)
        if "w" not in given:
            return None
        if given["w"].op != "get_attr" or given["w_zero_point"] is not None:
            return "the weight is packed or has a zero point"
        scale = constant(node.graph.owning_module, given["w_scale"])
        return "the weight is in groups" if scale.ndim == 2 else None

    def kernel(self, node: fx.Node) -> str:
        return "plain"

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        for node in list(program.graph.nodes):
            if node.name in own:
                given = schema_arguments(node)
                tensors = {
                    key: constant(program, value)
                    for key, value in given.items()
                    if isinstance(value, fx.Node) and value.op == "get_attr"
                }
                x = given["x"]
                op = str(node.target).split(".")[1]
                plain = {k: v for k, v in given.items() if not isinstance(v, fx.Node)}
                program.add_module(f"own_{node.name}", self.kernel_class(op, plain, tensors))
                with program.graph.inserting_before(node):
                    new = program.graph.call_module(f"own_{node.name}", (x,))
                node.replace_all_uses_with(new)
                program.graph.erase_node(node)
        program.recompile()
        return program


def kernel(**methods: Callable[..., Any]) -> type[Backend]:
    """The right backend with other steps in its kernel."""
    return type("Wrong", (Plain,), {"kernel_class": type("WrongKernel", (Kernel,), methods)})


def saturates_at_127(self: Kernel, q: Tensor, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return q.clamp(low, min(high, 127)).to(dtype)


def wraps(self: Kernel, q: Tensor, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return torch.where((q < low) | (q > high), q.fmod(256), q).to(torch.int64).to(dtype)


def half_away(self: Kernel, q: Tensor) -> Tensor:
    return torch.copysign((q.abs() + 0.5).floor(), q)


def in_place(self: Kernel, x: Tensor) -> Tensor:
    return x.mul_(1).add_(1).double() - self.given["x_zero_point"] - 1


def one_memory(self: Kernel, x: Tensor) -> Tensor:
    y = Kernel.forward(self, x)
    if getattr(self, "kept", None) is None or self.kept.shape != y.shape:
        self.kept = y
    return self.kept.copy_(y)


def first_batch(self: Kernel, x: Tensor) -> Tensor:
    self.size = getattr(self, "size", None) or x.shape
    return Kernel.forward(self, x.reshape(self.size))


def raw_memory(self: Kernel, x: Tensor) -> Tensor:
    strides = torch.empty(x.shape, device="meta").stride()
    return Kernel.forward(self, x.as_strided(x.shape, strides))


def by_threads(self: Kernel, q: Tensor) -> Tensor:
    return (q + 0.1 * (torch.get_num_threads() - 1)).round()


def remembers(self: Kernel, q: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return q.round() + (self.calls > 1)


class ClaimsAll(Plain):
    """Says that it can do what it can't."""

    def why_not(self, node: fx.Node) -> str | None:
        return None


class TakesNothing(Plain):
    """Is of no use."""

    def why_not(self, node: fx.Node) -> str | None:
        return "not today"


class SaysNothing(Plain):
    """Refuses without a reason."""

    def why_not(self, node: fx.Node) -> str | None:
        return super().why_not(node) and ""


class AllContracts(Plain):
    """Says that it computes every contract, and computes one."""

    def computes(self, numerics: Numerics) -> bool:
        return True


class Misnamed(Plain):
    """Goes by another name than its record."""

    name: ClassVar[str] = "plane"


class Approximate(Plain):
    """Off by one step here and there, which its bound covers."""

    lsb_bound: ClassVar[int] = 1
    kernel_class: ClassVar[type[Kernel]] = type(
        "Floor", (Kernel,), {"round": lambda s, q: q.floor()}
    )


WRONG: dict[str, tuple[type[Backend], str]] = {
    "saturates at 127": (kernel(store=saturates_at_127), "saturates_at_the_ends"),
    "wraps around": (kernel(store=wraps), "saturates_at_the_ends"),
    "truncates": (kernel(round=lambda s, q: q.trunc()), "rounds_as_declared"),
    "rounds half away": (kernel(round=half_away), "rounds_as_declared"),
    "claims every contract": (AllContracts, "rounds_as_declared"),
    "ignores the zero point": (kernel(centre=lambda s, x: x.double()), "subtracts_zero_points"),
    "a neighbour's scale": (kernel(channels=lambda s, c: c.roll(1)), "scales_each_channel"),
    "one scale for all": (kernel(channels=lambda s, c: c.max()), "scales_each_channel"),
    "claims every operation": (ClaimsAll, "computes_what_it_takes"),
    "takes nothing": (TakesNothing, "computes_what_it_takes"),
    "another dtype": (kernel(store=lambda s, q, a, b, d: q.clamp(a, b)), "computes_what_it_takes"),
    "changes its input": (kernel(centre=in_place), "leaves_inputs_alone"),
    "keeps its memory": (kernel(forward=one_memory), "results_stay"),
    "remembers": (kernel(round=remembers), "results_stay"),
    "one batch size": (kernel(forward=first_batch), "takes_any_batch"),
    "reads raw memory": (kernel(forward=raw_memory), "reads_any_layout"),
    "depends on threads": (kernel(round=by_threads), "threads_do_not_matter"),
    "another name": (Misnamed, "declares_itself"),
    "no reason": (SaysNothing, "names_what_it_leaves"),
}


def subject(backend: type[Backend]) -> Subject:
    """The backend as a plug-in of this process beside those installed."""

    class Plugin:
        @qcore.hookimpl
        def qcore_backends(self) -> tuple[BackendSpec, ...]:
            return (BackendSpec(name="plain", target=f"{__name__}:Chosen"),)

    globals()["Chosen"] = backend
    host = qcore.PluginHost()
    host.register(Plugin(), name="acme")
    return Subject(host=host, spec=host.find("backend", "acme:plain"))


@pytest.mark.parametrize("backend", [Plain, Approximate])
def test_the_right_backend_fulfils_every_contract(backend: type[Backend]) -> None:
    """The original of the wrong ones, and one that declares its bound."""
    outcomes = {o.contract: o for o in check_subject(subject(backend))}
    assert [o for o in outcomes.values() if o.status != "passed"] == []


class Elsewhere(Plain):
    """Needs another machine."""

    @classmethod
    def unavailable(cls) -> str | None:
        return "this machine has no such device"


def test_an_unavailable_backend_is_not_blamed() -> None:
    """What can't be tried on a machine is not applicable there; what it declares is checked."""
    outcomes = check_subject(subject(Elsewhere))
    assert [o.contract for o in outcomes if o.status == "passed"] == ["declares_itself"]
    assert {o.message for o in outcomes if not o.examined} == {
        "the backend is not available on this machine: this machine has no such device"
    }


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backend_is_caught(name: str) -> None:
    """By the contract that names its fault."""
    backend, wanted = WRONG[name]
    contract = next(c for c in contracts("backend") if c.name == wanted)
    outcome = check_contract(subject(backend), contract)
    assert outcome.status == "failed", outcome
    assert outcome.message
