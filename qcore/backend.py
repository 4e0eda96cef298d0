"""The contract of execution backends, and lowering.

A backend declares the arithmetic that it computes and what it can run. ``lower`` gives it a
program; the operations it supports go to its own kernels, the rest run on the reference kernels,
and the lowered program's table says which is which.
"""

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import attrs
from torch import fx, nn

from .conversion import ProgramInfo, programs
from .errors import BackendError
from .numerics import Numerics
from .preparation import replace_module

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["Backend", "Lowered", "lower", "lowered_info"]


@attrs.frozen(kw_only=True)
class Lowered:
    """How a program runs on a backend.

    Args:
        backend: its name.
        kernels: by node of the program, what runs it.
        reference: by node, why the reference kernel runs it instead of the backend's.
        may_differ: nodes whose integers may differ, because the contracts do.
    """

    backend: str
    kernels: Mapping[str, str]
    reference: Mapping[str, str]
    may_differ: tuple[str, ...] = ()


class LoweredFrom:
    """What a lowered model was made from, for those who want to look inside.

    The program itself is only referred to: a lowered model does not keep its weights alive twice.

    Args:
        q: the program.
        backend, allow_other_numerics, host: as of :func:`lower`.
    """

    def __init__(
        self, q: nn.Module, backend: str, allow_other_numerics: bool, host: "PluginHost | None"
    ) -> None:
        self.backend = backend
        self.allow_other_numerics = allow_other_numerics
        self.host = host
        self._q: weakref.ref[nn.Module] | None = weakref.ref(q)

    @property
    def q(self) -> nn.Module:
        """The program.

        Raises:
            BackendError: it is gone.
        """
        q = None if self._q is None else self._q()
        if q is None:
            raise BackendError(
                "the program that this model was lowered from is gone, and only with it the values "
                f"of its layers can be seen: keep it (q = qcore.convert(...); lowered = "
                f"qcore.lower(q, {self.backend!r}))"
            )
        return q

    def lower(self, program: nn.Module) -> nn.Module:
        """Lowers another program in the same way."""
        return lower(
            program,
            self.backend,
            allow_other_numerics=self.allow_other_numerics,
            host=self.host,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> "LoweredFrom":
        return self

    def __getstate__(self) -> dict[str, object]:
        # References don't pickle, and what they refer to stays behind.
        return {**self.__dict__, "_q": None, "host": None}


def lowered_from(model: nn.Module) -> LoweredFrom | None:
    """What a model was lowered from; None if it is no result of :func:`lower`."""
    found = getattr(model, "qcore_lowered_from", None)
    return found if isinstance(found, LoweredFrom) else None


class Backend(ABC):
    """Base of all backends.

    Attributes:
        name: as in its record.
        numerics: the contract that its kernels compute.
        lsb_bound: largest difference from the reference of that contract, in steps; 0 is exact.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = Numerics()
    lsb_bound: ClassVar[int] = 0

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the backend can't run on this machine, and the cure; None if it can."""
        return None

    @classmethod
    def runs_on(cls) -> str | None:
        """What it runs on where it is available, in a line for ``qcore doctor``; None: nothing to
        say."""
        return None

    def computes(self, numerics: Numerics) -> bool:
        """Whether the kernels compute a contract exactly (or within :attr:`lsb_bound`)."""
        return numerics == self.numerics

    @abstractmethod
    def why_not(self, node: fx.Node) -> str | None:
        """Why the backend has no kernel for a node of a program; None if it has."""

    @abstractmethod
    def kernel(self, node: fx.Node) -> str:
        """Name of the kernel that runs a node it supports."""

    @abstractmethod
    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        """The runnable form of a program.

        Args:
            program: a copy, free to change.
            own: names of the nodes that the backend supports; it must run the others as they are.

        Returns:
            A module that is called like ``program``.
        """


def lower(
    q: nn.Module,
    backend: str = "reference",
    *,
    allow_other_numerics: bool = False,
    host: "PluginHost | None" = None,
) -> nn.Module:
    """Q, ready to run on a backend.

    Args:
        q: from :func:`qcore.convert` or :func:`qcore.load`; stays as it is.
        backend: its name.
        allow_other_numerics: lower even if the backend computes by another contract than the
            program was prepared for; :func:`lowered_info` then names the operations that may
            differ.
        host: plug-ins; by default those installed.

    Raises:
        BackendError: the backend is not available here, or its contract is not the program's.
    """
    engine = available_backend(backend, host)()
    result = copy.deepcopy(q)
    for path, program in programs(result).items():
        info = program.meta["qcore"]
        lowered, table = _lower_program(engine, backend, program, info, allow_other_numerics)
        lowered.qcore_lowered = table  # type: ignore[assignment]
        if path == "":
            result = lowered
            break
        # A program that stands in several places is the same one in each.
        for place in [n for n, m in result.named_modules(remove_duplicate=False) if m is program]:
            replace_module(result, place, lowered)
    source = LoweredFrom(q, backend, allow_other_numerics, host)
    result.qcore_lowered_from = source  # type: ignore[assignment]
    return result


def available_backend(name: str, host: "PluginHost | None" = None) -> type[Backend]:
    """The class of a backend that works here.

    Raises:
        BackendError: it does not; the message has the reason and the cure.
    """
    from .host import default_host

    cls: type[Backend] = (host or default_host()).get("backend", name)
    reason = cls.unavailable()
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available on this machine: {reason}")
    return cls


def lowered_info(module: nn.Module) -> dict[str, Lowered]:
    """How each program of a lowered model runs, by path."""
    found = ((name, getattr(m, "qcore_lowered", None)) for name, m in module.named_modules())
    return {name: lowered for name, lowered in found if isinstance(lowered, Lowered)}


def _lower_program(
    engine: Backend,
    name: str,
    program: fx.GraphModule,
    info: ProgramInfo,
    allow_other_numerics: bool,
) -> tuple[nn.Module, Lowered]:
    table = place(engine, name, program)
    differ = table.may_differ
    if differ and not allow_other_numerics:
        raise BackendError(
            f"the program was prepared for numerics {info.plan.numerics}, but backend {name!r} "
            f"computes {engine.numerics.key}, so integers could differ; operations: {len(differ)}, "
            f"the first is {differ[0]!r}. Prepare with backend = {name!r} in the recipe, or lower "
            "with allow_other_numerics=True (qcore compare: --allow-other-numerics)"
        )
    return engine.compile(program, frozenset(table.kernels)), table


def place(engine: Backend, name: str, program: fx.GraphModule) -> Lowered:
    """What would run each operation of a program on the backend of that name."""
    kernels: dict[str, str] = {}
    reference: dict[str, str] = {}
    differ = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        why = engine.why_not(node)
        if why is None:
            kernels[node.name] = engine.kernel(node)
        else:
            reference[node.name] = why
        contract = contract_of(node)
        if why is None and contract is not None and not engine.computes(contract):
            differ.append(node.name)
    return Lowered(backend=name, kernels=kernels, reference=reference, may_differ=tuple(differ))


def contract_of(node: fx.Node) -> Numerics | None:
    """The contract that an operation of a program carries; None if it has no arithmetic to
    differ."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    for argument, value in zip(arguments, node.args, strict=False):
        if argument.name == "numerics" and isinstance(value, str):
            return Numerics.parse(value)
    return None
