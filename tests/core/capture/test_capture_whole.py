"""Capture of a whole model: calls of its own instances, functions between them, same results."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcore.capture import capture
from qcore.errors import CaptureError


def calls(piece):
    return [n.target for n in piece.graph.graph.nodes if n.op == "call_module"]


def functions(piece):
    return [n.target for n in piece.graph.graph.nodes if n.op == "call_function"]


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        x = F.relu(self.block(x) + x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(self.drop(x))


def test_the_graph_calls_the_instances_of_the_model(whole, agrees):
    """Every call_module is the model's own instance under its own name, in call order."""
    model = ConvNet().eval()
    piece = whole(model, torch.randn(2, 3, 8, 8))
    assert calls(piece) == ["conv", "bn", "relu", "block.0", "block.1", "drop", "head"]
    assert all(piece.graph.get_submodule(t) is model.get_submodule(t) for t in calls(piece))
    assert functions(piece) == [
        torch.ops.aten.add.Tensor,
        torch.ops.aten.relu.default,
        torch.ops.aten.adaptive_avg_pool2d.default,
        torch.ops.aten.flatten.using_ints,
    ]
    assert piece.rung == "whole"
    assert piece.static is None
    agrees(piece, model, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("example", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_size_runs(whole, agrees, example, batch):
    """The batch is a symbol, also where the example has a batch of 1."""
    model = ConvNet().eval()
    piece = whole(model, torch.randn(example, 3, 8, 8))
    assert piece.static is None
    agrees(piece, model, torch.randn(batch, 3, 8, 8))


def test_every_node_has_an_example_value(whole):
    """meta["val"] gives shape and dtype of each node's value, calls of modules included."""
    piece = whole(ConvNet().eval(), torch.randn(2, 3, 8, 8))
    nodes = [n for n in piece.graph.graph.nodes if n.op != "output"]
    assert all("val" in n.meta for n in nodes)
    shapes = {n.target: tuple(n.meta["val"].shape)[1:] for n in nodes if n.op == "call_module"}
    assert shapes["conv"] == (8, 8, 8)
    assert shapes["head"] == (5,)


def test_train_and_eval_mean_what_they_say(whole):
    """In train mode BatchNorm takes batch statistics and dropout drops; in eval mode neither."""
    model = ConvNet().train()
    piece = whole(model, torch.randn(4, 3, 8, 8))
    assert piece.graph.training
    x = torch.randn(4, 3, 8, 8)
    before = model.bn.running_mean.clone()
    torch.manual_seed(0)
    got = piece.graph(x)
    assert not torch.equal(model.bn.running_mean, before)
    torch.manual_seed(0)
    torch.testing.assert_close(got, model(x))
    assert not torch.equal(piece.graph(x), piece.graph(x))
    piece.graph.eval()
    assert not model.bn.training
    torch.testing.assert_close(piece.graph(x), model.eval()(x))


def test_gradients_reach_the_parameters(whole):
    """A loss on the graph's output trains the parameters of the model."""
    model = ConvNet()
    piece = whole(model, torch.randn(2, 3, 8, 8))
    piece.graph(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_module_called_twice_gives_two_calls(whole, agrees):
    """A shared instance is called each time the model calls it."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x):
            return self.second(F.relu(self.first(x)))

    model = Shared().eval()
    piece = whole(model, torch.randn(2, 4))
    assert calls(piece) == ["first", "first"]
    agrees(piece, model, torch.randn(3, 4))


def test_the_original_signature_and_output_structure(whole, agrees):
    """Arguments by position or name, nested inputs; dicts, tuples, None and numbers come out."""

    class Rich(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, extra, *, scale=1.0, mask=None):
            y = self.fc(x + extra["a"][0]) * scale
            return {"y": y, "more": (y.sum(0), None, 3), "size": x.shape[0], "mask": mask}

    model = Rich().eval()

    def inputs(batch):
        return torch.randn(batch, 4), {"a": [torch.randn(batch, 4)]}

    piece = whole(model, *inputs(2), mask=torch.ones(2), scale=2.0)
    agrees(piece, model, *inputs(3), mask=torch.ones(3), scale=2.0)
    x, extra = inputs(4)
    got = piece.graph(extra=extra, scale=2.0, mask=torch.ones(4), x=x)
    assert got["size"] == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.ones(2, 6)}, r"input x is float32 \[2, 6\], but .* float32 \[s\d+, 4\]"),
        ({"x": torch.ones(2, 4, dtype=torch.float64)}, "float64"),
        ({"y": torch.ones(3, 4)}, r"input y is float32 \[3, 4\]"),
        ({"flag": False}, "input flag is False, but the graph was captured for True"),
        ({"z": torch.ones(2, 4)}, r"gave \(x, y, flag\)"),
        ({"x": [torch.ones(2, 4)]}, "structure"),
        ({"x": 1.0}, "input x is 1.0"),
    ],
    ids=["size", "dtype", "batch", "value", "unknown", "structure", "type"],
)
def test_a_call_that_was_not_captured_is_an_error(whole, change, said):
    """Another size, dtype, flag or argument than captured raises, and says what is allowed."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, y, flag=True, z=None):
            return self.fc(x + y) if flag else x

    piece = whole(Two(), torch.ones(2, 4), torch.ones(2, 4), flag=True)
    good = {"x": torch.ones(2, 4), "y": torch.ones(2, 4), "flag": True}
    piece.graph(**good)
    with pytest.raises(CaptureError, match=said):
        piece.graph(**{**good, **change})
    with pytest.raises(CaptureError, match="called with 1 positional"):
        piece.graph(torch.ones(2, 4))


def test_a_tensor_given_twice_is_two_inputs(whole, agrees):
    """An example that repeats a tensor does not tie the two inputs to each other."""

    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, a, b):
            return self.fc(a) - self.fc(b)

    x = torch.randn(2, 4)
    model = Siamese().eval()
    agrees(whole(model, x, x), model, torch.randn(2, 4), torch.randn(2, 4))


def test_lstm_is_one_call_with_items_taken_out(whole, agrees):
    """A leaf that returns nested tuples is one call_module, with getitem nodes."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            out, (_, c) = self.lstm(x)
            return self.fc(out), c

    model = Recurrent().eval()
    piece = whole(model, torch.randn(2, 5, 4))
    assert calls(piece) == ["lstm", "fc"]
    lstm = next(n for n in piece.graph.graph.nodes if n.target == "lstm")
    assert tuple(lstm.meta["val"][1][1].shape)[2:] == (6,)
    agrees(piece, model, torch.randn(3, 5, 4))


def test_leaf_arguments_of_every_kind(agrees):
    """Keywords, nested tensors, plain values and symbolic sizes reach a leaf; results return."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4))

        def forward(self, x, pair, *, size, mode="sum", mask=None):
            y = (x * self.w + pair[0] - pair[1]["b"]).reshape(size, -1)
            return {"out": y if mode == "sum" else -y, "none": mask, "same": x}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            found = self.odd(x, (x + 1, {"b": x}), size=x.shape[0], mode="sum")
            return found["out"] + found["same"], found["none"]

    model = Net().eval()
    found = capture(model, (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Odd))
    piece = found.pieces[0]
    assert calls(piece) == ["odd"]
    agrees(piece, model, torch.randn(5, 4))


def test_an_argument_that_no_graph_can_hold(capture_layers):
    """A leaf that is called with an object becomes its parts, and the result says so."""

    class Config:
        scale = 2.0

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, config):
            return self.fc(x) * config.scale

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x):
            return self.scaled(x, Config())

    found = capture(
        Net(), (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Scaled | nn.Linear)
    )
    assert calls(found.pieces[0]) == ["scaled.fc"]
    assert found.failures[0][0] == "scaled"
    assert "is called with a Config" in found.failures[0][1]


