"""Planted faults: each is found at its operation, and its cause is named.

Every fault is planted twice: in a program, where the data of both sides tell it, and in a backend's
kernel, where the data are the same and only the values tell.
"""

import copy

import attrs
import pytest
import torch
from torch import nn

import qcore
from qcore import BackendSpec, Numerics, hookimpl, schema_arguments

# Multiples of a power of two, so that some inputs lie on ties too.
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(64).round().div(64)


class Net(nn.Module):
    """Convolutions with BatchNorm and a residual, a table, linear layers."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.b1 = nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 8, 3, padding=1)
        self.c3 = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.act = nn.Hardswish()
        self.fc = nn.Linear(128, 10)
        self.last = nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.b1(self.c1(x)))
        x = torch.relu(self.c2(x) + x)
        x = self.act(self.c3(x))
        return self.last(torch.relu(self.fc(x.flatten(1))))


def quantizer(signed=True, **scheme):
    return {"scheme": {"bits": 8, "signed": signed, **scheme}, "observer": "minmax"}


DYADIC = {
    "weight": {"scheme": {"bits": 3, "granularity": "per_channel", "power_of_two": True}},
    "activation": quantizer(signed=False, symmetric=False, power_of_two=True),
}
"""Scales that are powers of two, so that many values lie on ties."""
PLAIN = {
    "weight": quantizer(granularity="per_channel"),
    "activation": quantizer(signed=False, symmetric=False),
}
SYMMETRIC = {
    "weight": quantizer(granularity="per_channel"),
    "activation": quantizer(symmetric=True),
}
"""Zero points of 0, so that a relu is a clamp inside of the range."""
NO_VNNI = {**PLAIN, "numerics": "half_even.multiplier.int32.after.int16_pairs"}


@pytest.fixture(scope="module")
def programs():
    """A program of each recipe; not to be changed."""

    def make(recipe):
        torch.manual_seed(0)
        model = Net()
        with torch.no_grad():
            model(3 * X)
        model.eval()
        qfloat = qcore.prepare(model, X, qcore.Recipe.from_table(recipe))
        qcore.calibrate(qfloat, [X])
        # An odd zero point: where it is even, its place in the order makes no difference.
        output = dict(qcore.qfloat_ops(qfloat))["c3"].output_quantizer
        p = output.qparams()
        if not p.scheme.symmetric:
            odd = torch.tensor(int(p.zero_point) | 1, dtype=torch.int32)
            output.set_qparams(qcore.QParams(scale=p.scale, zero_point=odd, scheme=p.scheme))
        return qcore.convert(qfloat)

    recipes = {"dyadic": DYADIC, "plain": PLAIN, "symmetric": SYMMETRIC, "no_vnni": NO_VNNI}
    return {name: make(recipe) for name, recipe in recipes.items()}


# Faults: what each does to the program that it is planted in.


def node_of(program, layer):
    name = next(x.node for x in program.meta["qcore"].layers if x.name == layer)
    return next(node for node in program.graph.nodes if node.name == name)


def change(node, **changes):
    """Other arguments for the operation of a node."""
    names = [argument.name for argument in node.target._schema.arguments]
    node.args = tuple(
        changes.get(name, value) for name, value in zip(names, node.args, strict=True)
    )


def constant(program, node, key):
    """The tensor that an argument of a node stands for, to be changed in place."""
    owner, _, field = schema_arguments(node)[key].target.rpartition(".")
    return getattr(program.get_submodule(owner), field)


def contract(**settings):
    def plant(program, node):
        given = schema_arguments(node)
        key = Numerics.parse(given["numerics"])
        values = {f: getattr(key, f) for f in Numerics.ALLOWED} | settings
        change(node, numerics=Numerics(**values).key)

    return plant


def wrong_bias(program, node):
    bias, scale = constant(program, node, "bias"), constant(program, node, "w_scale")
    given = schema_arguments(node)
    # Two steps of the output.
    step = given["x_scale"] * scale[[2, 5]]
    bias[[2, 5]] += (2 * given["y_scale"] / step).int()


def missing_bias(program, node):
    change(node, bias=None)


def swapped_scales(program, node):
    scale = constant(program, node, "w_scale")
    scale[[1, 4]] = scale[[4, 1]]


def wrong_scale(program, node):
    constant(program, node, "w_scale")[3] *= 1.07


def stale_batch_norm(program, node):
    factor = torch.linspace(0.8, 1.3, 8)
    bias = constant(program, node, "bias")
    bias.copy_((bias.double() / factor + 300 * torch.arange(-4, 4)).round().int())
    constant(program, node, "w_scale").mul_(factor)


def wrong_weight(program, node):
    weight = constant(program, node, "w")[3].view(-1)
    weight[5] += 40 if weight[5] < 0 else -40


def no_clamp(program, node):
    info = torch.iinfo(schema_arguments(node)["y_dtype"])
    change(node, y_min=info.min, y_max=info.max)


def own_relu(program, node):
    change(node, y_min=schema_arguments(node)["y_zero_point"])


def zero_padding(program, node):
    with program.graph.inserting_before(node):
        given = schema_arguments(node)
        args = (given["x"], [1, 1, 1, 1], "constant", 0)
        padded = program.graph.call_function(torch.ops.aten.pad.default, args)
    change(node, x=padded, padding=[0, 0])


def wrong_zero_point(program, node):
    change(node, x_zero_point=schema_arguments(node)["x_zero_point"] + 1)


def unfused_add(program, node):
    given = schema_arguments(node)
    info = torch.iinfo(given["y_dtype"])
    output = [given[k] for k in ("y_scale", "y_zero_point", "y_min", "y_max", "y_dtype")]
    other = [given[k] for k in ("other", "other_scale", "other_zero_point")]
    with program.graph.inserting_after(node):
        total = program.graph.call_function(torch.ops.qcore.qadd.default)
    node.replace_all_uses_with(total)
    first = (node, given["y_scale"], given["y_zero_point"])
    total.args = (*first, *other, *output, given["numerics"])
    change(node, other=None, other_scale=1.0, other_zero_point=0, y_min=info.min, y_max=info.max)
    renamed(program, node, total)


def renamed(program, old, new):
    """Says that a layer's value is now at another node."""
    info = program.meta["qcore"]
    layers = tuple(
        attrs.evolve(layer, node=new.name) if layer.node == old.name else layer
        for layer in info.layers
    )
    program.meta["qcore"] = attrs.evolve(info, layers=layers)


