"""Tables of integers: nn.Embedding and nn.EmbeddingBag."""

import pytest
import torch
from torch import nn

import qcore
from qcore import PerTensor, QConfig, QScheme, QuantizerConfig

IDS = torch.randint(0, 20, (2, 6))


def words(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 32, **options), nn.Linear(32, 8), nn.Linear(8, 4))


PRESETS = {
    "int8": ("int8_minmax", "int8_narrow", torch.int8, 32),
    "int8-dynamic": ("int8_dynamic", "int8_narrow", torch.int8, 32),
    "int8-weight-only": ("int8_weight_only", "int8_narrow", torch.int8, 32),
    "int4-channel": ("int4", "int4", torch.uint8, 16),
}


@pytest.mark.parametrize("name", PRESETS)
def test_table_is_looked_up_as_integers(exact, name):
    """Whatever becomes of activations, the table is integers a row, and gives float."""
    preset, dtype, stored, width = PRESETS[name]
    done = exact(words(padding_idx=0), IDS, preset, sqnr=18)
    row = done.plan.row("0")
    assert (row.status, row.kernel, row.inputs, row.output) == (
        "weight-only", "qembedding", ("float",), "float",
    )  # fmt: skip
    assert dtype in row.weight
    table = dict(done.q.named_buffers())["0.weight"]
    assert (table.dtype, tuple(table.shape)) == (stored, (20, width))