def test_the_outermost_leaf_wins(agrees):
    """A leaf inside a leaf is part of it."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)).eval()
    inner = model[0]
    found = capture(model, (torch.randn(2, 4),), is_leaf=lambda m: m is inner)
    assert calls(found.pieces[0]) == ["0", "1"]
    agrees(found.pieces[0], model, torch.randn(3, 4))


def test_a_model_that_is_a_leaf(capture_layers, agrees):
    """A single layer is a graph with one call of it."""
    model = nn.Linear(4, 2).eval()
    (piece,) = capture_layers(model, torch.randn(2, 4)).pieces
    assert piece.rung == "module"
    assert piece.graph.get_submodule(calls(piece)[0]) is model
    assert piece.qualified(calls(piece)[0]) == ""
    assert piece.qualified("module.weight") == "weight"
    assert piece.tensor("module.weight") is model.weight
    agrees(piece, model, torch.randn(3, 4))


def test_hooks_of_a_leaf_run_once(whole, agrees):
    """A hook of the instance belongs to its call: it is not also traced beside it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    model[0].register_forward_hook(lambda m, args, out: out * 2)
    model[1].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    piece = whole(model, torch.randn(2, 4))
    assert functions(piece) == []
    agrees(piece, model, torch.randn(3, 4))


def test_a_forward_that_is_called_directly(whole, agrees):
    """``layer.forward(x)`` becomes a call of the layer all the same."""

    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc.forward(x)

    model = Direct().eval()
    piece = whole(model, torch.randn(2, 4))
    assert calls(piece) == ["fc"]
    agrees(piece, model, torch.randn(3, 4))