def no_residual(program, node):
    change(node, other=None, other_scale=1.0, other_zero_point=0)


def wrong_table(program, node):
    constant(program, node, "table")[100:140] += 1


def half_away(program, node):
    change(node, rounding="half_away")


FAULTS = {
    "rounding": ("dyadic", "c3", contract(rounding="half_away"), "rounding"),
    "rounding_linear": ("dyadic", "fc", contract(rounding="half_away"), "rounding"),
    "zero_point_order": ("dyadic", "c3", contract(zero_point="before"), "zero-point-order"),
    "two_settings": (
        "dyadic", "c3", contract(rounding="half_away", zero_point="before"), "contract",
    ),
    "saturation": ("plain", "c2", contract(accumulator="int16_pairs"), "saturation"),
    "no_saturation": ("no_vnni", "c2", contract(accumulator="int32"), "saturation"),
    "bias": ("plain", "c3", wrong_bias, "bias"),
    "bias_linear": ("plain", "fc", wrong_bias, "bias"),
    "missing_bias": ("plain", "fc", missing_bias, "bias"),
    "swapped_scales": ("plain", "c3", swapped_scales, "channel-scale"),
    "wrong_scale": ("plain", "c1", wrong_scale, "channel-scale"),
    "batch_norm": ("plain", "c1", stale_batch_norm, "batch-norm"),
    "weight": ("plain", "c3", wrong_weight, "weight"),
    "weight_linear": ("plain", "fc", wrong_weight, "weight"),
    "missing_relu": ("symmetric", "c1", no_clamp, "clamp"),
    "relu_too_much": ("symmetric", "c3", own_relu, "clamp"),
    "padding": ("plain", "c1", zero_padding, "padding"),
    "input_zero_point": ("plain", "c1", wrong_zero_point, "input-zero-point"),
    "unfused_add": ("plain", "c2", unfused_add, "unfused-add"),
    "residual": ("plain", "c2", no_residual, "residual"),
    "table": ("plain", "act", wrong_table, "table"),
    "quantize_rounding": ("dyadic", "x_quantizer", half_away, "rounding"),
}  # fmt: skip
"""By name: recipe, layer, fault, cause."""


