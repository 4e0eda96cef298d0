"""The records by which a plug-in says what it contributes.

A record is frozen data with a lazy ``target="package.module:Attribute"``: nothing of it is imported
until somebody uses it. The host adds an :class:`Origin` when it collects a record; a plug-in never
writes one itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs

from .config import QConfig, QScheme
from .errors import PluginError

__all__ = [
    "AlgorithmSpec",
    "BackendSpec",
    "CheckedSpec",
    "ConverterSpec",
    "DatasetSpec",
    "FakeQuantSpec",
    "FusionSpec",
    "ModelSpec",
    "ObserverSpec",
    "Origin",
    "PresetSpec",
    "SchemeSpec",
    "Spec",
    "is_name",
]

IN_PROCESS = "(in process)"
PHASES = ("float", "qfloat", "calibrated", "q")
"""Which model a stage works on, in the order of a run."""


@attrs.frozen(kw_only=True)
class Origin:
    """Where a contribution came from: shown in lists, plans, reports and artifacts.

    Args:
        plugin: name of the plug-in, which is that of its entry point.
        distribution: what pip installed, as PEP 503 writes it; :data:`IN_PROCESS` for what
            :meth:`qcore.PluginHost.register` was given.
        version: the distribution's; empty for what has none.
        entry_point: value of the entry point, such as ``"acme.plugin"``.

    >>> Origin(plugin="kl", distribution="acme", version="1.2", entry_point="acme.kl").describe()
    'kl (acme 1.2)'
    """

    plugin: str
    distribution: str
    version: str
    entry_point: str

    def describe(self) -> str:
        """``plugin (distribution version)``."""
        if self.distribution == IN_PROCESS:
            return f"{self.plugin} {IN_PROCESS}"
        source = " ".join(filter(None, (self.distribution, self.version)))
        return f"{self.plugin} ({source})" if source else self.plugin


def is_name(value: object) -> bool:
    """Whether ``value`` can name a plug-in or a contribution.

    A name stands in comma-separated lists, before and after the colon of ``plugin:name``, and is
    printed to terminals.

    >>> is_name("acme-kl"), is_name("acme:kl"), is_name("")
    (True, False, False)
    """
    return (
        isinstance(value, str)
        and bool(value)
        and value.isprintable()
        and not any(c.isspace() or c in ":," for c in value)
    )


def _identifier(instance: "Spec", attribute: "attrs.Attribute[str]", value: str) -> None:
    if not is_name(value):
        raise PluginError(
            f"{type(instance).__name__}: {attribute.name}={value!r}; use a non-empty name without "
            "spaces, commas and colons"
        )


def _target(instance: "Spec", attribute: "attrs.Attribute[str]", value: str | None) -> None:
    module, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    parts = [*module.split("."), *name.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise PluginError(
            f"{type(instance).__name__} {instance.name!r}: {attribute.name}={value!r}; write "
            "'package.module:Attribute'"
        )


def _names(instance: "Spec", attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(v, str) and v for v in value):
        raise PluginError(
            f"{type(instance).__name__} {instance.name!r}: {attribute.name}={value!r}; write a "
            "tuple of names, such as ('a', 'b') or ('a',)"
        )


def _phase(instance: "Spec", attribute: "attrs.Attribute[str]", value: str) -> None:
    if value not in PHASES:
        raise PluginError(
            f"AlgorithmSpec {instance.name!r}: phase={value!r}; use one of {', '.join(PHASES)}"
        )


def _pattern(instance: "Spec", attribute: "attrs.Attribute[Any]", value: object) -> None:
    steps = value if isinstance(value, tuple) else ()
    if len(steps) < 2:
        raise PluginError(
            f"FusionSpec {instance.name!r}: pattern={value!r}; write a tuple of two steps or more"
        )
    for step in steps:
        options = step if isinstance(step, tuple) else (step,)
        if not options or not all(is_name(option) for option in options):
            raise PluginError(
                f"FusionSpec {instance.name!r}: the step {step!r} of its pattern is not the name "
                "of an operation or a tuple of such names"
            )


def _pairs(value: Any) -> Any:
    # As pairs a mapping is hashable and can't be changed; a repeated record comes with pairs.
    if not isinstance(value, Mapping):
        return value
    return tuple(sorted(value.items(), key=lambda item: str(item[0])))


def _deviations(instance: "Spec", attribute: "attrs.Attribute[Any]", value: object) -> None:
    pairs = value if isinstance(value, tuple) else (None,)
    if not all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(part, str) for part in pair)
        and pair[0].isidentifier()
        and pair[0] == pair[0].lower()
        and pair[1].strip()
        for pair in pairs
    ):
        raise PluginError(
            f"{type(instance).__name__} {instance.name!r}: deviations={value!r}; write a dict from "
            "the name of each contract that it does not fulfil to the reason, such as "
            "{'order_does_not_matter': 'a moving average weighs later batches more'}"
        )


def _instance(*classes: type) -> "Callable[[Spec, attrs.Attribute[Any], Any], None]":
    """A validator that, unlike that of attrs, raises what plug-in authors are told to expect."""

    def validate(instance: "Spec", attribute: "attrs.Attribute[Any]", value: object) -> None:
        # A bool is no priority, though it is an int.
        if not isinstance(value, classes) or (isinstance(value, bool) and bool not in classes):
            raise PluginError(
                f"{type(instance).__name__} {instance.name!r}: {attribute.name}={value!r}; it must "
                f"be {' or '.join(c.__name__ for c in classes)}"
            )

    return validate


@attrs.frozen(kw_only=True)
class Spec:
    """Base of the records.

    ``kind`` is the word that lists and errors use. ``contract`` holds the public names in ``qcore``
    of the classes of which the target must derive from one; None asks for no more than a callable.
    """

    kind: ClassVar[str]
    contract: ClassVar[tuple[str, ...] | None] = None

    name: str = attrs.field(validator=_identifier)
    summary: str = attrs.field(default="", validator=_instance(str))
    origin: Origin | None = attrs.field(default=None, eq=False)

    @property
    def target(self) -> str:
        """What the record stands for, in one line: where its code is, or its data in words."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class _TargetSpec(Spec):
    target: str = attrs.field(validator=_target)


