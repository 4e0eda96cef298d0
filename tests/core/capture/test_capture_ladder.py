"""Where the whole can't be captured: the largest submodules that can be, then single layers."""

import re
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcore.capture import capture
from qcore.errors import CaptureError


def rungs(found):
    return [(piece.path, piece.rung) for piece in found.pieces]


class Branch(nn.Module):
    """Takes a way that depends on values."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.fc(x)
        if x.sum() > 0:
            x = x + 1
        return x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, *, gain=1.0):
        return self.fc2(F.relu(self.fc1(x))) * gain + x


class Mixed(nn.Module):
    """Captured in parts: a block, a branch of which only the layer can be, an uncalled list."""

    def __init__(self):
        super().__init__()
        self.block = Block()
        self.branch = Branch()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.GELU(), Block()])
        self.unused = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        x = self.branch(self.block(x, gain=2.0))
        for layer in self.layers:
            x = layer(x)
        return x


def test_the_largest_submodules_that_can_be_captured(capture_layers, agrees):
    """Submodules from the outside in, children where one fails; uncalled containers are skipped."""
    model = Mixed().eval()
    found = capture_layers(model, torch.randn(2, 4))
    assert rungs(found) == [
        ("block", "submodule"),
        ("branch.fc", "module"),
        ("layers.0", "module"),
        ("layers.2", "submodule"),
    ]
    assert [path for path, _ in found.failures] == ["", "branch", "unused"]
    agrees(found.pieces[0], model.block, torch.randn(3, 4), gain=2.0)
    agrees(found.pieces[3], model.layers[2], torch.randn(3, 4))


def test_a_piece_takes_the_place_of_its_module(capture_layers):
    """A model with its parts replaced by their graphs computes the same, on another batch too."""
    model = Mixed().eval()
    x = torch.randn(5, 4)
    want = model(x)
    found = capture_layers(model, torch.randn(2, 4))
    for piece in found.pieces:
        parent, _, name = piece.path.rpartition(".")
        setattr(model.get_submodule(parent), name, piece.graph)
    torch.testing.assert_close(model(x), want)


def test_reasons_point_to_the_line(capture_layers):
    """A failure is one line: kind of error, first line of it, and where in the user's code."""
    found = capture_layers(Mixed(), torch.randn(2, 4))
    line = Branch.forward.__code__.co_firstlineno + 2
    for path in ("", "branch"):
        why = dict(found.failures)[path]
        assert "\n" not in why
        assert why.startswith("GuardOnDataDependentSymNode: ")
        assert why.endswith(f"(at {__file__}:{line})")
    assert dict(found.failures)["unused"] == "not reached by the example inputs"


def test_targets_of_pieces_have_names_in_the_model(capture_layers):
    """A target of a piece, with the piece's path, is the name in the whole model."""
    found = capture_layers(Mixed(), torch.randn(2, 4))
    names = [
        piece.qualified(node.target)
        for piece in found.pieces
        for node in piece.graph.graph.nodes
        if node.op == "call_module"
    ]
    assert names == [
        "block.fc1", "block.fc2", "branch.fc", "layers.0", "layers.2.fc1", "layers.2.fc2",
    ]  # fmt: skip


def test_a_leaf_by_itself_takes_any_shape(capture_layers):
    """Alone, a convolution that is called with several image sizes is one piece for all of them."""

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            y = self.conv(x)
            return self.conv(y) if y.sum() > -1e9 else y

    found = capture_layers(Pyramid(), torch.randn(2, 3, 9, 9))
    assert rungs(found) == [("conv", "module")]
    assert found.pieces[0].graph(torch.randn(1, 3, 30, 20)).shape == (1, 3, 28, 18)
    with pytest.raises(CaptureError, match=r"captured module 'conv': input input is float64"):
        found.pieces[0].graph(torch.randn(1, 3, 30, 20, dtype=torch.float64))


def test_a_submodule_that_is_called_in_several_ways_is_not_one_graph(capture_layers):
    """What one graph can't serve is taken apart, and the reason names the input."""

    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            if x.sum() > 1e9:
                return x
            return self.block(x) + self.block(x, gain=2.0)

    found = capture_layers(Uneven(), torch.randn(2, 4))
    assert rungs(found) == [("block.fc1", "module"), ("block.fc2", "module")]
    assert "gave (x)" in dict(found.failures)["block"]