def planted(program, layer, fault):
    """A copy of a program with a fault."""
    result = copy.deepcopy(program)
    fault(result, node_of(result, layer))
    result.graph.lint()
    result.recompile()
    return result


class Faulty(qcore.Backend):
    """A backend whose kernel for one layer is wrong."""

    name = "faulty"
    fault = None

    def computes(self, numerics):
        return True

    def why_not(self, node):
        return None

    def kernel(self, node):
        return "mine"

    def compile(self, program, own):
        layer, fault = self.fault
        fault(program, node_of(program, layer))
        program.recompile()
        return program


class Declaring(qcore.Backend):
    """A backend of another contract than the programs have."""

    name = "declaring"
    numerics = Numerics(rounding="half_away", zero_point="before")

    def why_not(self, node):
        return None

    def kernel(self, node):
        return "mine"

    def compile(self, program, own):
        for node in program.graph.nodes:
            if "numerics" in schema_arguments(node):
                change(node, numerics=self.numerics.key)
        program.recompile()
        return program


@pytest.fixture
def host():
    """Has the backends of this module."""

    class Plugin:
        @hookimpl
        def qcore_backends(self):
            for backend in (Faulty, Declaring, Picky):
                target = f"{__name__}:{backend.__name__}"
                yield BackendSpec(name=backend.name, target=target)

    made = qcore.PluginHost()
    made.register(Plugin(), name="mine")
    return made


@pytest.fixture
def faulty(host, monkeypatch):
    """Lowers to a backend with a fault."""

    def lower(q, layer, fault):
        monkeypatch.setattr(host.get("backend", "faulty"), "fault", (layer, fault))
        return qcore.lower(q, "faulty", host=host)

    return lower


def check(found, layer, cause):
    assert [o.name for o in found.sources] == [layer], found.verdict()
    assert found.first.cause is not None
    assert found.first.cause.name == cause, found.verdict()
    assert found.first.cause.explained >= 0.9 * found.first.cause.differing > 0, found.verdict()
    assert found.first.cause.refuted <= 0.1 * found.first.cause.differing, found.verdict()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_program(programs, name):
    """The data tell: the only source is the layer, and its cause explains every value."""
    recipe, layer, fault, cause = FAULTS[name]
    found = qcore.compare(programs[recipe], planted(programs[recipe], layer, fault), [X])
    check(found, layer, cause)
    assert found.first.cause.explained == found.first.cause.differing
    assert not found.notes


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_kernel(programs, faulty, name):
    """The values tell: the data of both sides are the same, and the kernel is a black box."""
    recipe, layer, fault, cause = FAULTS[name]
    lowered = faulty(programs[recipe], layer, fault)
    check(qcore.compare(programs[recipe], lowered, [X]), layer, cause)


@pytest.mark.parametrize("name", ["rounding", "bias", "padding"])
def test_a_fault_on_side_a(programs, faulty, name):
    """The side that computes what its data say is right, whichever it is."""
    recipe, layer, fault, cause = FAULTS[name]
    lowered = faulty(programs[recipe], layer, fault)
    found = qcore.compare(lowered, programs[recipe], [X])
    check(found, layer, cause)
    assert "A " in found.first.cause.reason or "in A" in found.first.cause.reason


def test_no_fault(programs, faulty):
    """Without a fault nothing differs, on any recipe and on a black box."""
    for q in programs.values():
        for other in (copy.deepcopy(q), faulty(q, "c1", lambda program, node: None)):
            found = qcore.compare(q, other, [X])
            assert found.equal
            assert not any(o.cause for o in found.operations)


def test_two_faults(programs):
    """Each fault is a source with a cause of its own, although the second one's inputs differ."""
    q = copy.deepcopy(programs["plain"])
    wrong_scale(q, node_of(q, "c1"))
    wrong_zero_point(q, node_of(q, "fc"))
    q.recompile()
    found = qcore.compare(programs["plain"], q, [X])
    assert {o.name: o.cause.name for o in found.sources} == {
        "c1": "channel-scale",
        "fc": "input-zero-point",
    }
    assert found.first.name == "c1"


