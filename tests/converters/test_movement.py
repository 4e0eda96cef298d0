"""Operations that move or select values: integers in, the same integers out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(2, 3, 8, 8)

# Each is given [B, 4, 8, 8] and gives [B, 4, *, *].
MOVES = {
    "reshape": lambda y: y.reshape(y.shape[0], 4, 4, 16),
    "view": lambda y: y.view(-1, 4, 16, 4),
    "flatten-unflatten": lambda y: y.flatten(1).unflatten(1, (4, 8, 8)),
    "permute": lambda y: y.permute(0, 2, 1, 3)[:, :4],
    "transpose": lambda y: y.transpose(2, 3),
    "swapaxes": lambda y: y.swapaxes(-1, -2),
    "movedim": lambda y: y.movedim(2, 3),
    "squeeze": lambda y: y.unsqueeze(1).squeeze(1),
    "squeeze-all-ones": lambda y: y[:, :, :1].squeeze(2).unsqueeze(-1),
    "expand": lambda y: y[:, :, :1, :1].expand(-1, -1, 3, 5),
    "expand-as": lambda y: y[:, :, :1].expand_as(y),
    "contiguous": lambda y: y.transpose(2, 3).contiguous(),
    "channels-last": lambda y: y.contiguous(memory_format=torch.channels_last),
    "clone": lambda y: y.clone(),
    "slice": lambda y: y[:, :, 1:-1, ::2],
    "select": lambda y: y.select(2, 3).unsqueeze(2),
    "narrow": lambda y: y.narrow(3, 1, 4),
    "repeat": lambda y: y.repeat(1, 1, 2, 1),
    "roll": lambda y: y.roll(3, 2),
    "flip": lambda y: y.flip(2, 3),
    "index-select": lambda y: y.index_select(1, torch.tensor([3, 0, 1, 1])),
    "chunk": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "split": lambda y: y.split(4, 2)[1],
    "split-sizes": lambda y: torch.split(y, [3, 5], 3)[1],
    "unbind": lambda y: y.unbind(2)[2].unsqueeze(2),
    "pixel-shuffle": lambda y: F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2),
    "channel-shuffle": lambda y: F.channel_shuffle(y, 2),
    "pad": lambda y: F.pad(y, (1, 0, 2, 3)),
    "pad-crop": lambda y: F.pad(y, (-1, 2)),
    "pad-reflect": lambda y: F.pad(y, (1, 2, 3, 0), "reflect"),
    "pad-replicate": lambda y: F.pad(y, (1, 2, 3, 0), "replicate"),
    "pad-circular": lambda y: F.pad(y, (1, 2, 3, 0), "circular"),
    "constant-pad": lambda y: torch.constant_pad_nd(y, (1, 1)),
    "index": lambda y: y[:, [3, 0, 0, 2]],
    "tile": lambda y: y.tile(1, 1, 2, 1),
    "repeat-interleave": lambda y: y.repeat_interleave(2, -1),
    "unfold": lambda y: y.unfold(3, 4, 2).flatten(3),
    "largest": lambda y: y.amax((2, 3), keepdim=True),
    "smallest": lambda y: y.amin(3, keepdim=True),
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "nearest-exact": lambda y: F.interpolate(y, scale_factor=1.5, mode="nearest-exact"),
    "nearest-to-size": lambda y: F.interpolate(y, size=(5, 11)),
    "dropout-function": lambda y: F.dropout(y, training=False),
}


@pytest.mark.parametrize("name", MOVES)
def test_functions_move_integers(exact, net, name):
    """A function that moves values runs on the integers: nothing is rounded again."""
    torch.manual_seed(0)
    model = net(
        lambda m, x: m.b(MOVES[name](m.a(x))), a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 2, 1)
    )
    done = exact(model, X)
    assert not [row for row in done.plan.rows if row.status == "float"]
    assert not [node for node in done.q.graph.nodes if "dequantize" in node.name]


@pytest.mark.parametrize("preset", ["int8_minmax", "uint8"])
@pytest.mark.parametrize(
    "module",
    [
        nn.Identity(), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.ChannelShuffle(2),
        nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.0), nn.ReflectionPad2d(2), nn.ReplicationPad2d(1),
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 8, 8))),
        nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
        nn.CircularPad2d(2), nn.Upsample(scale_factor=2), nn.Upsample((5, 11)),
        nn.UpsamplingNearest2d(scale_factor=2),
    ],
    ids=lambda m: repr(m) if isinstance(m, nn.Module) else m,
)  # fmt: skip
def test_modules_move_integers(exact, module, preset):
    """The same for modules, with signed and unsigned integers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), module, nn.Conv2d(4, 2, 1))
    done = exact(model, X, preset)
    assert not [row for row in done.plan.rows if row.status == "float"]
    assert not [node for node in done.q.graph.nodes if "dequantize" in node.name]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Zero", "Reflection", "Replication", "Circular"])
