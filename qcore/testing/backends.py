"""The contracts of backends.

A backend says of each node whether it has a kernel for it. So that nothing has to be believed, it
is asked about generated programs of every operation, and whatever it takes is compared with the
definition, by every arithmetic contract that it says it computes.
"""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..backend import Backend, lower, lowered_info
from ..calibration import calibrate
from ..conversion import convert, programs
from ..errors import BackendError
from ..host import PluginHost
from ..numerics import Numerics
from ..preparation import prepare
from ..recipe import Recipe
from ..threads import num_threads
from .backend_cases import CASES
from .backend_draw import Case, Draw, Emphasis
from .backend_programs import LAYOUTS, Layout, Tried, agree, tried
from .contract import Contract, ContractViolation, NotApplicable, Subject
from .networks import GROUPS, NETWORKS, QCONFIGS

__all__ = ["CONTRACTS"]

_ROUNDS = 6
"""Cases of each operation, contract and emphasis."""

_BATCHES = (0, 1, 7)

_NUMERICS = (
    Numerics(),
    Numerics(rounding="half_away"),
    Numerics(bias="float32"),
    Numerics(zero_point="before"),
    Numerics(requantization="scale_bias_rescale", bias="float32"),
    Numerics(requantization="scale_bias_rescale", bias="float32", zero_point="before"),
    Numerics(requantization="fixed_point"),
)
"""Contracts that a backend may compute besides the one that it declares."""


def _declares_itself(subject: Subject) -> int:
    cls: type[Backend] = subject.load()
    if getattr(cls, "name", None) != subject.spec.name:
        raise ContractViolation(
            f"its class has name={getattr(cls, 'name', None)!r}; due is that of its record, "
            f"{subject.spec.name!r}"
        )
    if not isinstance(cls.numerics, Numerics) or not isinstance(cls.lsb_bound, int):
        raise ContractViolation(
            f"its class has numerics={cls.numerics!r} and lsb_bound={cls.lsb_bound!r}; due are a "
            "qcore.Numerics and a number of steps"
        )
    reason = cls.unavailable()
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise ContractViolation(
            f"unavailable() gave {reason!r}; due is None, or a reason and the cure"
        )
    return 3


def _class(subject: Subject) -> type[Backend]:
    cls: type[Backend] = subject.load()
    reason = cls.unavailable()
    if reason is not None:
        raise NotApplicable(f"the backend is not available on this machine: {reason}")
    return cls