@attrs.frozen(kw_only=True)
class CheckedSpec(Spec):
    """Base of the records of the kinds that have contracts, which :mod:`qcore.testing` checks.

    Args:
        deviations: name of each contract that the contribution does not fulfil on purpose -> the
            reason, for people; kept as pairs, in the order of the names. The kit expects these
            contracts to fail, and lists show them.
    """

    deviations: tuple[tuple[str, str], ...] = attrs.field(
        default=(), converter=_pairs, validator=_deviations
    )


@attrs.frozen(kw_only=True)
class _CheckedTargetSpec(CheckedSpec):
    target: str = attrs.field(validator=_target)


@attrs.frozen(kw_only=True)
class ObserverSpec(_CheckedTargetSpec):
    """A :class:`qcore.Observer` class."""

    kind: ClassVar[str] = "observer"
    contract: ClassVar[tuple[str, ...] | None] = ("Observer",)


@attrs.frozen(kw_only=True)
class FakeQuantSpec(_CheckedTargetSpec):
    """A :class:`qcore.FakeQuantize` class."""

    kind: ClassVar[str] = "fake_quant"
    contract: ClassVar[tuple[str, ...] | None] = ("FakeQuantize",)


@attrs.frozen(kw_only=True)
class SchemeSpec(Spec):
    """A :class:`qcore.QScheme` under a name that recipes can use.

    Args:
        scheme: the scheme itself, with nothing to import.
    """

    kind: ClassVar[str] = "scheme"

    scheme: QScheme = attrs.field(validator=_instance(QScheme))

    @property
    def target(self) -> str:
        """The scheme in words; a scheme is data and has nothing to import."""
        return self.scheme.describe()


@attrs.frozen(kw_only=True)
class PresetSpec(Spec):
    """A :class:`qcore.QConfig` under a name, the starting point of a recipe.

    Args:
        qconfig: the configuration; it may name parts of any plug-in.
    """

    kind: ClassVar[str] = "preset"

    qconfig: QConfig = attrs.field(validator=_instance(QConfig))

    @property
    def target(self) -> str:
        """The schemes of weight and activation in words."""
        weight, activation = self.qconfig.weight, self.qconfig.activation
        return (
            f"weight={weight.scheme if weight else 'float'} "
            f"activation={activation.scheme if activation else 'float'}"
        )


@attrs.frozen(kw_only=True)
class FusionSpec(CheckedSpec):
    """A chain of operations that one converter executes as one.

    Args:
        pattern: names of operations, first to last, as the converters declare them, such as
            ``("conv2d", "batch_norm", "relu")``. A step may be a tuple of alternatives. Each step
            but the last must have the next one as its only user. The further tensor inputs of a
            step (of ``add``) become further inputs of the fused operation.
        op: name of the operation whose converter takes the match; by default the first step's.
        priority: higher is tried first; among equals the longer pattern, then (plug-in, name).
        check: optional ``"package.module:function"``; called with the :class:`qcore.Match`, it
            returns None to accept, or the reason why this match must not be fused.
        examples: optional ``"package.module:function"`` for :mod:`qcore.testing`; called without
            arguments it yields pairs ``(module, inputs)``: a float module that has a match, and
            a tuple of tensors to call it with.
    """

    kind: ClassVar[str] = "fusion"

    pattern: tuple[str | tuple[str, ...], ...] = attrs.field(validator=_pattern)
    op: str | None = attrs.field(default=None, validator=attrs.validators.optional(_identifier))
    priority: int = attrs.field(default=0, validator=_instance(int))
    check: str | None = attrs.field(default=None, validator=attrs.validators.optional(_target))
    examples: str | None = attrs.field(default=None, validator=attrs.validators.optional(_target))

    @property
    def target(self) -> str:
        """The pattern in words."""
        steps = (s if isinstance(s, str) else "|".join(s) for s in self.pattern)
        return " -> ".join(steps)