def test_pads_in_any_number_of_dimensions(exact, dims, kind):
    """Padding modules in 1 to 3 dimensions."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pad = getattr(nn, f"{kind}Pad{dims}d")(1)
    model = nn.Sequential(conv(2, 3, 1), pad, conv(3, 2, 3))
    exact(model, torch.randn(2, 2, *(5, 4, 6)[:dims]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [qcore.INT8, qcore.UINT8, qcore.INT16], ids=lambda d: d.name)
def test_nearest_interpolation_moves_integers_of_any_width(exact, dims, dtype):
    """Resizing to the nearest value gives the very integers, also where torch has no kernel for
    their dtype."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    activation = qcore.QuantizerConfig(scheme=qcore.QScheme(dtype=dtype, symmetric=dtype.signed))
    qconfig = qcore.QConfig(
        weight=qcore.QuantizerConfig(scheme="int8_channel"), activation=activation
    )
    model = nn.Sequential(conv(2, 3, 1), nn.Upsample(scale_factor=3), conv(3, 2, 1))
    x = torch.randn(2, 2, *(5, 4, 3)[:dims])
    done = exact(model, x, qconfig)
    assert done.plan.row("1").status == "moves"
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            seen[node.name] = super().run_node(node)
            return seen[node.name]

    Watch(done.q).run(x)
    names = list(seen)
    (resized,) = (i for i, name in enumerate(names) if name.startswith("upsample"))
    before, after = seen[names[resized - 2]], seen[names[resized + 1]]
    assert before.dtype == after.dtype == getattr(torch, dtype.storage)
    assert torch.equal(after.double(), F.interpolate(before.double(), scale_factor=3))


@pytest.mark.parametrize(
    "function", [lambda y: F.pad(y, (1, 1), value=1.0), lambda y: nn.ConstantPad2d(1, -2.0)(y)]
)
def test_padding_with_another_number_stays_float(exact, net, function):
    """A number that may be no value of the scale can't be padded with on integers: float."""
    model = net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 1))
    done = exact(model, X)
    row = next(row for row in done.plan.rows if row.op == "pad")
    assert (row.status, "only 0 always is" in row.reason) == ("float", True)


def test_movement_of_a_float_stays_float(exact, net):
    """What moves a float value is float, and no quantizer is put in for it."""
    model = net(
        lambda m, x: m.b(m.a(x).flatten(2).softmax(-1).transpose(1, 2)),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Linear(4, 2),
    )
    done = exact(model, X)
    kinds = {row.kind: row.reason for row in done.plan.rows if row.op == "move"}
    assert kinds == {
        "aten.flatten.using_ints": "moves a float value",
        "aten.transpose.int": "moves a float value",
    }


def test_moved_value_with_two_kinds_of_users(exact, net):
    """A moved value that an integer and a float operation use is dequantized once for the float
    one."""

    def forward(m, x):
        y = m.a(x).transpose(2, 3)
        return m.b(y) + y.softmax(1)[:, :2]

    done = exact(net(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 1)), X)
    assert sum("dequantize" in node.name for node in done.q.graph.nodes) == 1
