"""Operations that write to a tensor: captured as ones that return a new one, with equal results."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcore.capture import capture


def writing(piece):
    """Operations of the graph that write to a tensor."""
    nodes = (n for n in piece.graph.graph.nodes if n.op == "call_function")
    targets = (n.target for n in nodes if isinstance(n.target, torch._ops.OpOverload))
    return [t for t in targets if t._schema.is_mutable]


def relu_after_use(x):
    y = x * 2
    z = y + 1
    F.relu(y, inplace=True)
    return y + z


def through_a_view(x):
    y = x * 2
    y[:, 1].zero_()
    y[:, 2:] = y[:, :2]
    y[0] += 1
    return y


def view_taken_before(x):
    y = x * 2
    flat, turned = y.view(-1), y.t()
    y.add_(1)
    turned.mul_(3)
    return flat, turned, y


def chain_of_views(x):
    y = (x * 2).unsqueeze(1)
    y.transpose(1, 2).squeeze(2)[:, 1:3].add_(5)
    return y


def parts(x):
    y = x * 2
    a, b = y.chunk(2, dim=1)
    a.mul_(10)
    first, *_ = y.unbind(1)
    first.sub_(1)
    c, d = y.split([1, 3], dim=1)
    d.neg_()
    return a + b, y, c


def diagonal(x):
    y = x * torch.ones(x.shape[0], 4, 4)[:, 0]
    z = y[:, :, None] * torch.ones(4)
    z.diagonal(dim1=1, dim2=2).fill_(0)
    return z


def assignments(x):
    y = torch.zeros_like(x)
    y[:, 0] = 1
    y[:, torch.tensor([1, 2])] = x[:, :2]
    y.masked_fill_(x > 0, -1.0)
    y[x < -1] = 7
    return y


def narrower_dtype(x):
    y = torch.ones_like(x, dtype=torch.float16)
    y += x
    return y * 2


def copies(x):
    y = x * 2
    before = y.clone()
    y.clamp_(min=0)
    same = y.contiguous()
    y += 1
    other = y.t().contiguous()
    y += 1
    return before, same, other, y


def reshape_of_a_transpose(x):
    y = (x * 2).t()
    apart, joined = y.reshape(-1), y.t().reshape(-1)
    y += 1
    return apart, joined


def returned_before_the_write(x):
    y = x * 2
    kept = [y]
    y += 1
    return kept


def in_place_shapes(x):
    y = x * 2
    y.unsqueeze_(1).transpose_(1, 2)
    y.squeeze_(2)
    return y + 1


def detached(x):
    y = x * 2
    y.detach().zero_()
    return y


def on_the_input(x):
    x += 1
    return x * 2


PROGRAMS = [
    relu_after_use, through_a_view, view_taken_before, chain_of_views, parts, diagonal, assignments,
    narrower_dtype, copies, reshape_of_a_transpose, returned_before_the_write, in_place_shapes,
    detached, on_the_input,
]  # fmt: skip


class Run(nn.Module):
    def __init__(self, program):
        super().__init__()
        self.program = program

    def forward(self, x):
        return self.program(x)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_writes_become_values(whole, agrees, program):
    """The graph writes to nothing; what is read after a write, also through views, is the same."""
    model = Run(program).eval()
    piece = whole(model, torch.randn(3, 4))
    assert writing(piece) == []
    for batch in (3, 5):
        agrees(piece, model, torch.randn(batch, 4))


def test_the_caller_keeps_its_input(whole):
    """A forward that writes to its input does not when it is a graph."""
    piece = whole(Run(on_the_input), torch.randn(3, 4))
    x = torch.ones(3, 4)
    piece.graph(x)
    assert torch.equal(x, torch.ones(3, 4))


def test_sizes_are_read_from_the_input_once(whole):
    """A write through a flat view asks for the batch size: one node reads it off the input."""

    def flat_write(x):
        y = x * 2
        y.view(-1).mul_(3)
        return y.reshape(y.shape[0], -1)

    piece = whole(Run(flat_write), torch.randn(3, 2, 2))
    nodes = list(piece.graph.graph.nodes)
    (size,) = (n for n in nodes if n.target is torch.ops.aten.sym_size.int)
    assert size.args == (nodes[0], 0)
    assert len(size.users) == 2


class Layers(nn.Module):
    def __init__(self, program):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.program = program

    def forward(self, x):
        return self.program(self, x)


def residual(net, x):
    y = net.conv(x)
    return net.relu(y) + y


def view_before_a_layer(net, x):
    y = net.conv(x)
    flat = y.flatten(1)
    net.relu(y)
    return flat * 2, y


def layer_on_a_view(net, x):
    y = net.conv(x)
    net.relu(y[:, :2])
    return y


def layer_on_a_copy(net, x):
    y = net.conv(x)
    return net.relu(y.clone()) + y


def copy_before_a_layer(net, x):
    y = net.conv(x)
    before = y.clone()
    net.relu(y)
    return before, y


def layer_on_a_turned_copy(net, x):
    y = net.conv(x)
    return net.relu(y.transpose(1, 2).contiguous()).sum() + y


def copy_of_what_a_layer_returns(net, x):
    y = net.conv(x)
    part = net.relu(y[:, :2])
    apart = part.contiguous()
    y.add_(1)
    return apart, part


def layer_after_a_write(net, x):
    y = net.conv(x)
    y.mul_(-1)
    z = net.relu(y)
    z.add_(1)
    return y, z


def two_layers(net, x):
    y = net.relu(net.conv(net.relu(x)))
    return net.relu(y.sub_(1)) + x


LAYER_PROGRAMS = [
    residual, view_before_a_layer, layer_on_a_view, layer_on_a_copy, copy_before_a_layer,
    layer_on_a_turned_copy, copy_of_what_a_layer_returns, layer_after_a_write, two_layers,
]  # fmt: skip


@pytest.mark.parametrize("program", LAYER_PROGRAMS, ids=lambda p: p.__name__)
def test_layers_that_work_in_place(whole, agrees, program):
    """The instance is called, and whatever reads its argument afterwards reads its result."""
    model = Layers(program).eval()
    piece = whole(model, torch.randn(2, 4, 5))
    assert writing(piece) == []
    assert [n.target for n in piece.graph.graph.nodes if n.op == "call_module"].count("relu") > 0
    for batch in (2, 3):
        agrees(piece, model, torch.randn(batch, 4, 5))


@pytest.mark.parametrize("program", LAYER_PROGRAMS, ids=lambda p: p.__name__)
def test_nothing_reads_what_a_layer_overwrote(whole, program):
    """In a graph, the argument of a layer that works in place has no reader after the layer."""
    piece = whole(Layers(program).eval(), torch.randn(2, 4, 5))
    nodes = list(piece.graph.graph.nodes)
    for position, node in enumerate(nodes):
        if node.target == "relu":
            assert not set(nodes[position + 1 :]) & set(node.args[0].users)


def test_state_is_written_in_order(whole, agrees):
    """Writes to buffers stay, copies of them taken before a write keep the old value."""

    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            before = self.mean.clone()
            self.mean[:2].add_(1)
            self.mean.mul_(2)
            return x + before, x + self.mean

    model = Moving().eval()
    piece = whole(model, torch.randn(2, 4))
    first, second = piece.graph(torch.zeros(2, 4))
    assert torch.equal(first[0], torch.zeros(4))
    assert torch.equal(second[0], torch.tensor([2.0, 2.0, 0.0, 0.0]))
    first, second = piece.graph(torch.zeros(2, 4))
    assert torch.equal(first[0], torch.tensor([2.0, 2.0, 0.0, 0.0]))
    assert torch.equal(second[0], torch.tensor([6.0, 6.0, 0.0, 0.0]))


def test_a_write_without_another_form_is_no_whole_capture(capture_layers):
    """What can't be rewritten fails with the operation's name; the layers are still captured."""

    class Unfolded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            y.unfold(1, 2, 2).mul_(2)
            return y

    found = capture_layers(Unfolded(), torch.randn(2, 4))
    assert [(p.path, p.rung) for p in found.pieces] == [("fc", "module")]
    path, why = found.failures[0]
    assert (path, why.partition(":")[0]) == ("", "CaptureError")
    assert "aten.unfold" in why


def test_a_leaf_that_spoils_its_argument(agrees):
    """Nothing can read what a layer wrote to its argument without returning it."""

    class Spoil(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x.sum(1)

    class Net(nn.Module):
        def __init__(self, reads):
            super().__init__()
            self.spoil = Spoil()
            self.reads = reads

        def forward(self, x):
            y = x + 1
            z = self.spoil(y)
            return z + y.sum() if self.reads else z

    fine = Net(False).eval()
    (piece,) = capture(fine, (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Spoil)).pieces
    agrees(piece, fine, torch.randn(3, 4))
    found = capture(Net(True), (torch.randn(2, 4),), is_leaf=lambda m: isinstance(m, Spoil))
    assert [(p.path, p.rung) for p in found.pieces] == [("spoil", "module")]
    assert "written to it without returning it" in found.failures[0][1]
