"""Converters given in a call, for one's own layers or in the place of built-in ones."""

import sys

import pytest
import torch
from torch import nn

import qcore
from qcore_converters.linear import QFloatLinear

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Doubled(nn.Module):
    """A layer that no built-in converter knows as a whole."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, size))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return 2 * nn.functional.linear(x, self.weight, self.bias)


class QFloatDoubled(QFloatLinear):
    """On integers: the factor goes into weight and bias."""

    def folded(self):
        weight, bias = super().folded()
        return 2 * weight, 2 * bias


class Watched(QFloatLinear):
    """A built-in operation of another name."""


class NotImportable:
    """Makes classes that no name leads to."""

    @staticmethod
    def layer():
        class Local(nn.Linear):
            pass

        return Local


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """pytest imports test modules under names that are not in sys.modules."""
    for cls in (Doubled, QFloatDoubled, Watched):
        monkeypatch.setattr(cls, "__module__", "mapped_layers")
    monkeypatch.setitem(sys.modules, "mapped_layers", sys.modules.get(__name__, _Here()))


class _Here:
    """This module, by attribute."""

    def __getattr__(self, name):
        return globals()[name]


def test_a_layer_of_ones_own():
    """Without the mapping it is the functions inside; with it one operation as any other."""
    torch.manual_seed(0)
    model = nn.Sequential(Doubled(6), nn.ReLU(), nn.Linear(3, 2)).eval()
    assert "0" not in {row.name for row in qcore.plan(model, X).rows}
    mapping = {Doubled: QFloatDoubled}
    row = qcore.plan(model, X, mapping=mapping).row("0")
    assert (row.status, row.op, row.converter) == ("quantized", "Doubled", "mapping:Doubled")
    qfloat = qcore.calibrate(qcore.prepare(model, X, mapping=mapping), [X])
    assert isinstance(qfloat.get_submodule("0"), QFloatDoubled)
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, [X]).differing == 0
    torch.testing.assert_close(q(X), model(X), rtol=0, atol=0.1)


def test_it_wins_over_a_built_in_converter_and_keeps_its_fusions(tmp_path):
    """Also where a fusion asks for the operation; the program says where the part came from."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    qfloat = qcore.prepare(model, X, mapping={nn.Linear: Watched})
    assert qcore.info_of(qfloat).plan.row("0").fused == ("1",)
    assert all(type(op) is Watched for _, op in qcore.qfloat_ops(qfloat))
    q = qcore.convert(qcore.calibrate(qfloat, [X]))
    assert ("mapping", "Linear", "(in process)") in {
        (origin.plugin, origin.name, origin.distribution) for origin in q.meta["qcore"].origins
    }
    # A program needs nobody's class to run.
    folder = qcore.save(q, tmp_path / "artifact")
    assert torch.equal(qcore.load(folder)(X), q(X))
    # The host that everybody uses has not changed.
    other = qcore.prepare(model, X)
    assert all(type(op) is QFloatLinear for _, op in qcore.qfloat_ops(other))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({nn.Linear: nn.Linear}, "derives from QFloatOp"),
        ({int: Watched}, "derives from Module"),
        ({"Linear": Watched}, "derives from Module"),
        ({NotImportable.layer(): Watched}, "can't be found by this name"),
    ],
    ids=["no operation", "no module", "a word", "local"],
)
def test_a_wrong_mapping_is_an_error(mapping, message):
    """It says what a mapping holds."""
    with pytest.raises(qcore.PluginError, match=message):
        qcore.plan(nn.Linear(6, 2), X, mapping=mapping)
