"""Float -> QFloat -> Q as a whole: depth, sharing, state, hooks, outputs of every structure."""

import copy
import io
import math
from collections import OrderedDict, namedtuple

import attrs
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import nn

import qcore

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small():
    """Convolutions with BatchNorm and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    model[1].running_mean.uniform_(-0.3, 0.3)
    model[1].running_var.uniform_(0.5, 1.5)
    return model.eval()


CHAINS = [*(("int8_minmax", depth) for depth in (1, 4, 9, 18, 29)), ("uint8", 9), ("int4", 4)]


@pytest.mark.parametrize(("preset", "depth"), CHAINS)
def test_chain_of_convolutions(exact, preset, depth):
    """No integer differs at any depth of a chain of 3x3 convolutions and relus."""
    torch.manual_seed(depth)
    layers = []
    for _ in range(depth):
        conv = nn.Conv2d(32, 32, 3, padding=1)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (32 * 9)))
        layers += [conv, nn.ReLU()]
    done = exact(nn.Sequential(*layers), torch.randn(1, 32, 6, 6), preset, sqnr=0, sizes=(2,))
    assert done.plan.count("quantized") == depth


@pytest.mark.parametrize("preset", ["int8", "int8_minmax", "uint8", "int4"])
def test_presets(exact, preset):
    """Every preset with integer activations runs the whole network on integers."""
    done = exact(small(), X, preset, sqnr=10)
    assert done.plan.count("float") == 0
    kinds = {str(n.target).split(".")[0] for n in done.q.graph.nodes if n.op == "call_function"}
    assert kinds <= {"qcore", "aten"}
    assert not any(p.is_floating_point() for n, p in done.q.named_buffers() if n.endswith("weight"))


def test_batch_of_any_size(exact):
    """The program runs on batches of other sizes than the example's, 1 among them."""
    done = exact(small(), X, sizes=(1, 2, 7))
    assert done.q(torch.randn(11, 3, 8, 8)).shape == (11, 3)


def test_example_of_batch_size_one(exact):
    """An example of one sample does not fix the batch size."""
    exact(small(), X[:1], sizes=(1, 4))


def test_quantized_parts_have_names_of_the_model(exact):
    """A quantized layer is found in QFloat under its name in the model, with its parameters."""
    done = exact(small(), X)
    assert {n for n, _ in done.qfloat.named_parameters()} == {
        "0.weight", "0.bn.weight", "0.bn.bias", "3.weight", "3.bias", "6.weight", "6.bias",
    }  # fmt: skip
    assert [name for name, _ in qcore.qfloat_ops(done.qfloat)] == ["0", "3", "4", "6"]


def test_module_called_twice(exact, net):
    """Each call is an operation with its own scales; they share the weight, and have own names."""
    model = net(
        lambda m, x: m.b(F.relu(m.b(F.relu(m.a(x))))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3)
    )
    done = exact(model, X)
    ops = dict(qcore.qfloat_ops(done.qfloat))
    assert set(ops) == {"a", "b", "b_1"}
    assert ops["b"].weight is ops["b_1"].weight
    assert {"a", "b", "b_1"} < set(done.fidelity.layers)


