"""What a user may give a lowered program by mistake: a clear error, or the right answer."""

import pytest
import torch
from torch import nn

import qcore
from qcore.running import recipe_phases

BACKENDS = ("reference", "cpu", "native")


@pytest.fixture(scope="module")
def programs():
    """A program for the contract of each backend, and what it was lowered to."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    made = {}
    for name in BACKENDS:
        if qcore.default_host().get("backend", name).unavailable() is None:
            recipe = qcore.Recipe(preset="int8", backend=name)
            q = qcore.quantize(model, x, [x], recipe)
            made[name] = q, qcore.lower(q, name)
    return made


@pytest.fixture(params=BACKENDS)
def pair(request, programs):
    """A program and its lowered form."""
    if request.param not in programs:
        pytest.skip(f"backend {request.param} is not available")
    return programs[request.param]


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(4, 1, 8, 8), r"float32 \[4, 1, 8, 8\]"),
        (torch.zeros(4, 3, 9, 8), r"float32 \[4, 3, 9, 8\]"),
        (torch.zeros(3, 8, 8), r"float32 \[3, 8, 8\]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.float64), r"float64 \[4, 3, 8, 8\]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int8), r"int8 \[4, 3, 8, 8\]"),
        (torch.zeros(4, 3, 8, 8).numpy(), "a numpy.ndarray"),
        (None, "None"),
    ],
    ids=["channels", "size", "dimensions", "float64", "int8", "array", "none"],
)
def test_another_shape_dtype_or_kind(pair, x, got):
    """What was given, what is taken, and what to do."""
    cure = r"captured for float32 \[.*, 3, 8, 8\]; call it with that, or capture again"
    with pytest.raises(qcore.CaptureError, match=rf"input \w+ is {got}, but the graph was {cure}"):
        pair[1](x)


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_another_batch(pair, batch):
    """Any batch is fine, and none gives no result."""
    q, lowered = pair
    x = torch.randn(batch, 3, 8, 8)
    assert lowered(x).shape == (batch, 4)
    assert torch.equal(lowered(x), q(x))


def test_another_memory_format(pair):
    """However the values lie in memory, they are the same."""
    q, lowered = pair
    x = torch.randn(4, 3, 8, 8)
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.randn(4, 3, 8, 16)[..., ::2].copy_(x),
    ):
        assert torch.equal(lowered(other), q(x))


@pytest.mark.parametrize("name", ["cpu", "native"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 3, 8, 8, device="meta"), r"input '\w+' is on meta, .* with \.cpu\(\)"),
        (
            torch.zeros(4, 3, 8, 8).to_sparse(),
            r"input '\w+' is torch.sparse_coo, .* with \.to_dense\(\)",
        ),
    ],
    ids=["device", "layout"],
)
def test_memory_that_kernels_can_not_read(programs, name, x, message):
    """Refused before any kernel reads it, though the same shape has run before."""
    if name not in programs:
        pytest.skip(f"backend {name} is not available")
    programs[name][1](torch.zeros(4, 3, 8, 8))
    with pytest.raises(qcore.BackendError, match=message):
        programs[name][1](x)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_threads_that_there_can_not_be(number):
    """Named, with what is allowed; nothing has changed."""
    before = torch.get_num_threads()
    told = r"threads: got .*; use a whole number, 1 or more"
    with pytest.raises(qcore.RecipeError, match=told), qcore.num_threads(number):
        pytest.fail("the block has begun")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("stage", ["train", "qat"])
def test_stages_on_no_threads(stage):
    """A recipe that gives a stage 0 threads is refused."""
    recipe = qcore.Recipe(
        preset="w8a8",
        model={"name": "resnet20", "in_channels": 1},
        data={"name": "digits"},
        calibration={"samples": 8},
        algorithms=(qcore.Stage(name=stage, options={"epochs": 1, "threads": 0}),),
    )
    with pytest.raises(qcore.RecipeError, match=f"{stage}: threads=0; use 1 or more"):
        recipe_phases(recipe, use_cache=False)


def test_an_artifact_for_a_backend_that_is_not_here(tmp_path, programs, monkeypatch):
    """It loads and runs on the reference; lowering says what is missing."""
    if "cpu" not in programs:
        pytest.skip("backend cpu is not available")
    q, lowered = programs["cpu"]
    x = torch.randn(2, 3, 8, 8)
    folder = qcore.save(q, tmp_path / "artifact", golden_inputs=x)
    expected = lowered(x)
    monkeypatch.setattr("qcore_backends.cpu.CpuBackend.unavailable", lambda: "no oneDNN; get one")
    loaded = qcore.load(folder)
    assert torch.equal(loaded(x), expected)
    assert qcore.verify(folder).equal
    with pytest.raises(
        qcore.BackendError, match="'cpu' is not available on this machine: no oneDNN; get one"
    ):
        qcore.lower(loaded, "cpu")