@attrs.frozen(kw_only=True)
class ConverterSpec(_CheckedTargetSpec):
    """How an operation of a float model becomes an operation of QFloat, and of Q.

    Args:
        op: the operation's name, which fusion patterns and recipes use (``"conv2d"``).
        types: module classes as ``"torch.nn.modules.conv.Conv2d"`` or any importable alias of them;
            subclasses that keep ``forward`` count too.
        functions: operations of the captured graph by overload, such as ``"aten.add.Tensor"``.
        plain: names of arguments that the operation takes as they are, whatever their dtype: masks,
            indices, states. The other tensors are quantized.
        target: a :class:`qcore.QFloatOp`, :class:`qcore.Movement` or :class:`qcore.Island` class.
        examples: optional ``"package.module:function"`` for :mod:`qcore.testing`; called without
            arguments it yields pairs ``(module, inputs)``: a float module that has the operation,
            and a tuple of tensors to call it with.
    """

    kind: ClassVar[str] = "converter"
    contract: ClassVar[tuple[str, ...] | None] = ("QFloatOp", "Movement", "Island")

    op: str = attrs.field(validator=_identifier)
    types: tuple[str, ...] = attrs.field(default=(), validator=_names)
    functions: tuple[str, ...] = attrs.field(default=(), validator=_names)
    plain: tuple[str, ...] = attrs.field(default=(), validator=_names)
    examples: str | None = attrs.field(default=None, validator=attrs.validators.optional(_target))


@attrs.frozen(kw_only=True)
class BackendSpec(_CheckedTargetSpec):
    """A :class:`qcore.Backend` class."""

    kind: ClassVar[str] = "backend"
    contract: ClassVar[tuple[str, ...] | None] = ("Backend",)


@attrs.frozen(kw_only=True)
class AlgorithmSpec(_CheckedTargetSpec):
    """A stage of the pipeline: a callable that changes the model of one phase.

    It is called as ``stage(model, *, dataset, seed, **options)`` with the recipe's
    :class:`qcore.Dataset`, seed and options, and returns the model, changed in place or another.
    A stage of phase ``"float"`` returns another and leaves the one that it was given as it is.

    What a stage changes is told apart as ``"weights"`` (parameters of layers), ``"statistics"``
    (buffers of layers, such as the running mean of BatchNorm), ``"scales"`` (the state of fake
    quantizers, learned parameters included), ``"structure"`` (which modules there are) and
    ``"program"`` (anything in Q); each that it changes it writes. Other names are marks by which
    stages depend on each other.

    Args:
        phase: ``"float"`` (before prepare), ``"qfloat"`` (before calibration), ``"calibrated"``
            (after it) or ``"q"`` (after convert).
        reads: names of the state that the stage needs, written by an earlier one.
        writes: names of the state that it leaves.
        examples: optional ``"package.module:function"`` for :mod:`qcore.testing`; called without
            arguments it yields pairs ``(module, inputs)``: a float module that the stage changes,
            and a tuple of tensors to call it with.
    """

    kind: ClassVar[str] = "algorithm"

    phase: str = attrs.field(validator=_phase)
    reads: tuple[str, ...] = attrs.field(default=(), validator=_names)
    writes: tuple[str, ...] = attrs.field(default=(), validator=_names)
    examples: str | None = attrs.field(default=None, validator=attrs.validators.optional(_target))


@attrs.frozen(kw_only=True)
class ModelSpec(_TargetSpec):
    """A callable that builds a float ``nn.Module`` from a recipe's options.

    Args:
        options: what it is called with where a recipe says nothing else.
    """

    kind: ClassVar[str] = "model"

    options: Mapping[str, Any] = attrs.field(factory=dict, validator=_instance(Mapping))


@attrs.frozen(kw_only=True)
class DatasetSpec(_TargetSpec):
    """A callable that loads a :class:`qcore.Dataset` from a recipe's options."""

    kind: ClassVar[str] = "dataset"