def test_the_batch_of_submodules_is_a_symbol_for_an_example_of_one(capture_layers, agrees):
    """With a batch of 1, sizes that are 1 anyway stay 1 in the pieces, and the batch may change."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, position):
            return self.fc(x) + position

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.biased = Biased()
            self.position = nn.Parameter(torch.randn(1, 4))

        def forward(self, x):
            x = self.biased(x, self.position)
            return x if x.sum() > 0 else -x

    model = Net().eval()
    (piece,) = capture_layers(model, torch.randn(1, 4)).pieces
    assert (piece.path, piece.static) == ("biased", None)
    assert [i.shape[0] for i in piece.guard.inputs][1] == 1
    agrees(piece, model.biased, torch.randn(6, 4), model.position.detach())


def test_attention_in_a_part_keeps_its_packed_projection(capture_layers):
    """A submodule that gets one tensor three times does so in its graph, which checks that."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            y, _ = self.mha(x, x, x, need_weights=False)
            return y if y.sum() > 0 else -y

    model = Net().eval()
    found = capture_layers(model, torch.randn(2, 3, 8))
    assert rungs(found) == [("mha", "submodule")]
    graph = found.pieces[0].graph
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == [
        "in_proj_linear",
        "out_proj",
    ]
    x = torch.randn(4, 3, 8)
    torch.testing.assert_close(
        graph(x, x, x, need_weights=False), model.mha(x, x, x, need_weights=False)
    )
    with pytest.raises(CaptureError, match="input key must be the same tensor as input query"):
        graph(x, x.clone(), x, need_weights=False)


def test_a_module_with_several_names_is_one_piece_with_aliases(capture_layers):
    """A shared submodule is captured once; its other names are known."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Block()
            self.again = self.first

        def forward(self, x):
            x = self.again(self.first(x))
            return x if x.sum() > 0 else -x

    (piece,) = capture_layers(Shared(), torch.randn(2, 4)).pieces
    assert (piece.path, piece.aliases) == ("first", ("again",))


def test_without_example_inputs_leaves_are_captured_one_by_one():
    """Only the outermost modules with a converter, by one tensor of unknown shape and dtype."""
    model = Mixed()
    found = capture(model, is_leaf=lambda m: isinstance(m, nn.Linear))
    paths = [
        "block.fc1",
        "block.fc2",
        "branch.fc",
        "layers.0",
        "layers.2.fc1",
        "layers.2.fc2",
        "unused.0",
    ]
    assert rungs(found) == [(path, "module") for path in paths]
    assert found.failures == (("", "no example inputs"),)
    piece = found.pieces[0]
    x = torch.randn(2, 4)
    torch.testing.assert_close(piece.graph(input=x), model.block.fc1(x))
    (node,) = (n for n in piece.graph.graph.nodes if n.op == "call_module")
    assert piece.qualified(node.target) == "block.fc1"
    with pytest.raises(CaptureError, match=r"input input is 3, but .* captured for tensor"):
        piece.graph(3)
    with pytest.raises(CaptureError, match="has no captured body"):
        piece.inline(node, torch.fx.Graph(), {}, lambda name, tensor: None)


def test_a_model_that_fails_on_its_example_is_an_error(capture_layers):
    """Example inputs that the model itself does not take: the error says so and where."""
    with pytest.raises(
        CaptureError, match=r"fails on the example inputs: RuntimeError: .*5 and 4x"
    ):
        capture_layers(Mixed(), torch.randn(2, 5))


class Explosive(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.armed = False

    def forward(self, x):
        self.steps += 1
        self.armed = True
        if isinstance(x, torch.Tensor) and type(x) is not torch.Tensor:
            raise KeyError("under trace")
        return self.fc(x)


def test_a_failure_leaves_the_model_as_it_was(capture_layers):
    """After an exception in the forward too, hooks, flags, attributes and buffers are as before."""
    model = Explosive().train()
    found = capture_layers(model, torch.randn(2, 4))
    assert rungs(found) == [("fc", "module")]
    assert "KeyError: 'under trace'" in found.failures[0][1]
    assert model.training
    assert model.fc.training
    assert (model.armed, float(model.steps)) == (False, 0.0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_interrupts_are_not_failures(capture_layers):
    """Ctrl-C stops a capture, and the model is as before."""

    class Interrupted(Explosive):
        def forward(self, x):
            raise KeyboardInterrupt

    model = Interrupted().train()
    with pytest.raises(KeyboardInterrupt):
        capture_layers(model, torch.randn(2, 4))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_the_forward_prints_comes_through_and_export_is_quiet(capture_layers, capfd):
    """The user's own output appears; the graphs that export prints on failure do not."""

    class Loud(Branch):
        def forward(self, x):
            print("to stderr", file=sys.stderr)
            return super().forward(x)

    capture_layers(Loud(), torch.randn(2, 4))
    out, err = capfd.readouterr()
    assert out == ""
    assert set(err.split("\n")) == {"to stderr", ""}


