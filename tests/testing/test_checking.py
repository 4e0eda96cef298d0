"""What comes of checking a contract, and what is checked of a plug-in."""

import attrs
import pytest
import torch

import qcore
from qcore import Observer
from qcore.testing import (
    KINDS,
    Contract,
    ContractViolation,
    NotApplicable,
    check_contract,
    check_plugin,
    check_subject,
    contracts,
    subjects,
)
from qcore.testing import observers as observers_module


class Part(Observer):
    """Never asked anything: the contracts of these tests look elsewhere."""


def law(check, name="law"):
    return Contract(kind="observer", name=name, protects="Something.", check=check)


def raiser(error):
    def check(subject):
        raise error

    return check


@pytest.fixture
def laws(monkeypatch):
    """Puts other contracts in the place of those of observers."""
    return lambda *found: monkeypatch.setattr(observers_module, "CONTRACTS", found)


@pytest.mark.parametrize("kind", KINDS)
def test_contracts_are_named_once_and_have_reasons(kind):
    """The names of a kind differ, and every reason is one sentence."""
    found = contracts(kind)
    assert len({contract.name for contract in found}) == len(found)
    for contract in found:
        assert contract.kind == kind
        assert contract.protects.endswith(".")
        assert ". " not in contract.protects


def test_contracts_of_another_kind():
    """A kind without contracts is an error that names those with."""
    with pytest.raises(qcore.PluginError, match="did you mean 'observer'.*fake_quant"):
        contracts("observr")


@pytest.mark.parametrize(
    ("fields", "message"), [({"kind": "scheme"}, "use one of"), ({"name": "A b"}, "snake_case")]
)
def test_a_contract_has_a_kind_and_a_name(fields, message):
    """Both are checked where the contract is written."""
    with pytest.raises(qcore.PluginError, match=message):
        attrs.evolve(law(lambda subject: 1), **fields)


@pytest.mark.parametrize(
    ("check", "status", "message"),
    [
        (lambda subject: 3, "passed", ""),
        (lambda subject: 0, "failed", "examined 0 cases"),
        (raiser(ContractViolation("2 came; due is 1")), "failed", "2 came; due is 1"),
        (raiser(ZeroDivisionError("x")), "failed", "ZeroDivisionError: x"),
        (raiser(SystemExit(0)), "failed", "SystemExit"),
        (raiser(NotApplicable("no scale")), "not applicable", "no scale"),
    ],
    ids=["passed", "nothing", "violated", "broken", "exit", "not_applicable"],
)
def test_statuses(subject_of, laws, check, status, message):
    """A check passes with cases; whatever it raises becomes an outcome."""
    laws(law(check))
    outcome = check_contract(subject_of("qcore_observers", Part), law(check))
    assert outcome.status == status
    assert message in outcome.message
    assert outcome.cases == (3 if status == "passed" else 0)
    assert (outcome.subject, outcome.kind, outcome.contract) == ("acme:part", "observer", "law")
    assert outcome.ok == (status != "failed")


@pytest.mark.parametrize(
    ("check", "status", "ok"),
    [
        (raiser(ContractViolation("2 came")), "expected failure", True),
        (lambda subject: 0, "expected failure", True),
        (lambda subject: 3, "unexpected pass", False),
        (raiser(NotApplicable("no scale")), "failed", False),
    ],
    ids=["violated", "nothing", "passed", "not_applicable"],
)
def test_statuses_of_a_deviation(subject_of, laws, check, status, ok):
    """A declared deviation must really fail, and its reason is shown."""
    contract = law(check)
    laws(contract)
    subject = subject_of("qcore_observers", Part, deviations={"law": "it is random"})
    outcome = check_contract(subject, contract)
    assert (outcome.status, outcome.ok) == (status, ok)
    assert "it is random" in outcome.message


def test_a_deviation_from_no_contract_fails(subject_of, laws):
    """A misspelt or renamed contract would excuse nothing."""
    laws(law(lambda subject: 1))
    subject = subject_of("qcore_observers", Part, deviations={"lav": "it is random"})
    passed, failed = check_subject(subject)
    assert (passed.contract, passed.status) == ("law", "passed")
    assert (failed.contract, failed.status) == ("lav", "failed")
    assert "did you mean 'law'" in failed.message


