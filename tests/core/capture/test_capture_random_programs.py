"""Random programs of views, writes and layers that work in place: a graph computes what they do."""

import copy

import torch
import torch.nn.functional as F
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from qcore.capture import capture
from qcore.errors import CaptureError


def same_shape(a, b):
    return a.shape == b.shape


# Each takes the model and two earlier values, and gives a value, several, or none.
OPERATIONS = [
    lambda net, a, b: a.add_(1),
    lambda net, a, b: a.mul_(2),
    lambda net, a, b: a.add_(b) if same_shape(a, b) else a.sub_(0.5),
    lambda net, a, b: a.copy_(b) if same_shape(a, b) else a.zero_(),
    lambda net, a, b: F.relu(a, inplace=True),
    lambda net, a, b: F.dropout(a, 0.5, net.training, inplace=True),
    lambda net, a, b: net.relu(a),
    lambda net, a, b: net.hardtanh(a),
    lambda net, a, b: net.dropout(a),
    lambda net, a, b: net.identity(a),
    lambda net, a, b: net.linear(a) if a.ndim == 2 and a.shape[1] == 4 else a.abs(),
    lambda net, a, b: net.buffer.add_(0.5),
    lambda net, a, b: net.buffer.clone(),
    lambda net, a, b: a.t() if a.ndim == 2 else a.unsqueeze(0).squeeze(0),
    lambda net, a, b: a.transpose(0, -1),
    lambda net, a, b: a[..., 1:3],
    lambda net, a, b: a.select(-1, 0) if a.ndim == 2 else a + 0,
    lambda net, a, b: a.chunk(2, -1) if a.ndim == 2 and a.shape[1] == 4 else a - 1,
    lambda net, a, b: a.unbind(-1)[0] if a.ndim == 2 and a.shape[1] == 4 else a * 3,
    lambda net, a, b: a.unsqueeze(-1),
    lambda net, a, b: a.reshape(-1),
    lambda net, a, b: a.flatten(),
    lambda net, a, b: a.contiguous(),
    lambda net, a, b: a.clone(),
    lambda net, a, b: a.detach(),
    lambda net, a, b: a + b if same_shape(a, b) else a * b.sum(),
]
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 20), st.integers(0, 20)),
    min_size=3,
    max_size=14,
)


class Program(nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.relu, self.hardtanh = nn.ReLU(inplace=True), nn.Hardtanh(-1, 2, inplace=True)
        self.dropout, self.identity = nn.Dropout(inplace=True), nn.Identity()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("buffer", torch.arange(4.0))

    def forward(self, x):
        values = [x * 1.0, x + 1]
        for operation, i, j in self.steps:
            found = operation(self, values[i % len(values)], values[j % len(values)])
            values += found if isinstance(found, list | tuple) else [found]
        return values


def written(node):
    """What an operation of a graph writes to."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    while node.op == "call_function":
        node = node.args[0]
    return node.target


# Not shrunk: a capture takes long beside other examples.
@settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate])
@given(PROGRAMS)
def test_a_graph_computes_what_the_program_does(steps):
    """All values, as they are at the end, are equal; the graph writes to the buffer alone."""
    torch.manual_seed(0)
    model = Program(steps).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        try:
            model(torch.randn(3, 4))
        except RuntimeError:
            assume(False)  # not a program: a write to overlapping memory, say
        model.load_state_dict(twin.state_dict())
        found = capture(model, (torch.randn(3, 4),), is_leaf=lambda m: isinstance(m, nn.Linear))
        assert [piece.path for piece in found.pieces] == [""], found.failures
        (piece,) = found.pieces
        assert {written(node) for node in piece.graph.graph.nodes} <= {None, "buffer"}
        for batch in (3, 5):
            x = torch.randn(batch, 4)
            try:
                got = piece.graph(x.clone())
            except CaptureError:
                assert batch != 3  # the program asks for its batch size
                continue
            for one, other in zip(got, twin(x.clone()), strict=True):
                torch.testing.assert_close(one, other)