def test_a_branch_operation_is_taken_apart(capture_layers):
    """torch.cond is no part of a captured graph; layers around it still are."""

    class Cond(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            return torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v - 1, (y,))

    found = capture_layers(Cond(), torch.randn(2, 4))
    assert rungs(found) == [("fc", "module")]
    assert "higher-order operation cond" in found.failures[0][1]


def test_a_leaf_that_reads_more_than_its_arguments(agrees):
    """A layer that gets a tensor behind its back can't be called by a graph; constants can be."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.ones(4)

        def forward(self, x):
            return x * self.scale

    class Net(nn.Module):
        def __init__(self, sneaky):
            super().__init__()
            self.scaled = Scaled()
            self.sneaky = sneaky

        def forward(self, x):
            if self.sneaky:
                self.scaled.scale = x.sum(0)
            return self.scaled(x)

    honest = Net(False).eval()
    honest.scaled.scale = torch.arange(4.0)
    found = capture(honest, (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Scaled))
    assert rungs(found) == [("", "whole")]
    agrees(found.pieces[0], honest, torch.randn(3, 4))
    found = capture(Net(True), (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Scaled))
    assert rungs(found) == [("scaled", "module")]
    assert "'scaled' uses a tensor of the forward" in found.failures[0][1]


def test_what_a_leaf_leaks_is_computed_again(agrees):
    """A tensor that a layer leaves on itself for others to read is computed from its arguments."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            self.weights = torch.softmax(self.fc(x), -1)
            return self.weights @ x.t()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()

        def forward(self, x):
            return self.attention(x), self.attention.weights

    model = Net().eval()
    found = capture(model, (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Attention))
    assert rungs(found) == [("", "whole")]
    agrees(found.pieces[0], model, torch.randn(3, 4))


def test_failures_of_thousands_of_characters_are_cut(capture_layers):
    """A reason is one readable line, whatever the error says."""

    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            if type(x) is not torch.Tensor:
                raise ValueError("x" * 5000)
            return self.fc(x)

    found = capture_layers(Long(), torch.randn(2, 4))
    assert re.fullmatch(r"ValueError: x+\.\.\. \(at .*:\d+\)", found.failures[0][1])
    assert len(found.failures[0][1]) < 600


def test_a_call_that_fails_inside_the_forward(capture_layers):
    """A forward that catches the exception of a layer: the calls that return are what counts."""

    class Retry(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            try:
                return self.fc(x, x)
            except TypeError:
                return self.fc(x)

    model = Retry().eval()
    found = capture_layers(model, torch.randn(2, 4))
    assert rungs(found)[0][0] in ("", "fc")
    x = torch.randn(3, 4)
    torch.testing.assert_close(found.pieces[0].graph(x), model(x))


def test_arguments_that_are_no_plain_containers(capture_layers):
    """A packed sequence between submodules does not stop the capture of other layers."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                self.fc(x), lengths, batch_first=True, enforce_sorted=False
            )
            return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]

    found = capture_layers(Packed(), torch.randn(2, 3, 4), torch.tensor([3, 2]))
    assert rungs(found) == [("fc", "module")]


# torch deprecates TorchScript itself.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_child_is_named(capture_layers):
    """TorchScript can't be seen through: it is reported, and its neighbours are captured."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.scripted, self.fc = torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.scripted(x))

    found = capture_layers(Partly(), torch.randn(2, 4))
    assert rungs(found) == [("fc", "module")]
    assert ("scripted", "a TorchScript module can't be captured") in found.failures
