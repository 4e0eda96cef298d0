"""The built-in plug-ins pass the kit that everybody's pass, with no special case."""

import pytest

import qcore
from qcore.testing import check_contract, contracts, subjects

HOST = qcore.PluginHost()
PLUGINS = ("observers", "fakequants", "fusions", "converters", "backends", "algorithms", "zoo")
QUICK = ("fusions:conv-bn-add-relu", "converters:linear", "converters:cat", "converters:pad")
"""Of fusions and converters; together the others take minutes."""

SLOW = ("fusion", "converter")

SUBJECTS = {subject.name: subject for plugin in PLUGINS for subject in subjects(HOST, plugin)}


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        pytest.param(
            name,
            contract,
            id=f"{name}-{contract.name}",
            marks=[pytest.mark.slow] * (subject.kind in SLOW and name not in QUICK),
        )
        for name, subject in SUBJECTS.items()
        for contract in contracts(subject.kind)
    ],
)
def test_a_built_in_fulfils_a_contract(name, contract):
    """Or deviates from it as its record says."""
    outcome = check_contract(SUBJECTS[name], contract)
    assert outcome.ok, outcome.message


def test_the_deviations_of_built_ins():
    """Each is here with a reason; a new one is a decision."""
    assert {
        (name, contract) for name, subject in SUBJECTS.items() for contract in subject.deviations
    } == {
        ("observers:ema", "order_of_batches_does_not_matter"),
        ("observers:passive", "nan_and_infinity_are_refused"),
        ("observers:passive", "values_are_seen"),
    }