def test_stale_batch_norm_of_a_model():
    """A program that was made before the statistics changed, against one that was made after."""
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model(3 * X)
    qfloat = qcore.prepare(model.eval(), X, qcore.Recipe.from_table(PLAIN))
    qcore.calibrate(qfloat, [X])
    stale = copy.deepcopy(qfloat)
    batch_norm = dict(qcore.qfloat_ops(stale))["c1"].bn
    batch_norm.running_var.mul_(torch.linspace(1, 1.4, 8))
    batch_norm.running_mean.add_(0.1)
    found = qcore.compare(qcore.convert(qfloat), qcore.convert(stale), [X])
    check(found, "c1", "batch-norm")


def noisy(program, node):
    """Something that no hypothesis knows: a pattern over the places of an image."""
    with program.graph.inserting_after(node):
        wrong = program.graph.call_function(torch.ops.aten.clone.default)
    node.replace_all_uses_with(wrong)
    wrong.args = (node,)
    with program.graph.inserting_after(wrong):
        flipped = program.graph.call_function(torch.ops.aten.flip.default)
    wrong.replace_all_uses_with(flipped)
    flipped.args = (wrong, [2])


def test_what_no_hypothesis_explains(programs, faulty):
    """The cause is unknown, and nothing else is claimed."""
    found = qcore.compare(programs["plain"], faulty(programs["plain"], "c3", noisy), [X])
    assert [o.name for o in found.sources] == ["c3"]
    assert (found.first.cause.name, found.first.cause.explained) == ("unknown", 0)
    assert "no hypothesis explains" in found.verdict()


def test_float_steps_that_are_rounded_otherwise(programs, faulty):
    """Values in float that differ in their last bits are float arithmetic."""

    def inexact(program, node):
        with program.graph.inserting_after(node):
            product = program.graph.call_function(torch.ops.aten.mul.Tensor)
        node.replace_all_uses_with(product)
        product.args = (node, 1 + 2.0**-22)

    found = qcore.compare(programs["plain"], faulty(programs["plain"], "last", inexact), [X])
    check(found, "last", "float-arithmetic")


def test_few_values_that_several_rules_explain(programs, faulty):
    """A cause that rests on few values names the others that would do as well."""
    q = programs["dyadic"]
    found = qcore.compare(q, faulty(q, "fc", contract(rounding="half_away")), [X])
    cause = found.first.cause
    assert cause.differing <= 8
    assert "rounding" in (cause.name, *cause.alternatives)


def test_a_contract_that_a_backend_declares(programs, host):
    """Where a backend says that it computes otherwise, that is the cause, as far as it shows."""
    q = programs["dyadic"]
    with pytest.raises(qcore.BackendError, match="allow_other_numerics"):
        qcore.lower(q, "declaring", host=host)
    lowered = qcore.lower(q, "declaring", allow_other_numerics=True, host=host)
    found = qcore.compare(q, lowered, [X])
    assert {"c2", "c3"} <= {o.name for o in found.sources}
    for operation in found.sources:
        cause = operation.cause
        assert cause.name in ("rounding", "zero-point-order", "contract")
        assert (cause.explained, cause.refuted, cause.alternatives) == (cause.differing, 0, ())
    assert found["c3"].cause.name == "contract"


class Picky(Faulty):
    """Has a kernel for a linear layer, a wrong one, only if nothing else reads its input."""

    name = "picky"

    def why_not(self, node):
        if "qlinear" not in str(node.target):
            return "linear layers only"
        return "its input is read twice" if len(node.args[0].users) > 1 else None

    def compile(self, program, own):
        for node in program.graph.nodes:
            if node.name in own:
                change(node, bias=None)
        program.recompile()
        return program


def test_a_backend_that_computes_otherwise_when_watched(programs, host):
    """The comparison says so where looking at a value changes what runs, or what comes out."""
    q = programs["plain"]
    found = qcore.compare(q, qcore.lower(q, "picky", host=host), [X])
    assert any("run on the reference kernels instead" in note for note in found.notes)
    assert any("when the values between" in note for note in found.notes)