def test_layers_that_share_weights_go_on_sharing(exact):
    """Two layers with one parameter still have one in QFloat, and in training it moves for both."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    done = exact(model, torch.randn(2, 6))
    ops = dict(qcore.qfloat_ops(done.qfloat))
    assert ops["0"].weight is ops["2"].weight
    assert sum(p.shape == (6, 6) for p in done.qfloat.parameters()) == 1


def test_one_module_under_two_names(exact, net):
    """A module that the model holds under two names is one module, called twice."""
    shared = nn.Linear(6, 6)
    model = net(lambda m, x: m.b(F.relu(m.a(x))), a=shared, b=shared)
    done = exact(model, torch.randn(2, 6))
    ops = [op for _, op in qcore.qfloat_ops(done.qfloat)]
    assert len(ops) == 2
    assert ops[0].weight is ops[1].weight


def test_deepcopy_of_qfloat_and_q(exact):
    """Copies compute the same integers, and are independent."""
    done = exact(small(), X)
    qfloat, q = copy.deepcopy(done.qfloat), copy.deepcopy(done.q)
    assert qcore.count_differences(qfloat, q, done.batches).differing == 0
    with torch.no_grad():
        qfloat.get_parameter("6.weight").zero_()
    assert qcore.count_differences(done.qfloat, done.q, done.batches).differing == 0
    assert qcore.info_of(qfloat).plan == done.plan
    with pytest.raises(qcore.CaptureError, match="input"):
        q(torch.randn(2, 3, 9, 8))


def test_state_dict_of_a_calibrated_model_into_a_fresh_one(exact):
    """A fresh QFloat that loads a saved state gives the same integers without calibration."""
    done = exact(small(), X, "int8")
    file = io.BytesIO()
    torch.save(done.qfloat.state_dict(), file)
    file.seek(0)
    other = qcore.prepare(small(), X, "int8")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert qcore.count_differences(other.eval(), done.q, done.batches).differing == 0
    assert torch.equal(qcore.convert(other)(X), done.q(X))


def test_state_dict_of_an_uncalibrated_model_loads(exact):
    """A state that was saved before calibration makes a calibrated model uncalibrated again."""
    fresh = qcore.prepare(small(), X, "int8_minmax").state_dict()
    done = exact(small(), X)
    done.qfloat.load_state_dict(fresh)
    with pytest.raises(qcore.QuantizationError, match="seen no values"):
        qcore.convert(done.qfloat)


def test_switches():
    """Fake quantization off gives the float model; on, its rounding; observers can be left on."""
    model = small()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    quantized = qfloat(X)
    qcore.disable_fake_quant(qfloat)
    torch.testing.assert_close(qfloat(X), model(X))
    qcore.enable_fake_quant(qfloat)
    assert torch.equal(qfloat(X), quantized)
    before = {n: q.qparams().scale for n, q in qcore.quantizers(qfloat)}
    qcore.enable_observer(qfloat)
    qfloat(5 * X)
    qcore.disable_observer(qfloat)
    after = {n: q.qparams().scale for n, q in qcore.quantizers(qfloat)}
    assert after["input_1_quantizer"] > 3 * before["input_1_quantizer"]
    assert torch.equal(after["0.weight_quantizer"], before["0.weight_quantizer"])
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [X]).differing == 0


def test_hooks_fire_on_the_operation_that_took_a_layers_place():
    """Hooks of a layer and of all that it takes in fire on the operation, once, and not at
    convert."""
    model = small()
    seen = []
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda m, a, n=name: seen.append(f"{n} before"))
        module.register_forward_hook(lambda m, a, y, n=name: seen.append(f"{n} {tuple(y.shape)}"))
        module.register_forward_hook(
            lambda m, a, k, y, n=name: seen.append(f"{n} with {k}"), with_kwargs=True
        )
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    seen.clear()
    with torch.no_grad():
        qfloat(X)
    assert seen[:9] == [
        "0 before", "1 before", "2 before", "0 (2, 4, 6, 6)", "0 with {}", "1 (2, 4, 6, 6)",
        "1 with {}", "2 (2, 4, 6, 6)", "2 with {}",
    ]  # fmt: skip
    assert len(seen) == 3 * 7
    seen.clear()
    qcore.convert(qfloat)
    assert seen == []


def test_backward_hooks_fire():
    """A full backward hook of a layer fires in the training of QFloat."""
    model = small()
    seen = []
    model[3].register_full_backward_hook(lambda m, gi, go: seen.append(go[0].shape))
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X]).train()
    qfloat(X).sum().backward()
    assert seen == [(2, 4, 2, 2)]


def test_hook_that_changes_a_value_is_an_error():
    """A hook that changes an output would not be in the program: an error that names layer and
    cure."""
    model = small()
    model[2].register_forward_hook(lambda m, a, y: y * 2)
    qfloat = qcore.prepare(model, X, "int8_minmax")
    with pytest.raises(
        qcore.QuantizationError, match=r"layer '0': a forward hook changes.*override"
    ):
        qcore.calibrate(qfloat, [X])


def test_hook_that_changes_a_float_layer_is_part_of_the_program(exact):
    """A hook of a layer that is left in float, or of the model itself, is copied into the
    program."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Conv2d(4, 2, 3))
    model[1].register_forward_hook(lambda m, a, y: y * 2 - 1)
    model.register_forward_pre_hook(lambda m, a: (a[0].abs(),))
    model.register_forward_hook(lambda m, a, y: y + 5)
    exact(model, X)