def _cases(backend: Backend, emphasis: Emphasis, rounds: int) -> Iterator[Case]:
    """Cases of every operation; fewer by contracts other than the one that it declares."""
    others = [n for n in _NUMERICS if n != backend.numerics and backend.computes(n)]
    for numerics in (backend.numerics, *others):
        own = numerics == backend.numerics
        for seed in range(rounds if own else -(-rounds // 3)):
            for drawn in CASES.values():
                case = drawn(Draw(seed, numerics, emphasis))
                # What has no arithmetic to differ is the same by every contract.
                if own or numerics.key in case.arguments:
                    yield case


def _taken(
    subject: Subject,
    emphasis: Emphasis = "any",
    layout: Layout = "contiguous",
    *,
    rounds: int = _ROUNDS,
    inputs_too: bool = False,
) -> Iterator[tuple[Backend, Tried]]:
    """The cases that the backend takes."""
    backend = _class(subject)()
    for case in _cases(backend, emphasis, rounds):
        trial = tried(backend, case, layout, inputs_too=inputs_too)
        if trial.lowered is not None:
            yield backend, trial


def _some(count: int, what: str = "of the generated operations") -> int:
    """``count``, if it is any."""
    if not count:
        raise NotApplicable(f"it takes none {what}")
    return count


def _compared(subject: Subject, emphasis: Emphasis) -> int:
    count = 0
    for backend, trial in _taken(subject, emphasis):
        agree(trial.case, trial.run(), trial.wanted(), backend.lsb_bound)
        count += 1
    return count


def _computes_what_it_takes(subject: Subject) -> int:
    count = _compared(subject, "any")
    if not count:
        raise ContractViolation(
            f"why_not refuses every generated program of {len(CASES)} operations "
            f"({', '.join(CASES)}); a backend takes at least one"
        )
    return count


def _rounds_as_declared(subject: Subject) -> int:
    return _some(_compared(subject, "ties"))


def _saturates_at_the_ends(subject: Subject) -> int:
    return _some(_compared(subject, "saturation"))


def _subtracts_zero_points(subject: Subject) -> int:
    return _some(_compared(subject, "zero points"))


def _scales_each_channel(subject: Subject) -> int:
    return _some(_compared(subject, "channel scales"))


def _reads_any_layout(subject: Subject) -> int:
    count = 0
    for layout in LAYOUTS:
        for backend, trial in _taken(subject, "any", layout, rounds=2):
            what = f"{trial.case} with {layout} inputs"
            agree(what, trial.run(), trial.wanted(), backend.lsb_bound)
            count += 1
    return _some(count)


def _takes_any_batch(subject: Subject) -> int:
    count = 0
    for backend, trial in _taken(subject, rounds=3):
        if not trial.case.batched:
            continue
        for size in _BATCHES:
            inputs = tuple(_sized(x, size) for x in trial.inputs)
            what = f"{trial.case} compiled for any batch, called with one of {size}"
            agree(what, trial.run(*inputs), trial.wanted(*inputs), backend.lsb_bound)
            count += 1
    return _some(count, "of the operations whose inputs have a batch")


def _sized(x: Tensor, size: int) -> Tensor:
    return torch.cat([x] * (size // max(1, x.shape[0]) + 1))[:size]


def _leaves_inputs_alone(subject: Subject) -> int:
    count = 0
    for _, trial in _taken(subject, rounds=3, inputs_too=True):
        # What the caller gave, and what stands before the operation in the program.
        before = [x.clone() for x in trial.inputs]
        _, *wanted = trial.program(*trial.inputs)
        _, *after = trial.call()
        for x, was in zip((*trial.inputs, *after), (*before, *wanted), strict=True):
            if not _same(x, was):
                raise ContractViolation(f"{trial.case}: running it changed an input")
        count += 1
    return _some(count)


def _results_stay(subject: Subject) -> int:
    count = 0
    for _, trial in _taken(subject, rounds=3):
        first = trial.run()
        kept = first.clone()
        # Other values of the same shapes: the same memory, if the backend keeps any.
        trial.run(*(x.flip(0) for x in trial.inputs))
        if not _same(first, kept):
            raise ContractViolation(f"{trial.case}: the next call changed the result of this one")
        if not _same(trial.run(), kept):
            raise ContractViolation(
                f"{trial.case}: the same inputs gave another result after a call with other ones"
            )
        count += 1
    return _some(count)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _threads_do_not_matter(subject: Subject) -> int:
    count = 0
    for _, trial in _taken(subject, rounds=2):
        results = []
        for threads in (1, 2, 3):
            with num_threads(threads):
                results.append(trial.run())
        if not all(_same(results[0], other) for other in results[1:]):
            raise ContractViolation(f"{trial.case}: 1, 2 and 3 threads give different results")
        count += 1
    return _some(count)


def _programs(subject: Subject) -> tuple[tuple[str, nn.Module, Tensor], ...]:
    """Q of each network with each configuration, by the backend's own contract; and inputs."""
    return _kept_programs(subject.host, subject.name)


@lru_cache(maxsize=1)
def _kept_programs(host: PluginHost, backend: str) -> tuple[tuple[str, nn.Module, Tensor], ...]:
    """Kept for the next contract, which is checked on the same backend; checks change none."""
    found = []
    for name, (make, shape) in NETWORKS.items():
        qconfigs = dict(QCONFIGS)
        if name == "attention":
            qconfigs["int8 tokens, int4 weights in groups"] = GROUPS
        for words, qconfig in qconfigs.items():
            model, x = make().eval(), torch.randn(6, *shape)
            recipe = Recipe(qconfig=qconfig, backend=backend)
            q = convert(calibrate(prepare(model, x[:2], recipe, host=host), [x]))
            found.append((f"network {name!r} with {words}", q, x))
    return tuple(found)


def _runs_whole_networks(subject: Subject) -> int:
    cls, count = _class(subject), 0
    for what, q, x in _programs(subject):
        lowered = lower(q, subject.name, host=subject.host)
        for batch in (x, torch.randn(1, *x.shape[1:]), torch.randn(9, *x.shape[1:]), x[:0]):
            with torch.no_grad():
                found, wanted = lowered(batch).cpu(), q(batch)
            # The bound is of one operation; over a whole network it only tells right from wrong.
            bound = cls.lsb_bound and max(12, 4 * cls.lsb_bound)
            agree(f"{what}, batch of {batch.shape[0]}", found, wanted, bound)
            count += 1
    return count


def _names_what_it_leaves(subject: Subject) -> int:
    _class(subject)
    count = 0
    for what, q, x in _programs(subject):
        lowered = lower(q, subject.name, host=subject.host)
        for path, program in programs(q).items():
            table = lowered_info(lowered).get(path)
            if table is None:
                raise ContractViolation(f"{what}: lowered_info has nothing about it")
            calls = {n.name for n in program.graph.nodes if n.op == "call_function"}
            known = {**table.kernels, **table.reference}
            silent = [n for n in calls if not str(known.get(n) or "").strip()]
            if silent or set(table.kernels) & set(table.reference):
                raise ContractViolation(
                    f"{what}: lowered_info does not say of {silent or 'one operation'} either what "
                    "runs it or why the reference does"
                )
            count += len(calls)
        with torch.no_grad():
            lowered(x)
    return count


def _leaves_the_program_alone(subject: Subject) -> int:
    _class(subject)
    count = 0
    for what, q, x in _programs(subject):
        before = copy.deepcopy(q)
        once, twice = (lower(q, subject.name, host=subject.host) for _ in range(2))
        with torch.no_grad():
            if not _same(once(x), twice(x)) or not _same(copy.deepcopy(once)(x), twice(x)):
                raise ContractViolation(f"{what}: two lowered programs, or a copy, differ")
        for path, program in programs(q).items():
            was = programs(before)[path]
            tensors = dict(was.state_dict())
            changed = [k for k, v in program.state_dict().items() if not _same(v, tensors[k])]
            if str(program.graph) != str(was.graph) or changed:
                raise ContractViolation(f"{what}: lowering it changed it: {changed or 'its graph'}")
        count += 1
    return count


def _refuses_other_contracts(subject: Subject) -> int:
    backend = _class(subject)()
    other = next((n for n in _NUMERICS if not backend.computes(n)), None)
    if other is None:
        raise NotApplicable("it computes every contract")
    count = 0
    for name, (make, shape) in NETWORKS.items():
        x = torch.randn(6, *shape)
        recipe = Recipe(qconfig=QCONFIGS["int8"], numerics=other.key)
        q = convert(calibrate(prepare(make().eval(), x, recipe, host=subject.host), [x]))
        asked = lower(q, subject.name, host=subject.host, allow_other_numerics=True)
        differ = [node for table in lowered_info(asked).values() for node in table.may_differ]
        if not differ:
            # It takes nothing that has an arithmetic to differ.
            continue
        try:
            lower(q, subject.name, host=subject.host)
        except BackendError:
            count += 1
        else:
            raise ContractViolation(
                f"network {name!r} was prepared for {other.key}, and lowering it to a backend of "
                f"{backend.numerics.key} was not refused, though {differ[0]!r} may differ"
            )
    return _some(count, "of the operations that have an arithmetic contract")


def _contract(name: str, check: Callable[[Subject], int], protects: str) -> Contract:
    return Contract(kind="backend", name=name, protects=protects, check=check)


CONTRACTS: tuple[Contract, ...] = (
    _contract(
        "declares_itself",
        _declares_itself,
        "Plans, artifacts and qcore doctor go by what a backend says of itself, also where it "
        "can't run.",
    ),
    _contract(
        "computes_what_it_takes",
        _computes_what_it_takes,
        "What a plan promises to a backend is computed there, for every shape and dtype that it "
        "takes, within its bound.",
    ),
    _contract(
        "rounds_as_declared",
        _rounds_as_declared,
        "QFloat simulates the declared rounding; a backend that rounds ties otherwise deploys "
        "another model than the one that was measured.",
    ),
    _contract(
        "saturates_at_the_ends",
        _saturates_at_the_ends,
        "A large value that wraps around, or is cut at another end than that of its dtype, becomes "
        "a wrong answer without a warning.",
    ),
    _contract(
        "subtracts_zero_points",
        _subtracts_zero_points,
        "Affine schemes have zero points other than 0, and every one of them enters every sum.",
    ),
    _contract(
        "scales_each_channel",
        _scales_each_channel,
        "Weights have a scale a channel; a neighbour's scale is wrong by whatever their ratio is.",
    ),
    _contract(
        "reads_any_layout",
        _reads_any_layout,
        "Programs hand on views; a kernel that takes the memory for the values mixes them up.",
    ),
    _contract(
        "takes_any_batch",
        _takes_any_batch,
        "A program is made once and called with batches of any size, also none.",
    ),
    _contract(
        "leaves_inputs_alone",
        _leaves_inputs_alone,
        "A value may be read by several operations, and the caller's tensors are the caller's.",
    ),
    _contract(
        "results_stay",
        _results_stay,
        "The same inputs give the same results, and a result that a caller holds is not "
        "overwritten by a later call.",
    ),
    _contract(
        "threads_do_not_matter",
        _threads_do_not_matter,
        "A result does not depend on the number of processors of the machine.",
    ),
    _contract(
        "runs_whole_networks",
        _runs_whole_networks,
        "Operations that are right one by one must be right together, with shared and residual "
        "values and float parts between.",
    ),
    _contract(
        "names_what_it_leaves",
        _names_what_it_leaves,
        "There is no silent fallback: every operation says what runs it, or why the reference "
        "does.",
    ),
    _contract(
        "leaves_the_program_alone",
        _leaves_the_program_alone,
        "The program is the definition, and is lowered again for other machines.",
    ),
    _contract(
        "refuses_other_contracts",
        _refuses_other_contracts,
        "A program keeps the integers that it was prepared for, unless the caller gives them up "
        "by name.",
    ),
)