def test_functional_layers_become_instances_that_share_parameters(whole, agrees):
    """F.linear and F.conv on parameters are calls of layers, named after the parameter."""

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_weight = nn.Parameter(torch.randn(6, 2, 3, 3))
            self.weight = nn.Parameter(torch.randn(3, 6))
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x):
            x = F.conv2d(x, self.conv_weight, stride=2, padding=1, groups=2)
            x = F.linear(x.mean((2, 3)), self.weight, self.bias)
            return x + F.conv1d(x[:, None], self.weight[None, :1, :1]).sum(1)

    model = nn.Sequential(Custom()).eval()
    piece = whole(model, torch.randn(2, 4, 8, 8))
    assert calls(piece) == ["0_conv_conv2d", "0_linear"]
    conv = piece.graph.get_submodule("0_conv_conv2d")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.weight is model[0].conv_weight, conv.bias) == (True, None)
    assert (conv.stride, conv.padding, conv.groups) == ((2, 2), (1, 1), 2)
    assert piece.graph.get_submodule("0_linear").bias is model[0].bias
    assert torch.ops.aten.conv1d.default in functions(piece)
    agrees(piece, model, torch.randn(3, 4, 8, 8))


def test_functional_layers_on_buffers(whole, agrees):
    """A fixed weight in a buffer is a layer's too, in the same memory; one that changes is not."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("still_weight", torch.randn(4, 4))
            self.register_buffer("moving_weight", torch.randn(4, 4))

        def forward(self, x):
            self.moving_weight[0].mul_(1.0)
            return F.linear(F.linear(x, self.still_weight), self.moving_weight)

    model = Fixed().eval()
    piece = whole(model, torch.randn(2, 4))
    assert calls(piece) == ["still_linear"]
    layer = piece.graph.get_submodule("still_linear")
    assert layer.weight.data_ptr() == model.still_weight.data_ptr()
    assert not layer.weight.requires_grad
    assert functions(piece).count(torch.ops.aten.linear.default) == 1
    agrees(piece, model, torch.randn(3, 4))


def test_a_weight_that_is_computed_stays_a_function(whole, agrees):
    """A layer whose weight is an expression is no layer on a parameter."""

    class Standardized(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(nn.Flatten(), Standardized(4, 4)).eval()
    found = capture(model, (torch.randn(2, 4),), is_leaf=lambda m: type(m) is nn.Linear)
    piece = found.pieces[0]
    assert calls(piece) == ["0"]
    agrees(piece, model, torch.randn(3, 4))


@pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
def test_attention_is_a_composite(whole, agrees, same):
    """nn.MultiheadAttention is seen through: projections are layers, of parts of the weight in
    cross-attention."""

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, y):
            return self.mha(x, x if same else y, x if same else y, need_weights=False)[0] + y

    model = Attend().eval()
    piece = whole(model, torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    assert calls(piece)[-1] == "mha.out_proj"
    projections = [name for name in calls(piece) if name.startswith("mha_in_proj_linear")]
    sizes = [tuple(piece.graph.get_submodule(name).weight.shape) for name in projections]
    assert sizes == ([(24, 8)] if same else [(8, 8), (16, 8)])
    whole_weight = model.mha.in_proj_weight
    for name in projections:
        part = piece.graph.get_submodule(name).weight
        assert part.untyped_storage().data_ptr() == whole_weight.untyped_storage().data_ptr()
    assert torch.ops.aten.scaled_dot_product_attention.default in functions(piece)
    agrees(piece, model, torch.randn(4, 3, 8), torch.randn(4, 3, 8))


def test_the_fast_path_of_transformer_layers_is_not_taken(whole, agrees):
    """Without gradients too, an encoder layer is traced as its layers; the switch is put back."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    enabled = torch.backends.mha.get_fastpath_enabled()
    piece = whole(model, torch.randn(2, 3, 8))
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    assert {"linear1", "linear2", "norm1", "self_attn.out_proj"} <= set(calls(piece))
    agrees(piece, model, torch.randn(4, 3, 8))


