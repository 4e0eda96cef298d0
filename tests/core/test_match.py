"""Matching: which converter a node has, how arguments are bound, and which pattern wins."""

import pytest
import torch
from torch import fx, nn

import qcore
from qcore import ConverterSpec, FusionSpec
from qcore.match import OpTable, find_matches, function_name


def converter(name, *, op=None, types=(), functions=()):
    return ConverterSpec(
        name=name, op=op or name, types=types, functions=functions, target="nowhere:Nothing"
    )


RELU = converter("relu", types=("torch.nn.ReLU",), functions=("aten.relu.default",))
LINEAR = converter("linear", types=("torch.nn.Linear",))
ADD = converter("add", functions=("aten.add.Tensor",))
CAT = converter("cat", functions=("aten.cat.default",))


def graph_of(build):
    """A graph by ``build(graph, x)`` over modules of a linear layer and a relu."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(build(graph, x))
    return graph


MODULES = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "r": nn.ReLU()}
aten = torch.ops.aten


def matched(build, *specs, fusions=(), **options):
    table = OpTable([RELU, LINEAR, ADD, CAT, *specs], fusions, **options)
    return find_matches(graph_of(build), MODULES, table)


def linear_relu_add(graph, x):
    y = graph.call_module("r", (graph.call_module("a", (x,)),))
    return graph.call_function(aten.add.Tensor, (y, x))


def names(matches):
    return [(m.name, m.op, tuple(s.op for s in m.steps)) for m in matches]


def test_without_patterns_each_operation_is_by_itself():
    """Every known node is a match of one step, in graph order."""
    assert names(matched(linear_relu_add)) == [
        ("a", "linear", ("linear",)), ("r", "relu", ("relu",)), ("add_tensor", "add", ("add",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fusions", "chains"),
    [
        ([("short", ("linear", "relu"), 0)], [2, 1]),
        ([("short", ("linear", "relu"), 0), ("long", ("linear", "relu", "add"), 0)], [3]),
        ([("short", ("linear", "relu"), 1), ("long", ("linear", "relu", "add"), 0)], [2, 1]),
        ([("late", ("relu", "add"), 5), ("early", ("linear", "relu"), 0)], [1, 2]),
        ([("any", (("linear", "relu"), ("relu", "add")), 0)], [2, 1]),
    ],
    ids=["one", "longer-first", "priority-first", "higher-takes-the-middle", "alternatives"],
)
def test_which_pattern_wins(fusions, chains):
    """Higher priority first, then longer patterns; a node belongs to one match."""
    specs = [FusionSpec(name=n, pattern=p, priority=q) for n, p, q in fusions]
    assert [len(m.steps) for m in matched(linear_relu_add, fusions=specs)] == chains


def test_inputs_of_a_chain():
    """The inputs of a chain are the first step's, then the further ones."""
    pattern = FusionSpec(name="all", pattern=("linear", "relu", "add"))
    (match,) = matched(linear_relu_add, fusions=[pattern])
    assert [n.name for n in match.inputs] == ["x", "x"]
    assert (match.first.op, match.node.name) == ("linear", "add_tensor")
    assert match.step("add", "relu").op == "relu"
    assert match.step("mul") is None


def test_lists_of_tensors_are_inputs_in_order():
    """Tensors within a list are inputs one by one, the same twice twice."""

    def build(graph, x):
        y = graph.call_module("a", (x,))
        return graph.call_function(aten.cat.default, ([y, x, y], 1))

    cat = matched(build)[-1]
    assert [n.name for n in cat.inputs] == ["a", "x", "a"]
    assert cat.first.arguments == {"tensors": [*cat.inputs], "dim": 1}


def test_arguments_are_bound_by_the_schema():
    """Arguments of a function have the schema's names, with defaults; those of a module
    forward's."""
    add = matched(linear_relu_add)[-1].first
    assert set(add.arguments) == {"self", "other", "alpha"}
    assert add.arguments["alpha"] == 1
    assert add.kind == "aten.add.Tensor"
    assert set(matched(linear_relu_add)[0].first.arguments) == {"input"}