def test_groups_of_four_bits(exact):
    """The int4 weight-only preset: two values a byte, a scale for each 32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 64), nn.Linear(64, 4))
    done = exact(model, IDS, "int4_weight_only", sqnr=15)
    tensors = dict(done.q.named_buffers())
    assert tuple(tensors["0.weight"].shape) == (20, 32)
    assert tuple(tensors["0.weight_scale"].shape) == (20, 2)


def test_values_are_those_of_the_quantized_table(exact):
    """Row by row ``(q - z) * s``, with zero points and one scale for all."""
    scheme = QScheme(dtype=qcore.UINT8, granularity=PerTensor(), symmetric=False)
    qconfig = QConfig(weight=QuantizerConfig(scheme=scheme), activation=None)
    model = nn.Sequential(nn.Embedding(20, 8))
    done = exact(model, IDS, qconfig)
    t = dict(done.q.named_buffers())
    want = (t["0.weight"].double() - t["0.weight_zero_point"]) * t["0.weight_scale"].double()
    assert torch.allclose(done.q(IDS).double(), want[IDS], rtol=1e-6)
    assert (want - model[0].weight).abs().max() <= t["0.weight_scale"] * 0.501


def test_shape_that_groups_do_not_divide_is_an_error_with_the_layer():
    """32 do not divide 8 columns: the message names the layer and an override as cure."""
    with pytest.raises(
        qcore.QuantizationError, match=r"'0' \(Embedding, weight \[20, 8\]\).*override"
    ):
        qcore.plan(nn.Sequential(nn.Embedding(20, 8)), IDS, "int4_weight_only")


def test_rows_that_are_renormalized_stay_float():
    """max_norm writes to the table while it is read: float."""
    row = qcore.plan(words(max_norm=1.0), IDS).row("0")
    assert (row.status, "max_norm" in row.reason) == ("float", True)


def test_table_of_an_override_that_says_no():
    """An override leaves the table in float, by operation or by type."""
    recipe = qcore.Recipe(overrides=(qcore.Override(op="embedding", quantize=False),))
    assert qcore.plan(words(), IDS, recipe).row("0").status == "float"


def test_training_moves_the_table(exact):
    """Gradients reach the rows that were looked up, through the rounding."""
    done = exact(words(padding_idx=0), IDS)
    done.qfloat.train()
    done.qfloat(torch.tensor([[0, 3, 4, 4, 0, 3]])).square().sum().backward()
    (table,) = (p for n, p in done.qfloat.named_parameters() if n == "0.weight")
    used = table.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == [3, 4]


def test_table_that_is_also_the_head(exact, net):
    """Weight tying: the table and the last linear layer share one parameter in QFloat."""
    table, head = nn.Embedding(20, 32), nn.Linear(32, 20, bias=False)
    head.weight = table.weight
    model = net(
        lambda m, x: m.head(m.mid(m.table(x))), table=table, mid=nn.Linear(32, 32), head=head
    )
    done = exact(model, IDS)
    assert done.qfloat.get_submodule("table").weight is done.qfloat.get_submodule("head").weight
    assert done.statuses()["head"] == "quantized"


def test_table_alone_is_left_to_the_forward_that_may_read_it(pipeline, net):
    """Without a graph nobody knows who else reads the table: it stays float, and the plan says
    so."""
    model = net(
        lambda m, x: m.mid(m.table(x)) @ m.table.weight.T,
        table=nn.Embedding(20, 8),
        mid=nn.Linear(8, 8),
    )
    done = pipeline(model, (None, IDS), "int8_dynamic")
    assert "reads the table" in dict(done.plan.failures)["table"]
    assert done.fidelity.differing == 0
    assert done.sqnr > 30


BAGS = {
    "mean": ({"mode": "mean"}, ()),
    "sum": ({"mode": "sum", "padding_idx": 3}, ()),
    "max": ({"mode": "max"}, ()),
    "weighted": ({"mode": "sum"}, (torch.rand(2, 6),)),
}


@pytest.mark.parametrize("preset", ["int8_minmax", "int4_weight_only"])
@pytest.mark.parametrize("name", BAGS)
def test_bags(exact, net, name, preset):
    """Sums, means and maxima of bags, with weights and with rows that are left out."""
    options, weights = BAGS[name]
    torch.manual_seed(0)
    model = net(
        lambda m, x, *w: m.head(m.bag(x, None, *w)),
        bag=nn.EmbeddingBag(20, 32, **options),
        head=nn.Linear(32, 4),
    )
    override = qcore.Override(name="head", quantize=False)
    recipe = qcore.Recipe(preset=preset, overrides=(override,))
    done = exact(model, (IDS, *weights), recipe, sqnr=15 if "int4" in preset else 35)
    row = done.plan.row("bag")
    assert (row.status, row.kernel) == ("weight-only", "qembedding_bag")


def test_bags_with_offsets(net):
    """One flat list of indices, cut by offsets."""
    torch.manual_seed(0)
    model = net(
        lambda m, x, o: m.head(m.bag(x, o)), bag=nn.EmbeddingBag(20, 32), head=nn.Linear(32, 4)
    ).eval()
    batch = (torch.randint(0, 20, (9,)), torch.tensor([0, 2, 2, 7]))
    qfloat = qcore.calibrate(qcore.prepare(model, batch), [batch])
    q = qcore.convert(qfloat)
    assert qcore.info_of(qfloat).plan.row("bag").status == "weight-only"
    assert qcore.count_differences(qfloat, q, [batch]).differing == 0
    assert (q(*batch) - model(*batch)).abs().max() < 0.1


@pytest.mark.parametrize("preset", ["int8_minmax", "int4_weight_only"])
def test_artifact_of_tables(pipeline, net, tmp_path, preset):
    """Saved with golden indices of its own, loaded, and equal."""
    model = net(
        lambda m, x: m.head(m.table(x).mean(1) + m.bag(x)),
        table=nn.Embedding(20, 32),
        bag=nn.EmbeddingBag(20, 32, padding_idx=1),
        head=nn.Linear(32, 4),
    )
    done = pipeline(model, IDS, preset, sizes=())
    folder = qcore.save(done.q, tmp_path / "artifact")
    assert torch.equal(qcore.load(folder)(IDS), done.q(IDS))
    assert qcore.verify(folder).equal


def test_tables_on_the_cpu_backend(pipeline):
    """The cpu backend leaves the lookup to the reference kernel, and says so; equal to Q."""
    done = pipeline(words(), IDS, qcore.Recipe(backend="cpu"), sizes=(3,))
    lowered = qcore.lower(done.q, "cpu")
    assert qcore.count_differences(done.qfloat, lowered, done.batches).differing == 0
    (info,) = qcore.lowered_info(lowered).values()
    assert [n for n in info.reference if "qembedding" in n] == ["qembedding_default"]