def test_no_operation_without_effect_is_left(whole, agrees):
    """Checks, detach, clone, contiguous, no-op casts and slices and functional dropout are gone."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            x = self.fc(x[:, :]).detach().clone().contiguous().to(torch.float32).to(x.device)
            x = F.dropout(x, 0.5, self.training).transpose(0, 1).contiguous().view(-1, 4)
            with torch.no_grad():
                y = x * torch.tensor([1.0, 2.0, 3.0, 4.0])
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                return torch.relu(y)

    model = Noisy().eval()
    piece = whole(model, torch.randn(2, 4))
    names = [str(f) for f in functions(piece)]
    assert names == [
        "aten.transpose.int",
        "aten.reshape.default",
        "aten.mul.Tensor",
        "aten.relu.default",
    ]
    agrees(piece, model, torch.randn(4, 4))


def test_arguments_stand_by_position(whole):
    """Positional arguments are complete, in the schema's order; keyword ones where they differ."""

    class Calls(nn.Module):
        def forward(self, x):
            return (
                torch.mean(input=torch.add(x, x, alpha=2), dim=1) + torch.add(x, x, alpha=1)[:, 0]
            )

    piece = whole(Calls(), torch.randn(2, 4))
    nodes = {str(n.target): n for n in piece.graph.graph.nodes if n.op == "call_function"}
    mean = nodes["aten.mean.dim"]
    assert (mean.args[1:], dict(mean.kwargs)) == (([1], False), {})
    adds = [n for n in piece.graph.graph.nodes if n.target is torch.ops.aten.add.Tensor]
    assert [dict(n.kwargs) for n in adds] == [{"alpha": 2}, {}, {}]