@pytest.mark.parametrize("users", ["two-users", "same-user-twice"])
def test_a_value_that_is_used_twice_is_not_taken_in(users):
    """A step whose value has a second use, even by the next step itself, ends the chain."""

    def build(graph, x):
        y = graph.call_module("a", (x,))
        if users == "two-users":
            return graph.call_function(aten.add.Tensor, (graph.call_module("r", (y,)), y))
        return graph.call_function(aten.add.Tensor, (y, y))

    fusions = [
        FusionSpec(name="lr", pattern=("linear", "relu")),
        FusionSpec(name="la", pattern=("linear", "add")),
    ]
    assert all(len(m.steps) == 1 for m in matched(build, fusions=fusions))


def test_check_refuses_and_the_reason_is_kept():
    """A refused chain leaves its reason, once, on the match that is made instead."""
    long = FusionSpec(name="long", pattern=("linear", "relu", "add"), check="a:b")
    short = FusionSpec(name="short", pattern=("linear", "relu"), check="a:c")
    checks = {"a:b": lambda match: "too long", "a:c": lambda match: None}
    found = matched(linear_relu_add, fusions=[long, short], load_check=lambda f: checks[f.check])
    assert [(len(m.steps), m.refused) for m in found] == [(2, ("too long",)), (1, ())]


def test_subclass_of_a_class_with_a_converter():
    """A subclass that keeps forward has its base's converter; one with its own forward has none."""

    class Kept(nn.Linear):
        pass

    class Own(nn.Linear):
        def forward(self, x):
            return x

    class Patched(nn.Linear):
        pass

    table = OpTable([LINEAR])
    assert table.of_module(Kept(2, 2)) is LINEAR
    assert table.of_module(Own(2, 2)) is None
    assert table.of_module(nn.Bilinear(2, 2, 2)) is None


def test_nearest_base_wins():
    """Of the converters of a class and of its base the class's own is taken."""
    own = converter("own", types=("torch.nn.modules.linear.NonDynamicallyQuantizableLinear",))
    table = OpTable([LINEAR, own])
    assert table.of_module(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2)) is own
    assert table.of_module(nn.Linear(2, 2)) is LINEAR


@pytest.mark.parametrize(
    "name",
    [
        "no_such_package.Layer",
        "torch.nn.NoSuchLayer",
        "torch.no_such_module.Layer",
        "torch.nn.relu",
    ],
)
def test_types_that_are_not_there_are_no_error(name):
    """A converter for a class that is not installed, or no class, is not in the way of others."""
    table = OpTable([LINEAR, converter("other", types=(name,))])
    assert table.of_module(nn.Linear(2, 2)) is LINEAR


def test_types_of_packages_that_are_not_loaded_are_not_imported():
    """The class of a package that nobody imported can have no instance: it is not imported."""
    import sys

    before = set(sys.modules)
    OpTable([converter("turtle", types=("turtledemo.clock.Turtle",))])
    assert "turtledemo" not in set(sys.modules) - before


def test_two_converters_of_one_function():
    """Two converters of one function are an error at use, not before."""
    rival = converter("rival", op="sum", functions=("aten.add.Tensor",))
    assert len(matched(lambda g, x: g.call_module("a", (x,)), rival)) == 1
    with pytest.raises(qcore.PluginError, match=r"function aten.add.Tensor is claimed by.*prefer"):
        matched(linear_relu_add, rival)


def test_names_of_functions():
    """Overloads and Python functions have stable names."""
    import operator

    assert function_name(aten.add.Tensor) == "aten.add.Tensor"
    assert function_name(operator.getitem) == "_operator.getitem"


def test_matching_is_linear(net):
    """Patterns are tried on long graphs without growing faster than the graph."""
    graph = fx.Graph()
    y = graph.placeholder("x")
    for _ in range(2000):
        y = graph.call_module("r", (graph.call_module("a", (y,)),))
    graph.output(y)
    pattern = FusionSpec(name="lr", pattern=("linear", "relu"))
    table = OpTable([RELU, LINEAR], [pattern])
    assert len(find_matches(graph, MODULES, table)) == 2000
