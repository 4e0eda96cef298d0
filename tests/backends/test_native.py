"""Whole programs on the native backend: the same values as Q, on any input that Q takes."""

import copy
import os
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

import qcore
from qcore_backends.native.library import ISA_VARIABLE, library
from qcore_backends.native.memory import Buffer, place

NATIVE = qcore.default_host().get("backend", "native")
pytestmark = pytest.mark.skipif(NATIVE.unavailable() is not None, reason=str(NATIVE.unavailable()))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Tests change the number of threads of torch."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """A convolutional network with a residual, a depthwise layer, pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.a = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.ReLU6())
        self.c = nn.Conv2d(20, 20, 1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(x + self.c(self.b(self.a(x))))
        return self.head(self.average(x).flatten(1))


class Attention(nn.Module):
    """A transformer block: products of activations between float islands."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))
        self.up, self.down = nn.Linear(24, 50), nn.Linear(50, 24)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (f(n).view(*n.shape[:2], 3, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(x)))


def quantized(model: nn.Module, x: Tensor, preset: str = "int8") -> nn.Module:
    torch.manual_seed(0)
    recipe = qcore.Recipe(preset=preset)
    return qcore.quantize(model.eval(), x, [x, x * 1.3], recipe)


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, 20, 18)


@pytest.fixture(scope="module")
def q(images: Tensor) -> nn.Module:
    """A quantized :class:`Residual`."""
    return quantized(Residual(), images)


@pytest.mark.parametrize("preset", ["int8", "uint8"])
def test_a_network_runs_in_one_call_and_gives_the_same_values(preset: str, images: Tensor) -> None:
    """No operation is left to the reference, and every instruction set agrees with it."""
    q = quantized(Residual(), images, preset)
    lowered = qcore.lower(q, "native")
    calls = [n for n in lowered.graph.nodes if n.op in ("call_module", "call_function")]
    assert len(calls) == 1
    assert not qcore.lowered_info(lowered)[""].reference
    for isa in library().isas():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(ISA_VARIABLE, isa)
                assert torch.equal(lowered(images), q(images))


def test_a_transformer_gives_the_same_values() -> None:
    """Islands of float stay torch's own calls between the segments."""
    torch.manual_seed(0)
    x = torch.randn(3, 11, 24)
    q = quantized(Attention(), x)
    lowered = qcore.lower(q, "native")
    names = {n.target for n in lowered.graph.nodes if n.op == "call_function"}
    assert not any("qcore" in str(target) for target in names)
    for batch in (x, x[:1], torch.cat([x, -x])):
        assert torch.equal(lowered(batch), q(batch))


def test_inputs_of_other_sizes_and_formats(q: nn.Module, images: Tensor) -> None:
    """A batch of another size, an empty one, and other strides."""
    lowered = qcore.lower(q, "native")
    wide = torch.cat([images, images], 3)[..., ::2]
    for x in (
        images[:1],
        images[:0],
        torch.cat([images] * 3),
        images.contiguous(memory_format=torch.channels_last),
        wide,
    ):
        assert torch.equal(lowered(x), q(x))


def test_every_layer_can_be_seen(q: nn.Module, images: Tensor) -> None:
    """The values inside of a segment are those of Q."""
    lowered = qcore.lower(q, "native")
    wanted, found = qcore.layer_values(q, images), qcore.layer_values(lowered, images)
    assert wanted.keys() == found.keys()
    assert len(wanted) > 5
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_results_are_the_callers(q: nn.Module, images: Tensor) -> None:
    """A later call does not change what an earlier one gave."""
    lowered = qcore.lower(q, "native")
    first = lowered(images)
    kept = first.clone()
    lowered(-images)
    assert torch.equal(first, kept)


def test_calls_from_several_threads(q: nn.Module, images: Tensor) -> None:
    """They take turns, also if each has threads of its own."""
    lowered = qcore.lower(q, "native")
    batches = [images * (i + 1) / 4 for i in range(4)]
    wanted = [q(x) for x in batches]
    wrong = []

    def call(i: int) -> None:
        torch.set_num_threads(2)
        wrong.extend(i for _ in range(20) if not torch.equal(lowered(batches[i]), wanted[i]))

    workers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_fork_makes_threads_of_its_own(q: nn.Module, images: Tensor) -> None:
    """The threads of the parent are not the child's to wait for."""
    torch.set_num_threads(2)
    lowered = qcore.lower(q, "native")
    wanted = lowered(images)
    with warnings.catch_warnings():
        # Python says that a fork of several threads is dangerous; that is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(lowered(images), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_copies_share_what_was_prepared(q: nn.Module, images: Tensor) -> None:
    """A deep copy gives the same values from the same packed weights."""
    lowered = qcore.lower(q, "native")
    twin = copy.deepcopy(lowered)
    assert torch.equal(twin(images), lowered(images))
    assert twin.native_0 is lowered.native_0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, dtype=torch.float64), r"'x' is torch\.float64.*Convert it"),
        (torch.zeros(2, device="meta"), r"'x' is on meta.*\.cpu\(\)"),
    ],
)
def test_an_input_that_the_kernels_would_misread_is_refused(x: Tensor, message: str) -> None:
    """Another dtype or device is an error that says what to do."""
    graph = fx.Graph()
    args = (graph.placeholder("x"), 0.5, 0, -128, 127, torch.int8, "half_even")
    node = graph.call_function(torch.ops.qcore.quantize.default, args)
    graph.output(node)
    lowered = NATIVE().compile(fx.GraphModule({}, graph), frozenset({node.name}))
    with pytest.raises(qcore.BackendError, match=message):
        lowered(x)


def test_an_unknown_instruction_set_is_refused(
    q: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message lists those of this machine."""
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(qcore.BackendError, match=r"'sse9'.*this machine has generic"):
        qcore.lower(q, "native")(images)


def test_a_program_of_another_contract_is_refused(images: Tensor) -> None:
    """The kernels compute the default contract and no other."""
    recipe = qcore.Recipe(preset="uint8", backend="cpu")
    q = qcore.quantize(Residual().eval(), images, [images], recipe)
    with pytest.raises(qcore.BackendError, match="prepared for numerics"):
        qcore.lower(q, "native")


def test_buffers_that_live_at_the_same_time_never_overlap() -> None:
    """And those that do not share their memory."""
    lives = [(0, 2), (1, 3), (3, 4), (2, 5), (4, 6), (6, 7)]
    buffers = [Buffer(size=100 + 64 * i, first=a, last=b) for i, (a, b) in enumerate(lives)]
    total = place(buffers)
    for i, one in enumerate(buffers):
        assert one.offset % 64 == 0
        assert one.offset + one.size <= total
        for other in buffers[:i]:
            if one.first <= other.last and other.first <= one.last:
                assert (
                    one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
                )
    assert total < sum(buffer.size for buffer in buffers)