def test_the_model_is_left_as_it_was(whole):
    """Flags, hooks, attributes, buffers, gradients, random state: nothing of the model changes."""

    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.bn = nn.BatchNorm1d(4).eval()
            self.register_buffer("steps", torch.zeros(()))
            self.plain = torch.zeros(())
            self.log, self.count = [], 0

        def forward(self, x):
            self.steps.add_(1)
            self.plain.add_(1)
            self.count += 1
            self.log.append(x)
            self.cache = self.bn(self.fc(x)) + torch.rand(1)
            return self.cache

    model = Stateful()
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = torch.ones(4, 4)
    model.fc.register_forward_hook(lambda *a: None)
    hooks = [dict(m._forward_hooks) for m in model.modules()]
    pre_hooks = [dict(m._forward_pre_hooks) for m in model.modules()]
    keys = [list(m.__dict__) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    whole(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == flags == [True, True, False]
    assert [dict(m._forward_hooks) for m in model.modules()] == hooks
    assert [dict(m._forward_pre_hooks) for m in model.modules()] == pre_hooks
    assert [list(m.__dict__) for m in model.modules()] == keys
    assert (model.log, model.count, hasattr(model, "cache")) == ([], 0, False)
    assert model.plain == 0
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert torch.equal(model.fc.weight.grad, torch.ones(4, 4))


def test_buffers_that_a_forward_changes_are_changed_by_the_graph(whole):
    """A model that counts its calls in a buffer still does when its graph runs."""

    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("steps", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.steps += 1
            return self.fc(x) * self.steps

    model = Counter().eval()
    piece = whole(model, torch.randn(2, 4))
    x = torch.ones(2, 4)
    first, second = piece.graph(x), piece.graph(x)
    torch.testing.assert_close(second, 2 * first)
    assert model.steps == 2
    assert set(piece.graph.state_dict()) == {"fc.weight", "fc.bias"}


def test_parts_that_the_inputs_do_not_reach_are_named(capture_layers):
    """An auxiliary head that is not called, and one whose result is dropped, are reported."""

    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.aux = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
            self.waste = nn.Linear(4, 1)

        def forward(self, x):
            x = self.body(x)
            self.waste(x)
            return self.aux(x) if self.training else x

    found = capture_layers(Headed(), torch.randn(2, 4))
    assert [p.path for p in found.pieces] == [""]
    assert found.failures == (
        ("aux", "not reached by the example inputs"),
        ("waste", "called, but its results are not used"),
    )


def test_tied_parameters_go_by_the_name_in_the_leaf(whole):
    """Inlining asks for a shared weight under the name that it has in the inlined leaf."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    piece = whole(Tied(), torch.zeros(2, 3, dtype=torch.long))
    head = next(n for n in piece.graph.graph.nodes if n.target == "head")
    graph = torch.fx.Graph()
    asked = []

    def get_attr(name, tensor):
        asked.append(name)
        return graph.get_attr("w")

    piece.inline(head, graph, {head.args[0]: graph.placeholder("x")}, get_attr)
    assert asked == ["head.weight"]


def test_a_dropout_inlines_to_its_argument(whole):
    """What does nothing in eval mode leaves nothing in a program."""
    piece = whole(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(2, 4))
    drop = next(n for n in piece.graph.graph.nodes if n.target == "1")
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    assert piece.inline(drop, graph, {drop.args[0]: x}, lambda name, tensor: None) is x
    with pytest.raises(CaptureError, match="no value is given"):
        piece.inline(drop, graph, {}, lambda name, tensor: None)


# torch warns about a class of its own when it copies trees.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_copies_and_pickles_of_the_guard(whole):
    """A deep copy of the graph computes the same on instances of its own; the guard pickles."""
    model = ConvNet().eval()
    piece = whole(model, torch.randn(2, 3, 8, 8))
    twin = copy.deepcopy(piece.graph)
    assert twin.conv is not model.conv
    assert twin.conv.weight is not model.conv.weight
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(twin(x), model(x))
    assert pickle.loads(pickle.dumps(piece.guard)) == piece.guard


def test_example_args_must_be_a_tuple():
    """A bare tensor for a tuple of inputs is named as such."""
    with pytest.raises(CaptureError, match="example_args is a Tensor; give a tuple"):
        capture(nn.Linear(4, 4), torch.randn(2, 4), is_leaf=lambda m: True)


def test_a_batch_that_the_forward_fixes_is_static_and_says_so(whole, agrees):
    """A forward that turns the batch into a number is captured for that number only."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.stack([self.fc(row) for row in x])

    model = Fixed().eval()
    for batch in (1, 3):
        piece = whole(model, torch.randn(batch, 4))
        assert "batch" in piece.static
        assert len(calls(piece)) == batch
        agrees(piece, model, torch.randn(batch, 4))
        with pytest.raises(CaptureError, match="input x"):
            piece.graph(torch.randn(batch + 1, 4))


@pytest.mark.parametrize(
    ("forward", "good", "bad"),
    [
        (lambda x: x * 2 if x.shape[0] % 2 == 0 else x, [2, 4, 6], [1, 3]),
        (lambda x: x * 2 if len(x.reshape(-1)) > 10 else x, [4], []),
        (lambda x: x.reshape(x.shape[0] // 2, 2, -1) if x.shape[0] > 3 else x, [4, 6], [2, 3]),
    ],
    ids=["parity", "number", "size"],
)
def test_a_batch_that_takes_another_way_is_an_error(whole, agrees, forward, good, bad):
    """What a forward asks of the batch size while it is traced is asked again of each call."""

    class Branch(nn.Module):
        def forward(self, x):
            return forward(x)

    piece = whole(Branch(), torch.randn(4, 4))
    for batch in good:
        agrees(piece, Branch(), torch.randn(batch, 4))
    for batch in bad:
        with pytest.raises(CaptureError, match=r"another way .*asked at .*test_capture_whole"):
            piece.graph(torch.randn(batch, 4))


class Lone(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.shape[0] > 1 else self.fc(x) * 2


def test_a_batch_of_one_that_takes_another_way_is_an_error(whole):
    """A branch that only a batch of 1 takes, which export does not ask about, is found by a run."""
    piece = whole(Lone(), torch.randn(3, 4))
    piece.graph(torch.randn(2, 4))
    with pytest.raises(CaptureError, match=r"another way .*for which s\d+ > 1"):
        piece.graph(torch.randn(1, 4))


def test_an_example_of_one_that_takes_another_way_is_static(whole, agrees):
    """With a batch of 1 as the example, the way that a batch of 1 takes is the one captured."""
    model = Lone().eval()
    piece = whole(model, torch.randn(1, 4))
    assert piece.static == "the forward treats a batch of 1 in another way"
    agrees(piece, model, torch.randn(1, 4))


def test_what_a_trace_can_not_follow_is_no_capture(capture_layers):
    """A value that reaches the result outside of the trace makes the graph wrong: it is refused."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            Hidden.seen += 1
            return self.fc(x) * Hidden.seen

    Hidden.seen = 0
    found = capture_layers(Hidden(), torch.ones(2, 4))
    assert [(p.path, p.rung) for p in found.pieces] == [("fc", "module")]
    assert (
        "does not compute what the module does: result 0 has other values" in found.failures[0][1]
    )


def test_a_captured_graph_can_be_exported(whole):
    """The graph, with its check of the inputs, goes through torch.export with a dynamic batch."""
    model = ConvNet().eval()
    piece = whole(model, torch.randn(2, 3, 8, 8))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        piece.graph, (torch.randn(3, 3, 8, 8),), dynamic_shapes=({0: batch},)
    )
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("leaf", [nn.Linear, ()], ids=["leaf", "composite"])
def test_a_parametrized_layer(agrees, leaf):
    """Weight normalization, in a leaf or seen through, is computed from the current parameters."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()).eval()
    found = capture(model, (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, leaf))
    (piece,) = found.pieces
    assert calls(piece) == (["0", "1"] if leaf else ["0.parametrizations.weight.0", "1"])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(3)
    agrees(piece, model, torch.randn(3, 4))


def test_a_leaf_that_changes_its_state_can_not_be_inlined(whole):
    """A layer that writes to its parameters in eval mode is called, but is no part of a program."""
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 4)).eval()
    piece = whole(model, torch.zeros(2, 3, dtype=torch.long))
    assert calls(piece) == ["0", "1"]
    node = next(n for n in piece.graph.graph.nodes if n.target == "0")
    graph = torch.fx.Graph()
    values = {node.args[0]: graph.placeholder("ids")}
    with pytest.raises(CaptureError, match="'0' changes its own state in eval mode"):
        piece.inline(node, graph, values, lambda name, tensor: graph.placeholder(name))


def test_half_precision(whole, agrees):
    """A bfloat16 model is captured in its own dtype."""
    model = ConvNet().to(torch.bfloat16).eval()
    piece = whole(model, torch.randn(2, 3, 8, 8, dtype=torch.bfloat16))
    agrees(piece, model, torch.randn(3, 3, 8, 8, dtype=torch.bfloat16))


def test_random_operations_draw_as_the_model_does(whole):
    """Noise in a forward is drawn anew in each run, in the model's order."""

    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x + torch.rand_like(x)) + torch.randn(4)

    model = Noise().eval()
    piece = whole(model, torch.randn(2, 4))
    x = torch.randn(3, 4)
    torch.manual_seed(0)
    got = piece.graph(x)
    assert not torch.equal(piece.graph(x), got)
    torch.manual_seed(0)
    torch.testing.assert_close(got, model(x))