def test_a_target_that_does_not_load_fails_every_contract(subject_of):
    """The error of the host is the message."""
    subject = subject_of("qcore_observers", Part)
    spec = attrs.evolve(subject.spec, target="nowhere:Part")
    outcomes = check_subject(attrs.evolve(subject, spec=spec))
    assert {outcome.status for outcome in outcomes} == {"failed"}
    assert all("importing 'nowhere' failed" in outcome.message for outcome in outcomes)


def test_nothing_examined_is_a_violation(subject_of, laws):
    """If no contract is applicable there is no result."""
    laws(law(raiser(NotApplicable("no scale"))))
    with pytest.raises(ContractViolation, match="acme:part: none of its 1 contracts.*no scale"):
        check_subject(subject_of("qcore_observers", Part))


def test_random_numbers_start_alike_and_go_on(subject_of, laws):
    """A check that draws gives the same each time, and leaves no trace."""
    drawn = []

    def check(subject):
        drawn.append(torch.rand(()).item())
        return 1

    laws(law(check))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in range(2):
        check_contract(subject_of("qcore_observers", Part), law(check))
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plugin_is_checked_whole(subject_of, laws):
    """An outcome for each contract of each contribution."""
    laws(law(lambda subject: 1, "a"), law(lambda subject: 2, "b"))
    host = subject_of("qcore_observers", Part).host
    outcomes = check_plugin(host, "acme")
    assert [(o.subject, o.contract, o.cases) for o in outcomes] == [
        ("acme:part", "a", 1),
        ("acme:part", "b", 2),
    ]


class Data:
    """A plug-in that brings nothing with contracts."""

    @qcore.hookimpl
    def qcore_fake_quants(self):
        return [qcore.SchemeSpec(name="s", scheme=qcore.QScheme(dtype=qcore.INT8))]


def test_an_unknown_plugin():
    """The nearest name is given."""
    host = qcore.PluginHost([])
    host.register(Data(), name="acme")
    with pytest.raises(qcore.PluginError, match="no plug-in is called 'acne'; did you mean 'acme'"):
        subjects(host, "acne")


def test_a_plugin_that_is_not_in_use():
    """Blocked is no pass."""
    host = qcore.PluginHost(block=["observers"])
    with pytest.raises(qcore.PluginError, match="is blocked"):
        subjects(host, "observers")


def test_a_plugin_without_anything_to_check():
    """The kinds that have contracts are named."""
    host = qcore.PluginHost([])
    host.register(Data(), name="acme")
    with pytest.raises(
        qcore.PluginError, match="has nothing to check: it contributes scheme.*observer"
    ):
        subjects(host, "acme")


def test_examples_that_are_none(subject_of):
    """Without a function the contract that needs one is not applicable."""
    host = qcore.PluginHost([])
    spec = qcore.FusionSpec(name="f", pattern=("a", "b"))
    host.register(fusion_plugin(spec), name="acme")
    subject = qcore.testing.Subject(host=host, spec=host.find("fusion", "f"))
    with pytest.raises(NotApplicable, match="FusionSpec.examples names no modules"):
        list(subject.examples())


def fusion_plugin(spec):
    hook = staticmethod(qcore.hookimpl(lambda: [spec]))
    return type("Plugin", (), {"qcore_fusion_patterns": hook})


def good_examples():
    yield torch.nn.Linear(2, 2), (torch.ones(1, 2),)


def bad_examples():
    yield torch.nn.Linear(2, 2), torch.ones(1, 2)


@pytest.mark.parametrize("name", ["good", "bad"])
def test_examples_are_checked(name):
    """Pairs of a module and a tuple of tensors come through; anything else is the author's
    mistake."""
    host = qcore.PluginHost([])
    target = f"{__name__}:{name}_examples"
    host.register(
        fusion_plugin(qcore.FusionSpec(name="f", pattern=("a", "b"), examples=target)), name="acme"
    )
    subject = qcore.testing.Subject(host=host, spec=host.find("fusion", "f"))
    if name == "good":
        ((module, inputs),) = subject.examples()
        assert module(*inputs).shape == (1, 2)
    else:
        with pytest.raises(ContractViolation, match="due is a pair of an nn.Module and a tuple"):
            list(subject.examples())