Pair = namedtuple("Pair", "first second")


@attrs.frozen
class Result:
    """An output of a model."""

    y: torch.Tensor
    note: str = "plain"


pytree.register_pytree_node(
    Result,
    lambda r: ([r.y], r.note),
    lambda leaves, note: Result(next(iter(leaves)), note),
    serialized_type_name="tests.Result",
)

OUTPUTS = {
    "tuple": lambda y: (y, y * 2),
    "nested": lambda y: [y, (y, {"k": y + 1})],
    "dict": lambda y: {"logits": y, "other": None, "number": 3},
    "ordered-dict": lambda y: OrderedDict(a=y),
    "named-tuple": lambda y: Pair(y, y.sum()),
    "own-class": lambda y: Result(y),
    "input-too": lambda y: (y, "text"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_structure(exact, net, name):
    """Outputs keep their structure: tuples, dictionaries, named tuples, registered classes."""
    model = net(lambda m, x: OUTPUTS[name](m.a(x)), a=nn.Linear(6, 4))
    x = torch.randn(2, 6)
    done = exact(model, x)
    spec = pytree.tree_structure(model(x))
    assert pytree.tree_structure(done.q(x)) == spec
    assert pytree.tree_structure(done.qfloat(x)) == spec


def test_inputs_by_keyword_and_in_structures(exact):
    """Inputs by keyword, and tensors inside of lists and dictionaries."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x, *, more, scale=2.0):
            return self.a(x + more["k"][0]) * scale

    example = {"x": torch.randn(2, 6), "more": {"k": [torch.randn(2, 6)]}}
    done = exact(Model(), example)
    with pytest.raises(qcore.CaptureError):
        done.q(**example, scale=3.0)


def test_labels_that_follow_the_inputs_are_left_out(exact):
    """A batch (inputs, labels) of a data loader calibrates and compares."""
    done = exact(small(), X)
    qfloat = qcore.calibrate(
        qcore.prepare(small(), X, "int8_minmax"), [(X, torch.zeros(2)), [X, None]]
    )
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [(X, "label")]).differing == 0
    assert done.plan == qcore.info_of(qfloat).plan


def test_quantize_in_one_call(exact):
    """prepare, calibrate and convert in one call give the same program."""
    model = small()
    q = qcore.quantize(model, X, [X], "int8_minmax")
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    assert torch.equal(q(X), qcore.convert(qfloat)(X))


def test_a_single_layer_is_a_model(exact):
    """A bare layer can be quantized, with an example and without."""
    done = exact(nn.Linear(6, 4), torch.randn(2, 6))
    assert done.plan.captured == (("", "module"),)
    exact(nn.Linear(6, 4), (None, torch.randn(2, 6)))


@pytest.mark.parametrize("size", [0, 1])
def test_empty_and_single_batches(exact, size):
    """A batch without samples and one with a single one run through QFloat and Q."""
    done = exact(small(), X)
    x = torch.randn(size, 3, 8, 8)
    assert done.q(x).shape == done.qfloat(x).shape == (size, 3)


def test_program_is_independent_of_gradient_mode(exact):
    """A program gives the same integers with gradients switched on, and no gradients."""
    done = exact(small(), X)
    y = done.q(X.clone().requires_grad_())
    assert not y.requires_grad
    with torch.inference_mode():
        assert torch.equal(done.q(X), y)


def test_program_exports(exact):
    """A program is an ordinary graph: torch.export takes it and it computes the same integers."""
    done = exact(small(), X)
    exported = torch.export.export(done.q, (X,), dynamic_shapes=({0: torch.export.Dim("b")},))
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(exported.module()(x), done.q(x))
