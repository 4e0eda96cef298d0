"""Attention: two integer products with a float softmax between them, in every form of torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(2, 5, 16)


def heads(x):
    return x.unflatten(-1, (4, -1)).transpose(1, 2)


def attending(net, function):
    """Self-attention with four heads of four values, ``function(m, q, k, v)`` in the middle."""
    torch.manual_seed(3)
    model = net(
        lambda m, x: m.out(
            function(m, *(heads(t) for t in m.qkv(x).chunk(3, -1))).transpose(1, 2).flatten(2)
        ),
        qkv=nn.Linear(16, 48),
        out=nn.Linear(16, 16),
    )
    model.register_buffer("hidden", torch.rand(5, 5) > 0.6)
    model.hidden.fill_diagonal_(False)
    return model


sdpa = F.scaled_dot_product_attention
FORMS = {
    "plain": lambda m, q, k, v: sdpa(q, k, v),
    "scaled": lambda m, q, k, v: sdpa(q, k, v, scale=0.3),
    "causal": lambda m, q, k, v: sdpa(q, k, v, is_causal=True),
    "truth-mask": lambda m, q, k, v: sdpa(q, k, v, attn_mask=~m.hidden),
    "float-mask": lambda m, q, k, v: sdpa(
        q, k, v, attn_mask=torch.zeros(5, 5).masked_fill(m.hidden, -torch.inf)
    ),
    "bias": lambda m, q, k, v: sdpa(q, k, v, attn_mask=m.hidden.float()),
    "grouped": lambda m, q, k, v: sdpa(q, k[:, ::2], v[:, ::2], enable_gqa=True),
    "shorter-query": lambda m, q, k, v: sdpa(q, k[:, :, 1:], v[:, :, 1:]),
}


@pytest.mark.parametrize(
    ("name", "preset"), [*((name, "int8_minmax") for name in FORMS), ("truth-mask", "uint8")]
)
def test_scaled_dot_product_attention(exact, net, name, preset):
    """Any scale, mask and grouping: integers of QFloat and Q are equal, the result near float."""
    done = exact(attending(net, FORMS[name]), X, preset)
    (row,) = (row for row in done.plan.rows if row.op == "attention")
    assert (row.status, row.kernel, len(row.inputs)) == ("quantized", "qmatmul", 3)
    kinds = [str(n.target) for n in done.q.graph.nodes if "qmatmul" in str(n.target)]
    assert len(kinds) == 2


def test_attention_equals_the_slow_formula(pipeline, net):
    """Scores, probabilities and context of one head from the integers, in float64."""
    model = attending(net, FORMS["truth-mask"])
    done = pipeline(model, X, sizes=())
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            seen[node.name] = (node, super().run_node(node))
            return seen[node.name][1]

    Watch(done.q).run(X)
    first, second = (
        [seen[str(a)][1] if isinstance(a, torch.fx.Node) else a for a in node.args]
        for node, _ in seen.values()
        if "qmatmul" in str(node.target)
    )

    def values(q, scale, zero_point):
        return (q.double().numpy() - zero_point) * float(np.float32(scale))

    scores = values(*first[:3]) @ values(*first[3:6]) / 2
    scores[:, :, model.hidden.numpy()] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p = np.clip(p, 0, 255 * second[1])
    assert np.abs(values(*second[:3]) - p).max() <= 0.51 * second[1]
    context = values(*second[:3]) @ values(*second[3:6])
    result = next(
        v for n, v in seen.values() if "qmatmul" in str(n.target) and n.args[1] == second[1]
    )
    scale, zero_point = second[6], second[7]
    clipped = np.clip(context, (-128 - zero_point) * scale, (127 - zero_point) * scale)
    assert np.abs(values(result, scale, zero_point) - clipped).max() <= 0.51 * scale


def test_query_that_sees_no_key_has_zeros(pipeline, net):
    """A row of the mask without a key gives zeros, as torch does, and no NaN."""
    model = attending(net, FORMS["truth-mask"])
    model.hidden[2] = True
    done = pipeline(model, X)
    assert done.fidelity.differing == 0
    assert not done.q(X).isnan().any()
    assert done.sqnr > 25


def test_dropout_inside_attention_stays_float(net):
    """Attention that drops values in eval mode too is no function of its inputs: float."""
    model = attending(net, lambda m, q, k, v: sdpa(q, k, v, dropout_p=0.5))
    row = next(r for r in qcore.plan(model, X).rows if "attention" in r.kind)
    assert (row.status, row.reason) == ("float", "it drops values at random")


def test_weight_only_and_dynamic_leave_attention_in_float(exact, net):
    """Where activations stay float, or are quantized in linear layers only, the plan says why."""
    for preset, why in (("int8_weight_only", "weights only"), ("int8_dynamic", "linear layers")):
        done = exact(attending(net, FORMS["causal"]), X, preset, sqnr=20)
        (row,) = (row for row in done.plan.rows if row.op == "attention")
        assert row.status == "float"
        assert why in row.reason
        assert any("scaled_dot_product" in node.name for node in done.q.graph.nodes)


def test_added_products(exact, net):
    """``baddbmm`` and ``addmm`` add a float tensor, minus infinity too, to the integer product."""
    hidden = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)
    model = net(
        lambda m, x: m.c(torch.baddbmm(hidden, m.a(x), m.b(x).mT, alpha=0.5).softmax(-1)),
        a=nn.Linear(16, 8),
        b=nn.Linear(16, 8),
        c=nn.Linear(5, 4),
    )
    done = exact(model, X)
    assert [row.status for row in done.plan.rows if row.op == "matmul"] == ["quantized"]
    model = net(
        lambda m, x: m.c(torch.addmm(m.a(x), m.b(x), m.c.weight, beta=2).relu()),
        a=nn.Linear(16, 8),
        b=nn.Linear(16, 4),
        c=nn.Linear(8, 4),
    )
    done = exact(model, torch.randn(4, 16))
    (row,) = (row for row in done.plan.rows if row.op == "matmul")
    assert (row.status, row.fused, row.output) == ("quantized", ("relu",), "int8 affine per_tensor")


class Attending(nn.Module):
    """A MultiheadAttention as models call it."""

    def __init__(self, call, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **options)
        self.call = call
        self.register_buffer("hidden", torch.ones(5, 5).triu(1) > 0)

    def forward(self, x):
        return self.call(self, x)


def padded(x):
    """Which of five tokens of each sample to hide: never the first."""
    return (torch.arange(5) > 2).expand(x.shape[0], 5)


CALLS = {
    "self": (lambda m, x: m.attention(x, x, x), {}),
    "self-no-weights": (lambda m, x: m.attention(x, x, x, need_weights=False)[0], {}),
    "every-head": (lambda m, x: m.attention(x, x, x, average_attn_weights=False), {}),
    "cross": (lambda m, x: m.attention(x, x.flip(1), x.flip(1))[0], {}),
    "cross-other-sizes": (
        lambda m, x: m.attention(x, x[..., :6], x[..., 4:], need_weights=False)[0],
        {"kdim": 6, "vdim": 12},
    ),
    "causal": (
        lambda m, x: m.attention(x, x, x, attn_mask=m.hidden, is_causal=True, need_weights=False)[
            0
        ],
        {},
    ),
    "mask-weights": (lambda m, x: m.attention(x, x, x, attn_mask=m.hidden)[0], {}),
    "padding": (lambda m, x: m.attention(x, x, x, key_padding_mask=padded(x))[0], {}),
    "no-bias": (lambda m, x: m.attention(x, x, x)[0], {"bias": False}),
    "extra-key": (
        lambda m, x: m.attention(x, x, x)[0],
        {"add_bias_kv": True, "add_zero_attn": True},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_multihead_attention(exact, name):
    """nn.MultiheadAttention: its projections and both products on integers, whatever the call."""
    torch.manual_seed(4)
    call, options = CALLS[name]
    done = exact(Attending(call, batch_first=True, **options), X, sqnr=20)
    rows = [row for row in done.plan.rows if row.op in ("linear", "matmul", "attention")]
    assert {row.status for row in rows} == {"quantized"}
    products = sum({"matmul": 1, "attention": 2}.get(row.op, 0) for row in rows)
    projections = sum(row.op == "linear" for row in rows)
    assert (products, projections) in {(2, 4), (2, 2), (2, 3), (1, 2), (1, 3)}


def test_multihead_attention_with_the_sequence_first(exact):
    """``batch_first=False``, the default: the batch is the second dimension."""
    torch.manual_seed(4)
    model = Attending(lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1))
    exact(model, X, sqnr=20)


@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic", "int4_weight_only"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_transformer_encoder_layer(pipeline, preset, training):
    """nn.TransformerEncoderLayer, which has a fast path of its own in eval mode, prepared in both
    modes."""
    torch.manual_seed(5)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.2)
    if preset.startswith("int4"):
        preset = qcore.QConfig(
            weight=qcore.QuantizerConfig(scheme="int4_channel", observer="mse"), activation=None
        )
    done = pipeline(model, X, preset)
    assert done.fidelity.differing == 0
    assert done.sqnr > (20 if isinstance(preset, qcore.QConfig) else 30)
    assert {r.status for r in done.plan.rows if r.op == "linear"} <= {
        "quantized", "dynamic", "weight-only",
    }  # fmt: skip
    if training:
        done.qfloat.train()
        loss = done.qfloat(X).square().mean()
        loss.backward()
        names = {n for n, p in done.qfloat.named_parameters() if p.grad is not None}
        assert {"self_attn_in_proj_linear.weight", "linear1.weight", "norm1.weight"} <= names


MASKS = {
    "none": lambda m, x: m(x),
    "causal": lambda m, x: m(x, mask=nn.Transformer.generate_square_subsequent_mask(5)),
    "padding": lambda m, x: m(x, src_key_padding_mask=padded(x)),
}


@pytest.mark.parametrize("name", MASKS)
def test_transformer_encoder(exact, net, name):
    """A whole nn.TransformerEncoder, with the masks that models give it."""
    torch.manual_seed(6)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=name == "causal")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    done = exact(net(lambda m, x: MASKS[name](m.encoder, x), encoder=encoder), X)
    rows = [row for row in done.plan.rows if row.op == "attention"]
    assert [row.status for row in rows] == ["quantized"] * 2


def test_transformer_decoder_layer(exact, net):
    """Self-attention and cross-attention of a decoder layer."""
    torch.manual_seed(7)
    decoder = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
    model = net(lambda m, x: m.decoder(x, x.flip(1)[:, :4] * 2), decoder=decoder)
    done = exact(model, X)
    rows = [row for row in done.plan.rows if row.op in ("attention", "linear")]
    assert [row.status for row in rows] == ["quantized"] * 9


def test_layer_on_a_part_of_a_parameter_may_stay_float(exact):
    """The projections of cross-attention are layers with names: an override leaves one in float."""
    torch.manual_seed(8)
    model = Attending(CALLS["cross"][0], batch_first=True)
    override = qcore.Override(name="attention_in_proj_linear_2", quantize=False)
    recipe = qcore.Recipe(preset="int8_minmax", overrides=(override,))
    done = exact(model, X, recipe, sqnr=20)
    assert done.plan.row("attention_in_proj_linear_2").status == "float"
    weight = dict(done.q.named_buffers())["attention_in_proj_linear_2.weight"]
    assert torch.equal(weight, model.attention.in_proj_weight[16:32])


def test_artifact_of_attention(pipeline, net, tmp_path):
    """Saved and loaded, attention with a mask gives the same integers."""
    done = pipeline(attending(net, FORMS["truth-mask"]), X, sizes=())
    folder = qcore.save(done.q, tmp_path / "artifact", golden_inputs=X)
    assert torch.equal(qcore.load(folder)(X), done.q(X))
    assert qcore.verify(folder).equal


def test_attention_on_the_cpu_backend(pipeline, net):
    """Prepared for the cpu backend, lowered attention equals Q and QFloat on every integer."""
    if "cpu" not in {b.name for b in qcore.default_host().specs("backend")}:
        pytest.skip("no cpu backend")
    done = pipeline(attending(net, FORMS["causal"]), X, qcore.Recipe(backend="cpu"), sizes=(3,))
    assert done.fidelity.differing == 0
    lowered = qcore.lower(done.q, "cpu")
    counted = qcore.count_differences(done.qfloat, lowered, done.batches)
    assert (counted.differing, counted.compared > 0) == (0, True)


def test_attention_without_example_inputs(pipeline):
    """Without a graph the layers around attention are dynamic; attention, which reads the weights
    of its own layers, stays whole and float, and the plan says so."""
    torch.manual_seed(9)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    done = pipeline(model, (None, X), "int8_dynamic")
    assert done.statuses()["linear1"] == "dynamic"
    assert "weights of its layers itself" in dict(done.plan.failures)["self_attn"]
    assert torch.equal(qcore.lower(done.q)(X), done.q(X))
    assert done.fidelity.differing == 0
    assert done.sqnr > 30
